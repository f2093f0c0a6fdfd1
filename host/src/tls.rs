//! TLS on both sides, by rustls with aws-lc-rs.
//!
//! Certificates and keys are checked with the configuration, and then immutable and shared by all threads. Sessions are resumed
//! by tickets alone ([`tickets`]), so threads share no session store.

pub mod certificate;
pub mod client;
pub mod server;
pub mod tickets;

use std::io;
use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::{ConnectionCommon, SupportedProtocolVersion};
use tokio::net::TcpStream;

/// The crypto provider of the process, passed to rustls explicitly instead of by its global default.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// ALPN name of HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";
/// ALPN name of HTTP/1.1.
pub const ALPN_HTTP11: &[u8] = b"http/1.1";
/// ALPN name of HTTP/1.0. Each request says which of the two it uses.
pub const ALPN_HTTP10: &[u8] = b"http/1.0";

/// Oldest accepted version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static FROM_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Tls12 => FROM_12,
            Self::Tls13 => &FROM_12[..1],
        }
    }
}

/// Sends close_notify on a connection that is dropped next. It does not wait: a socket that takes nothing now has a peer that
/// would not read it.
pub(crate) fn send_close_notify<T>(socket: &TcpStream, session: &mut ConnectionCommon<T>) {
    session.send_close_notify();
    let _ = session.write_tls(&mut AtOnce(socket));
}

/// Writes what a socket takes at once.
struct AtOnce<'a>(&'a TcpStream);

impl io::Write for AtOnce<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A rustls error in the form of our own messages.
fn describe(e: &rustls::Error) -> String {
    use rustls::{CertificateError, Error};
    match e {
        Error::InvalidCertificate(e) => match e {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet".into()
            }
            CertificateError::UnknownIssuer => "the certificate's issuer is not trusted".into(),
            CertificateError::NotValidForName => "the certificate is for another name".into(),
            CertificateError::NotValidForNameContext { expected, presented } => format!(
                "the certificate is not for {} but for {}",
                expected.to_str(),
                if presented.is_empty() { "no name".into() } else { presented.join(", ") }
            ),
            // Errors of webpki that rustls has no variant for; their text is the variant's name.
            CertificateError::Other(e) => match e.to_string().as_str() {
                "CaUsedAsEndEntity" => {
                    "the certificate is a CA certificate (CA:TRUE), which a peer may not use as its own (RFC \
                                        5280); make one without that (openssl req -x509 with -addext \
                                        basicConstraints=critical,CA:FALSE), or have the issuer sign another"
                        .into()
                }
                other => format!("the certificate is refused: {other}"),
            },
            other => format!("the certificate is refused: {other}"),
        },
        Error::AlertReceived(alert) => format!("the peer refused: {alert:?}"),
        Error::NoApplicationProtocol => "no protocol in common (ALPN)".into(),
        other => other.to_string(),
    }
}

/// As [`describe`], for an I/O error that may contain a rustls error.
pub fn describe_io(e: &std::io::Error) -> String {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => describe(inner),
        None if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection during the handshake".into()
        }
        None => e.to_string(),
    }
}
