//! The form of a line of the access log.

use super::suggest::nearest;

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
        let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            let behind = &rest[at + 1..];
            if let Some(after) = behind.strip_prefix('$') {
                literal.push('$');
                rest = after;
            } else if let Some(field) = behind.strip_prefix('{') {
                let Some((name, after)) = field.split_once('}') else {
                    return Err("has a \"${\" without its \"}\" (write \"$${\" for the text)".to_owned());
                };
                if !literal.is_empty() {
                    parts.push(LogPart::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(LogPart::Field(field_of(name)?));
                rest = after;
            } else {
                literal.push('$');
                rest = behind;
            }
        }
        literal.push_str(rest);
        if parts.is_empty() {
            return Err("is not \"full\", \"combined\" or \"json\", and has no field such as \"${status}\""
                .to_owned());
        }
        if !literal.is_empty() {
            parts.push(LogPart::Text(literal.into()));
        }
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
