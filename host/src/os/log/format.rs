//! Events as lines: text for people, or one JSON object; before it a priority or a syslog header where the reader wants one.

use std::fmt::{self, Debug, Write};
use std::io;
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Compact, Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as Clock};
use tracing_subscriber::fmt::{FmtContext, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::fields::{LogFields, is_special};
use super::{BeforeLine, LineShape};
use crate::os::local_time;

/// "System daemons", in its place in a priority.
const FACILITY: u8 = 3 << 3;

/// Names that each JSON line has of its own; a field of such a name gets a `_` behind it.
const OWN_NAMES: [&str; 3] = ["time", "level", "pid"];

/// The layer that writes one line an event, in which nothing that peers say can pass for something else.
pub fn layer<S, W>(has_colours: bool, writer: W) -> impl tracing_subscriber::Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Fn() -> Box<dyn io::Write> + 'static + Send + Sync,
{
    lines_layer(has_colours, LineShape::now).with_writer(writer)
}

pub(super) fn lines_layer<S>(has_colours: bool, shape: fn() -> LineShape) -> Layer<S, LogFields, LineFormat>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let text = Format::default().compact().with_target(false);
    let bare = text.clone().without_time().with_level(false);
    let format = LineFormat { shape, text, bare };
    Layer::default().fmt_fields(LogFields).event_format(format).with_ansi(has_colours)
}

pub(super) struct LineFormat {
    shape: fn() -> LineShape,
    text: Format<Compact>,
    /// The header has time and level.
    bare: Format<Compact, ()>,
}

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (shape, level) = ((self.shape)(), event.metadata().level());
        begin(&mut to, shape.before, *level)?;
        if shape.is_json {
            let mut line = JsonLine::begin(&mut to, *level)?;
            event.record(&mut line);
            return line.end();
        }
        if shape.is_elsewhere {
            // Without the colours of a terminal.
            let to = Writer::new(&mut to);
            return match shape.before {
                BeforeLine::Syslog => self.bare.format_event(ctx, to, event),
                BeforeLine::Nothing | BeforeLine::Priority => self.text.format_event(ctx, to, event),
            };
        }
        self.text.format_event(ctx, to, event)
    }
}

/// A text as lines of the log: one object in JSON, else a line for each of its lines.
pub(super) fn lines(text: &str, level: Level, shape: LineShape) -> String {
    let mut lines = String::new();
    // Writing to a string cannot fail.
    let _ = write_lines(&mut lines, text, level, shape);
    lines
}

fn write_lines(to: &mut String, text: &str, level: Level, shape: LineShape) -> fmt::Result {
    if text.is_empty() {
        return Ok(());
    }
    if shape.is_json {
        begin(to, shape.before, level)?;
        let mut line = JsonLine::begin(to, level)?;
        line.put("message", &format_args!("{}", text.trim_end()));
        return line.end();
    }
    for line in text.lines() {
        begin(to, shape.before, level)?;
        writeln!(to, "{line}")?;
    }
    Ok(())
}

fn begin(to: &mut impl Write, before: BeforeLine, level: Level) -> fmt::Result {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    match before {
        BeforeLine::Nothing => Ok(()),
        BeforeLine::Priority => write!(to, "<{priority}>"),
        BeforeLine::Syslog => {
            let time = local_time::rfc3164(SystemTime::now());
            write!(to, "<{}>{time} trylist[{}]: ", FACILITY | priority, std::process::id())
        }
    }
}

/// One object. Characters that a terminal obeys stand as escapes, as in text.
struct JsonLine<'a, W> {
    to: &'a mut W,
    result: fmt::Result,
}

impl<'a, W: Write> JsonLine<'a, W> {
    fn begin(to: &'a mut W, level: Level) -> Result<Self, fmt::Error> {
        to.write_str("{\"time\":\"")?;
        Clock.format_time(&mut Writer::new(to))?;
        let level = level.as_str().to_ascii_lowercase();
        write!(to, "\",\"level\":\"{level}\",\"pid\":{}", std::process::id())?;
        Ok(Self { to, result: Ok(()) })
    }

    fn end(self) -> fmt::Result {
        self.result?;
        self.to.write_str("}\n")
    }

    /// A value that is JSON as it is.
    fn put_raw(&mut self, name: &str, value: &dyn fmt::Display) {
        self.put_name(name);
        self.result = self.result.and_then(|()| write!(self.to, "{value}"));
    }

    /// A text.
    fn put(&mut self, name: &str, value: &dyn Debug) {
        self.put_name(name);
        self.result = self.result.and_then(|()| {
            self.to.write_char('"')?;
            write!(JsonText(self.to), "{value:?}")?;
            self.to.write_char('"')
        });
    }

    fn put_name(&mut self, name: &str) {
        let name = name.strip_prefix("r#").unwrap_or(name);
        let more = if OWN_NAMES.contains(&name) { "_" } else { "" };
        self.result = self.result.and_then(|()| {
            self.to.write_str(",\"")?;
            write!(JsonText(self.to), "{name}{more}")?;
            self.to.write_str("\":")
        });
    }
}

impl<W: Write> Visit for JsonLine<'_, W> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), &format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put_raw(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put_raw(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put_raw(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity.
        if value.is_finite() {
            self.put_raw(field.name(), &value);
        } else {
            self.put(field.name(), &value);
        }
    }
}

/// The inside of a JSON string.
struct JsonText<'a, W>(&'a mut W);

impl<W: Write> Write for JsonText<'_, W> {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        while let Some(at) = text.find(|c| matches!(c, '"' | '\\') || is_special(c)) {
            self.0.write_str(&text[..at])?;
            let mut chars = text[at..].chars();
            if let Some(c) = chars.next() {
                match c {
                    '"' | '\\' => write!(self.0, "\\{c}")?,
                    '\n' => self.0.write_str("\\n")?,
                    // All of them have four digits.
                    c => write!(self.0, "\\u{:04x}", u32::from(c))?,
                }
            }
            text = chars.as_str();
        }
        self.0.write_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: LineShape = LineShape { is_json: true, before: BeforeLine::Nothing, is_elsewhere: true };

    #[test]
    fn a_text_is_one_object_or_a_line_each() {
        let text = "first \"a\\b\"\n\u{9b}second\n";
        let object: serde_json::Value = serde_json::from_str(&lines(text, Level::ERROR, JSON)).unwrap();
        assert_eq!(object["message"], text.trim_end());
        assert_eq!((&object["level"], &object["pid"]), (&"error".into(), &std::process::id().into()));
        let shape = |before| LineShape { is_json: false, before, is_elsewhere: false };
        assert_eq!(lines("a\nb\n", Level::WARN, shape(BeforeLine::Priority)), "<4>a\n<4>b\n");
        let syslog = lines("a\nb\n", Level::ERROR, shape(BeforeLine::Syslog));
        let tag = format!(" trylist[{}]: ", std::process::id());
        for (line, text) in syslog.lines().zip(["a", "b"]) {
            let (header, said) = line.split_once(&tag).unwrap();
            assert!(header.starts_with("<27>") && header.len() == "<27>Dec  1 04:12:15".len(), "{line}");
            assert_eq!(said, text);
        }
        assert_eq!(lines("", Level::ERROR, JSON), "");
    }
}
