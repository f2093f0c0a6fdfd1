//! TLS towards clients.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::{CertificateFacts, Identity, identity_lines};
use super::tickets::{TicketKeys, Tickets};
use super::{ALPN_H2, ALPN_HTTP10, ALPN_HTTP11, MinVersion, provider};

/// First byte of a TLS client's first record.
const HANDSHAKE: u8 = 0x16;

/// TLS of one listener, as configured.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// The requirement for clients; tickets are bound to it.
    context: [u8; 32],
    certificates: Arc<[CertificateFacts]>,
}

/// A listener's requirement for its clients.
#[derive(Clone, Debug, Default)]
pub enum ClientAuth {
    /// No certificate.
    #[default]
    None,
    /// Optionally, a certificate of one of these issuers.
    Optional(Vec<CertificateDer<'static>>),
    /// A certificate of one of these issuers.
    Required(Vec<CertificateDer<'static>>),
}

/// TLS of a running listener.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

/// Certificates by name.
#[derive(Debug)]
struct ByName {
    exact: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// Without the leading `*`.
    wildcard: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
    /// For clients without SNI, or with an unknown name.
    default: Vec<Arc<CertifiedKey>>,
}

/// Why a handshake failed.
#[derive(Debug)]
pub enum NoHandshake {
    /// The client does not speak TLS. It may get an HTTP response.
    Plain(TcpStream),
    /// In words.
    Failed(String),
}

impl ServerTls {
    /// With these certificates; the first is the default for unknown names.
    ///
    /// # Errors
    /// The faults of the issuers of clients' certificates.
    pub fn new(
        identities: Vec<Identity>,
        client_auth: &ClientAuth,
        min_version: MinVersion,
        h2: bool,
    ) -> Result<Self, String> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(min_version.versions())
            .map_err(|e| e.to_string())?;
        let mut context = Sha256::new();
        let builder = match client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::Optional(issuers) | ClientAuth::Required(issuers) => {
                let is_optional = matches!(client_auth, ClientAuth::Optional(_));
                context.update([1 + u8::from(is_optional)]);
                let mut roots = RootCertStore::empty();
                for issuer in issuers {
                    context.update(issuer);
                    roots
                        .add(issuer.clone())
                        .map_err(|e| format!("holds an issuer that cannot be used: {e}"))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                let verifier = if is_optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().map_err(|e| e.to_string())?)
            }
        };
        let certificates = identities.iter().map(CertificateFacts::of).collect();
        let mut config = builder.with_cert_resolver(Arc::new(ByName::new(identities)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.alpn_protocols = vec![ALPN_HTTP11.to_vec(), ALPN_HTTP10.to_vec()];
        if h2 {
            config.alpn_protocols.insert(0, ALPN_H2.to_vec());
        }
        Ok(Self { config: Arc::new(config), context: context.finalize().into(), certificates })
    }

    /// Facts of its certificates, the default first.
    pub(crate) fn certificates(&self) -> &Arc<[CertificateFacts]> {
        &self.certificates
    }

    /// With these keys for tickets.
    pub fn acceptor(&self, keys: &Arc<TicketKeys>) -> Acceptor {
        let mut config = ServerConfig::clone(&self.config);
        config.ticketer = Arc::new(Tickets { keys: Arc::clone(keys), context: self.context });
        Acceptor(TlsAcceptor::from(Arc::new(config)))
    }
}

impl Acceptor {
    /// Waits for the client's first byte and shakes hands.
    ///
    /// # Errors
    /// As [`NoHandshake`] says.
    pub async fn accept(&self, socket: TcpStream) -> Result<TlsStream<TcpStream>, NoHandshake> {
        let mut first = [0];
        match socket.peek(&mut first).await {
            Ok(0) => return Err(NoHandshake::Failed("closed before it began".into())),
            Ok(_) if first[0] != HANDSHAKE => return Err(NoHandshake::Plain(socket)),
            Ok(_) => {}
            Err(e) => return Err(NoHandshake::Failed(e.to_string())),
        }
        self.0.accept(socket).await.map_err(|e: io::Error| NoHandshake::Failed(super::describe_io(&e)))
    }
}

/// Whether ALPN chose HTTP/2.
pub fn chose_h2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(ALPN_H2)
}

/// Header lines about the client's certificate, if it sent one.
pub fn identity(stream: &TlsStream<TcpStream>) -> Option<Rc<[u8]>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    Some(identity_lines(certificate).into())
}

impl ByName {
    fn new(identities: Vec<Identity>) -> Self {
        let mut by_name = Self { exact: HashMap::new(), wildcard: HashMap::new(), default: Vec::new() };
        let mut first_names = None;
        for Identity { key, names, .. } in identities {
            let key = Arc::new(key);
            // With it those for the same names: the same site with a key of another kind.
            if first_names.get_or_insert_with(|| names.clone()) == &names {
                by_name.default.push(Arc::clone(&key));
            }
            for name in names {
                let (map, name) = match name.strip_prefix('*') {
                    Some(parent) => (&mut by_name.wildcard, parent.into()),
                    None => (&mut by_name.exact, name),
                };
                map.entry(name).or_default().push(Arc::clone(&key));
            }
        }
        by_name
    }

    fn of(&self, name: &str) -> &[Arc<CertifiedKey>] {
        // rustls has it in lower case.
        self.exact
            .get(name)
            .or_else(|| self.wildcard.get(&name[name.find('.')?..]))
            .map_or(&self.default[..], |keys| &keys[..])
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = hello.server_name().map_or(&self.default[..], |name| self.of(name));
        let schemes = hello.signature_schemes();
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // Where none fits, the handshake says so by itself.
        keys.iter().find(fits).or(keys.first()).cloned()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}
