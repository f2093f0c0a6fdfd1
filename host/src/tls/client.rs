//! TLS towards servers.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerMisbehaved, RootCertStore, SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::certificate::{Identity, key_bits, public_key};
use super::{ALPN_H2, ALPN_HTTP11, MinVersion, provider, send_close_notify};

/// Maximum sessions that one thread keeps for one cluster's servers.
const SESSIONS: usize = 256;

/// TLS to the servers of one cluster, as configured.
#[derive(Clone)]
pub struct ClientTls(ClientConfig);

/// Which certificates of servers are accepted.
#[derive(Debug)]
pub enum Trust {
    /// Certificates of these issuers.
    Issuers(Vec<CertificateDer<'static>>),
    /// Any certificate: the server is not verified.
    Anybody,
}

/// Protocols offered by ALPN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 only.
    #[default]
    Http1,
    /// HTTP/2 only.
    H2,
    /// Both; the server chooses. Over TLS only.
    Auto,
}

/// TLS of one thread, with sessions of its own, so that no thread waits for another.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl ClientTls {
    /// Of these settings.
    ///
    /// # Errors
    /// The issuers cannot be used.
    pub fn new(
        trust: Trust,
        identity: Option<Identity>,
        min_version: MinVersion,
        protocol: Protocol,
    ) -> Result<Self, String> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(min_version.versions())
            .map_err(|e| e.to_string())?;
        let builder = match trust {
            Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(
                provider().signature_verification_algorithms,
            ))),
            Trust::Issuers(issuers) => {
                let mut roots = RootCertStore::empty();
                let (n_added, _) = roots.add_parsable_certificates(issuers);
                if n_added == 0 {
                    return Err("holds no issuer that can be used".into());
                }
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
                builder.with_webpki_verifier(verifier.build().map_err(|e| e.to_string())?)
            }
        };
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { key, .. }) => {
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)))
            }
        };
        config.alpn_protocols = match protocol {
            Protocol::Http1 => vec![ALPN_HTTP11.to_vec()],
            Protocol::H2 => vec![ALPN_H2.to_vec()],
            Protocol::Auto => vec![ALPN_H2.to_vec(), ALPN_HTTP11.to_vec()],
        };
        Ok(Self(config))
    }

    /// For health checks, whose protocol may differ from that of requests.
    pub fn checker(&self, speaks_h2: bool) -> Connector {
        let mut config = self.0.clone();
        config.alpn_protocols = vec![if speaks_h2 { ALPN_H2 } else { ALPN_HTTP11 }.to_vec()];
        Connector(TlsConnector::from(Arc::new(config)))
    }

    /// For one thread.
    pub fn connector(&self) -> Connector {
        Self::with_sessions(self.0.clone())
    }

    /// For one thread's requests that need HTTP/1.1.
    pub fn http1_connector(&self) -> Connector {
        let mut config = self.0.clone();
        config.alpn_protocols = vec![ALPN_HTTP11.to_vec()];
        Self::with_sessions(config)
    }

    fn with_sessions(mut config: ClientConfig) -> Connector {
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Connector(TlsConnector::from(Arc::new(config)))
    }
}

impl Connector {
    /// Shakes hands with a server of this name.
    ///
    /// # Errors
    /// The connection's, or a reason of TLS.
    pub async fn connect(
        &self,
        name: &ServerName<'static>,
        socket: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        self.0.connect(name.clone(), socket).await
    }
}

/// A connection that sends close_notify when it is dropped.
#[derive(Debug)]
pub(crate) struct Parting(pub(crate) Box<TlsStream<TcpStream>>);

impl Drop for Parting {
    fn drop(&mut self) {
        let (socket, session) = self.0.get_mut();
        send_close_notify(socket, session);
    }
}

impl AsyncRead for Parting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Parting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Accepts any certificate of any X.509 version. It verifies only that the server has the certificate's key.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let bad = || rustls::Error::InvalidCertificate(CertificateError::BadSignature);
        let key = key_of(certificate)?;
        let found = self.0.mapping.iter().find(|(scheme, _)| *scheme == signature.scheme);
        let (_, algorithms) = found.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        // Which curve a scheme of TLS 1.2 is of, only the key says.
        let (algorithm, bits) = algorithms
            .iter()
            .find_map(|algorithm| Some((algorithm, key_bits(&key, &algorithm.public_key_alg_id())?)))
            .ok_or_else(bad)?;
        algorithm
            .verify_signature(bits, message, signature.signature())
            .map(|()| HandshakeSignatureValid::assertion())
            .map_err(|_| bad())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature_with_raw_key(message, &key_of(certificate)?, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn key_of<'a>(certificate: &'a CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'a>, rustls::Error> {
    public_key(certificate).ok_or(rustls::Error::InvalidCertificate(CertificateError::BadEncoding))
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}
