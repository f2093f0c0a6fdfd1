//! TLS on both sides, by rustls with aws-lc-rs.
//!
//! What can be wrong with certificates and keys is found when the configuration is checked; what is made there is
//! immutable and shared by all threads. Sessions are resumed by tickets alone ([`tickets`]), so that no thread looks
//! anything up in a store that another may hold.

pub mod certificate;
pub mod client;
pub mod server;
pub mod tickets;

use std::io;
use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::{ConnectionCommon, SupportedProtocolVersion};
use tokio::net::TcpStream;

/// One for the process, named wherever rustls wants one, so that nothing rests on a global default.
static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));

/// What ALPN calls HTTP/2.
pub const ALPN_H2: &[u8] = b"h2";
/// What ALPN calls HTTP/1.1.
pub const ALPN_HTTP11: &[u8] = b"http/1.1";
/// What ALPN calls HTTP/1.0. Which of the two is spoken, each request says.
pub const ALPN_HTTP10: &[u8] = b"http/1.0";

/// The oldest version of the protocol that is spoken.
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

/// What a rustls error is about, in the form of our own messages.
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
            // What rustls has no word for: webpki's own, which it says by the names that they have there.
            CertificateError::Other(e) => match e.to_string().as_str() {
                "CaUsedAsEndEntity" => {
                    "the certificate is an issuer's (CA:TRUE), and the peer may not use it as its own (RFC \
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

/// The same, for an I/O error that may have one inside.
pub fn describe_io(e: &std::io::Error) -> String {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => describe(inner),
        None if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the peer closed the connection during the handshake".into()
        }
        None => e.to_string(),
    }
}
