//! The fields of a line of the log, safe for terminals and for people: what peers, servers and modules say is in them.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// As `name=value`, the message without its name. Characters that a terminal obeys, that end a line or that turn the
/// direction of the text stand as their escapes.
#[derive(Debug)]
pub(super) struct LogFields;

impl<'w> FormatFields<'w> for LogFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = LogLine { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct LogLine<'w> {
    writer: Writer<'w>,
    is_empty: bool,
    result: fmt::Result,
}

impl LogLine<'_> {
    fn put(&mut self, name: &str, value: &dyn Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_empty) {
            self.writer.write_char(' ')?;
        }
        let name = name.strip_prefix("r#").unwrap_or(name);
        match (name, self.writer.has_ansi_escapes()) {
            ("message", _) => {}
            // As `tracing_subscriber` has it: italic, and dimmed.
            (name, true) => write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
            (name, false) => write!(self.writer, "{name}=")?,
        }
        write!(Escaping(&mut self.writer), "{value:?}")
    }
}

impl Visit for LogLine<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // The first error is the one that counts; writing goes to a string.
        self.result = self.result.and_then(|()| self.put(field.name(), value));
    }
}

struct Escaping<'a, 'w>(&'a mut Writer<'w>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        while let Some(at) = text.find(is_special) {
            self.0.write_str(&text[..at])?;
            let rest = &text[at..];
            let mut chars = rest.chars();
            chars.next().into_iter().try_for_each(|c| write!(self.0, "{}", c.escape_default()))?;
            text = chars.as_str();
        }
        self.0.write_str(text)
    }
}

/// Control characters (C0, DEL and C1), ends of lines of Unicode's own, and marks that turn the direction of text.
pub(crate) fn is_special(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

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

    /// The line without the time before it.
    fn logged(has_colours: bool, log: impl FnOnce()) -> String {
        let lines = LoggedLines::default();
        let layer = super::super::layer(has_colours).with_writer({
            let lines = lines.clone();
            move || lines.clone()
        });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = lines.0.lock().expect("one thread").clone();
        let line = String::from_utf8(bytes).expect("text");
        line.split_once("WARN").expect("a level").1.to_owned()
    }

    /// U+009B begins a command as ESC [ does, and U+202E has the rest of a line read backwards.
    #[test]
    fn what_a_terminal_obeys_is_escaped_wherever_it_stands() {
        let target = "/a\u{9b}31m\u{202e}\u{1b}[0m\u{7f}\n\u{2028}é";
        let escaped = "/a\\u{9b}31m\\u{202e}\\u{1b}[0m\\u{7f}\\n\\u{2028}é";
        let line = logged(false, || tracing::warn!(%target, text = "a", n = 3, "failed: {target}"));
        assert_eq!(line, format!(" failed: {escaped} target={escaped} text=\"a\" n=3\n"));
        let coloured = logged(true, || tracing::warn!(%target, "failed"));
        assert!(coloured.contains(escaped) && coloured.contains("\u{1b}["), "{coloured:?}");
    }
}
