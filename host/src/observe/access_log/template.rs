//! A line as the operator wants it.

use super::line::{LogDate, LogEntry, Try, escape, put, put_number, put_seconds, put_tries};
use crate::config::{LogField, LogPart};

impl LogEntry<'_> {
    /// Appends the line. Bytes that could end a field in quotes, or the line, are escaped; what is not known is a dash.
    pub(super) fn format_template<'t>(
        &self,
        line: &mut Vec<u8>,
        date: &LogDate,
        parts: &[LogPart],
        tries: impl IntoIterator<Item = Try<'t>, IntoIter: Clone>,
    ) {
        let tries = tries.into_iter();
        for part in parts {
            match part {
                LogPart::Text(text) => put(line, &**text),
                LogPart::Field(LogField::Tries) => put_tries(line, tries.clone()),
                LogPart::Field(field) => self.put_field(line, date, *field),
            }
        }
        put(line, "\n");
    }

    fn put_field(&self, line: &mut Vec<u8>, date: &LogDate, field: LogField) {
        let text = match field {
            LogField::Client => return self.put_client(line),
            LogField::Time => return put(line, date.text()),
            LogField::TimeIso => return date.put_iso(line),
            LogField::Status => return put_number(line, self.status.into()),
            LogField::ReceivedBytes => return put_number(line, self.received_bytes),
            LogField::SentBytes => return put_number(line, self.sent_bytes),
            LogField::BodyBytes => return put_number(line, self.body_bytes),
            LogField::Duration => return put_seconds(line, self.duration_ns),
            LogField::FirstByte => match self.first_byte_ns {
                Some(ns) => return put_seconds(line, ns),
                None => None,
            },
            LogField::Method => Some(self.method),
            LogField::Target => Some(self.target),
            LogField::Version => Some(self.version.as_bytes()),
            LogField::Host => self.host,
            LogField::Scheme => Some(self.scheme.as_bytes()),
            LogField::TlsVersion => self.tls.map(|tls| tls.version.as_bytes()),
            LogField::Sni => self.tls.and_then(|tls| tls.name).map(str::as_bytes),
            LogField::Referer => self.referer,
            LogField::UserAgent => self.user_agent,
            LogField::Cluster => self.cluster.map(str::as_bytes),
            LogField::Module => self.module.map(str::as_bytes),
            LogField::Endpoint => self.endpoint.map(str::as_bytes),
            // Written by the caller, who has them.
            LogField::Tries => None,
            LogField::RequestId => self.request_id,
        };
        escape(line, text.filter(|text| !text.is_empty()).unwrap_or(b"-"));
    }
}
