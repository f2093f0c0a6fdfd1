//! The form of a line of the access log.

use super::suggest::nearest;
use crate::http::template::{self, TemplatePiece, Unclosed};

/// The form of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// The combined format, and then how the request was balanced.
    #[default]
    Full,
    /// The combined format, as httpd and nginx have it.
    Combined,
    /// One JSON object with every field.
    Json,
    /// The operator's own.
    Template(Vec<LogPart>),
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPart {
    /// As it is.
    Text(Box<str>),
    /// A field of the request.
    Field(LogField),
}

/// A field of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all, and conf/reference.toml lists them")]
pub enum LogField {
    Client,
    Time,
    TimeIso,
    Method,
    Target,
    Version,
    Host,
    Scheme,
    TlsVersion,
    Sni,
    Status,
    ReceivedBytes,
    SentBytes,
    BodyBytes,
    Referer,
    UserAgent,
    Cluster,
    Module,
    Endpoint,
    Tries,
    Duration,
    FirstByte,
    RequestId,
}

impl LogField {
    /// Every field by its name, as templates and JSON have it.
    pub const ALL: [(&str, Self); 23] = [
        ("client", Self::Client),
        ("time", Self::Time),
        ("time_iso", Self::TimeIso),
        ("method", Self::Method),
        ("target", Self::Target),
        ("version", Self::Version),
        ("host", Self::Host),
        ("scheme", Self::Scheme),
        ("tls_version", Self::TlsVersion),
        ("sni", Self::Sni),
        ("status", Self::Status),
        ("received_bytes", Self::ReceivedBytes),
        ("sent_bytes", Self::SentBytes),
        ("body_bytes", Self::BodyBytes),
        ("referer", Self::Referer),
        ("user_agent", Self::UserAgent),
        ("cluster", Self::Cluster),
        ("module", Self::Module),
        ("endpoint", Self::Endpoint),
        ("tries", Self::Tries),
        ("duration", Self::Duration),
        ("first_byte", Self::FirstByte),
        ("request_id", Self::RequestId),
    ];
}

impl LogFormat {
    /// Reads a format: a name, or a text with fields in it.
    ///
    /// # Errors
    /// It is neither; in words that follow the text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "full" => return Ok(Self::Full),
            "combined" => return Ok(Self::Combined),
            "json" => return Ok(Self::Json),
            _ => {}
        }
        if text.contains(char::is_control) {
            return Err("has a control character in it; a request is one line".to_owned());
        }
        let pieces = template::pieces(text)
            .map_err(|Unclosed| "has a \"${\" without its \"}\" (write \"$${\" for the text)".to_owned())?;
        if !pieces.iter().any(|piece| matches!(piece, TemplatePiece::Name(_))) {
            return Err("is not \"full\", \"combined\" or \"json\", and has no field such as \"${status}\""
                .to_owned());
        }
        let part = |piece| match piece {
            TemplatePiece::Text(text) => Ok(LogPart::Text(text.into())),
            TemplatePiece::Name(name) => field_of(name).map(LogPart::Field),
        };
        let parts = pieces.into_iter().map(part).collect::<Result<_, String>>()?;
        Ok(Self::Template(parts))
    }
}

fn field_of(name: &str) -> Result<LogField, String> {
    let names = || LogField::ALL.iter().map(|(known, _)| *known);
    let found = LogField::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, field)| *field).ok_or_else(|| {
        let hint = match nearest(name, names()) {
            Some(meant) => format!("did you mean \"${{{meant}}}\"?"),
            None => format!("known are {}", names().collect::<Vec<_>>().join(", ")),
        };
        format!("uses the unknown field {name:?} ({hint})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_templates() {
        assert_eq!(LogFormat::parse("json"), Ok(LogFormat::Json));
        let text = |text: &str| LogPart::Text(text.into());
        assert_eq!(
            LogFormat::parse("a=${client} $5 $${x} ${status}"),
            Ok(LogFormat::Template(vec![
                text("a="),
                LogPart::Field(LogField::Client),
                text(" $5 ${x} "),
                LogPart::Field(LogField::Status)
            ]))
        );
        let error = |text| LogFormat::parse(text).unwrap_err();
        assert!(error("jsn").contains("is not \"full\""), "{}", error("jsn"));
        assert!(error("${statsu}").contains("did you mean \"${status}\"?"), "{}", error("${statsu}"));
        assert!(error("${status").contains("without its"));
        assert!(error("${status}\n").contains("control character"));
    }
}
