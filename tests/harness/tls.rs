//! Certificates made for a test, in a folder that goes with it; and clients and servers of TLS.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};
use tempfile::TempDir;

use crate::DEADLINE;

/// An issuer of certificates, and a folder for what it issued.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// A client's end of a connection of TLS.
#[derive(Debug)]
pub struct Client(StreamOwned<ClientConnection, TcpStream>);

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate's.
    pub cert: PathBuf,
    /// The key's.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// The file with its own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The same as text.
    pub fn path(&self) -> String {
        self.file().display().to_string()
    }

    /// A certificate for these names (or addresses), whose subject is the first.
    pub fn issue(&self, names: &[&str]) -> Files {
        self.issue_with(names, |_| {})
    }

    /// A certificate for this name that nobody but itself has issued, and that says whether it is an issuer's. `openssl req
    /// -x509` says so unless told otherwise.
    pub fn self_signed(&self, name: &str, is_issuer: bool) -> Files {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if is_issuer {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let base = self.folder.path().join(format!("self-signed-{is_issuer}"));
        let files = Files { cert: base.with_extension("pem"), key: base.with_extension("key") };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// One that was valid once.
    pub fn issue_expired(&self, name: &str) -> Files {
        self.issue_with(&[name], |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    /// One that will be valid some day.
    pub fn issue_for_later(&self, name: &str) -> Files {
        self.issue_with(&[name], |params| params.not_before = date_time_ymd(2090, 1, 1))
    }

    fn issue_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Files {
        let mut params =
            CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let base = self.folder.path().join(names[0].replace('*', "any"));
        let files = Files { cert: base.with_extension("pem"), key: base.with_extension("key") };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        // As keys are to be: for their owner alone.
        std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).unwrap();
        files
    }
}

impl Client {
    /// Shakes hands over this connection with a server of this name, whose certificate is of this issuer, and offers to speak
    /// these protocols.
    ///
    /// # Panics
    /// Where that fails.
    #[track_caller]
    pub fn over(socket: TcpStream, ca: &Authority, name: &'static str, protocols: &[&str]) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.set_write_timeout(Some(DEADLINE)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca.file()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name).unwrap();
        let mut client = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket);
        while client.conn.is_handshaking() {
            client.conn.complete_io(&mut client.sock).unwrap_or_else(|e| panic!("no handshake: {e}"));
        }
        Self(client)
    }

    /// The same over a new connection.
    ///
    /// # Panics
    /// Where it fails.
    #[track_caller]
    pub fn connect(address: SocketAddr, ca: &Authority, name: &'static str, protocols: &[&str]) -> Self {
        Self::over(TcpStream::connect(address).unwrap(), ca, name, protocols)
    }

    /// The protocol that the server has chosen.
    pub fn protocol(&self) -> Option<String> {
        self.0.conn.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned())
    }

    /// Sends exactly these bytes; false where the server takes no more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).and_then(|()| self.0.flush()).is_ok()
    }

    /// Says that it sends nothing more.
    pub fn end_sending(&mut self) {
        self.0.conn.send_close_notify();
        // That it is gone shows where it is read.
        let _ = self.0.flush();
    }

    /// Everything up to the end that the server says (`close_notify`).
    ///
    /// # Errors
    /// How the connection ended without that.
    pub fn rest(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.0.read_to_string(&mut text).map(|_| text)
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.0.sock
    }
}

/// Shakes hands over an accepted connection with this certificate, whatever it is, in TLS 1.2 or 1.3.
///
/// # Errors
/// The client's reason to go.
///
/// # Panics
/// Where the files cannot be used.
pub fn accept(
    socket: TcpStream,
    files: &Files,
    is_12: bool,
) -> io::Result<StreamOwned<ServerConnection, TcpStream>> {
    static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let key = aws_lc_rs::sign::any_supported_type(&key).unwrap();
    let certified = CertifiedKey::new(vec![CertificateDer::from_pem_file(&files.cert).unwrap()], key);
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let versions = if is_12 { &VERSIONS[..1] } else { &VERSIONS[1..] };
    let builder = builder.with_protocol_versions(versions).unwrap().with_no_client_auth();
    let config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    let mut server = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket);
    while server.conn.is_handshaking() {
        server.conn.complete_io(&mut server.sock)?;
    }
    Ok(server)
}

/// Certificates of X.509 version 1 for `site.test`, as older tools and appliances make them: ECDSA and RSA, in this folder.
///
/// # Panics
/// Where the folder cannot be written.
pub fn of_version_1(folder: &TempDir) -> [Files; 2] {
    [
        ("ecdsa", include_str!("version-1/ecdsa.pem"), include_str!("version-1/ecdsa.key")),
        ("rsa", include_str!("version-1/rsa.pem"), include_str!("version-1/rsa.key")),
    ]
    .map(|(name, cert, key)| {
        let base = folder.path().join(name);
        let files = Files { cert: base.with_extension("pem"), key: base.with_extension("key") };
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
        files
    })
}

impl Files {
    /// As an element of a listener's `certificates`.
    pub fn toml(&self) -> String {
        format!("{{ cert = {:?}, key = {:?} }}", self.cert, self.key)
    }
}
