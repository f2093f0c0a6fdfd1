//! Events as lines.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

use super::fields::is_special;
use super::format::lines_layer;
use super::{BeforeLine, LineShape, LogLevels};

#[derive(Clone, Default)]
struct LoggedLines(Arc<Mutex<Vec<u8>>>);

impl io::Write for LoggedLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("one thread").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line of an event.
fn logged(has_colours: bool, shape: fn() -> LineShape, log: impl FnOnce()) -> String {
    let lines = LoggedLines::default();
    let layer = lines_layer(has_colours, shape).with_writer({
        let lines = lines.clone();
        move || lines.clone()
    });
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
    let bytes = lines.0.lock().expect("one thread").clone();
    String::from_utf8(bytes).expect("text")
}

/// As text, without the time before it.
fn logged_as_text(has_colours: bool, log: impl FnOnce()) -> String {
    let line = logged(has_colours, LineShape::default, log);
    line.split_once("WARN").expect("a level").1.to_owned()
}

/// U+009B begins a command as ESC [ does, and U+202E has the rest of a line read backwards.
#[test]
fn what_a_terminal_obeys_is_escaped_wherever_it_stands() {
    let target = "/a\u{9b}31m\u{202e}\u{1b}[0m\u{7f}\n\u{2028}é";
    let escaped = "/a\\u{9b}31m\\u{202e}\\u{1b}[0m\\u{7f}\\n\\u{2028}é";
    let line = logged_as_text(false, || tracing::warn!(%target, text = "a", n = 3, "failed: {target}"));
    assert_eq!(line, format!(" failed: {escaped} target={escaped} text=\"a\" n=3\n"));
    let coloured = logged_as_text(true, || tracing::warn!(%target, "failed"));
    assert!(coloured.contains(escaped) && coloured.contains("\u{1b}["), "{coloured:?}");
}

const JSON: LineShape = LineShape { is_json: true, before: BeforeLine::Nothing, is_elsewhere: true };

/// Whatever stands in an event, a line is one object whose values are those of the event.
#[test]
fn an_event_is_one_object_with_values_of_their_types() {
    let evil = "a\"b\\c\u{9b}\u{202e}\n\u{7f}é";
    let line = logged(
        false,
        || JSON,
        || {
            tracing::warn!(n = 3_u64, i = -4, f = 0.5, nan = f64::NAN, is = true, text = evil, %evil,
            time = "a field", "failed: {evil}");
        },
    );
    assert!(line.ends_with("}\n") && !line.trim_end().contains(is_special), "{line:?}");
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(object["message"], format!("failed: {evil}"));
    assert_eq!((&object["n"], &object["i"], &object["f"]), (&3.into(), &(-4).into(), &0.5.into()));
    assert_eq!((&object["nan"], &object["is"]), (&"NaN".into(), &true.into()));
    assert_eq!((&object["text"], &object["evil"]), (&evil.into(), &evil.into()));
    assert_eq!((&object["time_"], &object["level"]), (&"a field".into(), &"warn".into()));
}

#[test]
fn takes_a_level_and_levels_for_parts() {
    let LogLevels { targets, .. } = "warn,trylist::serve::pool=debug".parse().expect("it is right");
    assert!(targets.would_enable("trylist::worker", &Level::WARN));
    assert!(!targets.would_enable("trylist::worker", &Level::INFO));
    assert!(targets.would_enable("trylist::serve::pool", &Level::DEBUG));
    let LogLevels { targets, text } = LevelFilter::INFO.into();
    assert!(targets.would_enable("trylist", &Level::INFO) && !targets.would_enable("trylist", &Level::DEBUG));
    assert!(text == "info" && !targets.would_enable("h2::proto", &Level::WARN));
}

#[test]
fn what_peers_make_a_library_say_is_logged_where_somebody_looks_for_it() {
    for (text, is_logged) in
        [("info", false), ("off,trylist=debug", false), ("info,h2=warn", true), ("debug", true)]
    {
        let LogLevels { targets, .. } = text.parse().expect("it is right");
        assert_eq!(targets.would_enable("h2::proto", &Level::WARN), is_logged, "{text}");
    }
}

#[test]
fn refuses_a_level_that_there_is_not() {
    for text in ["", "infoo", "info,trylist=loud", "info,", "trylist="] {
        let error = text.parse::<LogLevels>().expect_err(text);
        assert!(error.contains("use error, warn"), "{error}");
    }
}
