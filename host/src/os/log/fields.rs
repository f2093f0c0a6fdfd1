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
pub fn is_special(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
