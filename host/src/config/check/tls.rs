//! `tls` of a listener and of a cluster: every file is read here, once, and what is in it is checked.

use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, ServerName};
use toml::Spanned;

use super::super::files::FileBytes;
use super::super::source::At;
use super::super::{ClusterConfig, Server, file};
use super::Checker;
use crate::tls::MinVersion;
use crate::tls::certificate::{self, Identity, Wrong};
use crate::tls::client::{ClientTls, Trust};
use crate::tls::server::{ClientAuth, ServerTls};

impl Checker<'_> {
    /// `tls` of a listener.
    pub(super) fn listener_tls(
        &mut self,
        listener: &str,
        tls: Spanned<file::ListenerTlsTable>,
        h2: bool,
    ) -> Option<ServerTls> {
        let (span, raw) = (tls.span(), tls.into_inner());
        let object = format!("{listener}: tls");
        let min_version = self.min_version(&object, raw.min_version.as_ref());
        let client_auth = self.client_auth(&object, span.start, raw.client_auth, raw.client_ca.as_ref());
        let certificates = raw.certificates.unwrap_or_default();
        if certificates.is_empty() && !self.report.is_touched(&span, "certificates") {
            let right = "write certificates = [{ cert = \"site.pem\", key = \"site.key\" }]";
            self.report.error(span.start, format!("{object}: no certificates ({right})"));
        }
        let n_wanted = certificates.len();
        let identities: Vec<Identity> = certificates
            .into_iter()
            .filter_map(|pair| {
                let (at, pair) = (pair.at(), pair.into_inner());
                self.identity(&object, at, pair.cert.as_ref(), pair.key.as_ref())
            })
            .collect();
        if identities.is_empty() || identities.len() < n_wanted {
            return None;
        }
        let at = raw.client_ca.as_ref().map_or(span.start, At::at);
        match ServerTls::new(identities, &client_auth?, min_version, h2) {
            Ok(tls) => Some(tls),
            Err(reason) => {
                self.report.error(at, format!("{object}: client_ca: {reason}"));
                None
            }
        }
    }

    /// `tls` of a cluster, or what holds without it where a server is reached by https.
    pub(super) fn cluster_tls(
        &mut self,
        cluster: &str,
        at: usize,
        tls: Option<Spanned<file::ClusterTlsTable>>,
        checks_by_tls: Option<&Spanned<bool>>,
        of: &mut ClusterConfig,
    ) -> Option<ClientTls> {
        let (protocol, servers) = (of.protocol, &mut of.servers);
        let object = format!("{cluster}: tls");
        let server_name = tls.as_ref().and_then(|tls| tls.get_ref().server_name.as_ref());
        if let Some(by_tls) = checks_by_tls {
            self.check_names(cluster, by_tls, server_name, servers);
        }
        let is_secure = servers.iter().any(|server| server.tls_name.is_some())
            || of.discover.iter().any(|discover| discover.source.may_name.https)
            || checks_by_tls.is_some_and(|by_tls| *by_tls.get_ref());
        if let (Some(tls), false) = (&tls, is_secure || servers.is_empty()) {
            let right = "write https://host, or leave tls out";
            self.report.error(tls.at(), format!("{object}: no server is reached by https ({right})"));
            return None;
        }
        if !is_secure {
            return None;
        }
        let (at, raw) =
            tls.map_or((at, file::ClusterTlsTable::default()), |tls| (tls.at(), tls.into_inner()));
        if let Some(name) = &raw.server_name {
            of.server_name = self.set_server_name(&object, name, servers);
        }
        let min_version = self.min_version(&object, raw.min_version.as_ref());
        let identity = match (&raw.cert, &raw.key) {
            (None, None) => None,
            (cert, key) => Some(self.identity(&object, at, cert.as_ref(), key.as_ref())?),
        };
        let trust = match (&raw.ca, &raw.verify) {
            (Some(ca), Some(verify)) if !*verify.get_ref() => {
                let right = "leave one of them out";
                self.report
                    .error(verify.at(), format!("{object}: verify = false with ca \"{ca}\" ({right})"));
                return None;
            }
            (Some(ca), _) => Trust::Issuers(self.certificates(&format!("{object}: ca"), ca)?),
            (None, Some(verify)) if !*verify.get_ref() => {
                let place = self.report.place(verify.at());
                let text =
                    "verify = false: servers are not verified, so anybody at their addresses is trusted";
                self.report.warn(place, format!("{object}: {text}; set their issuer by ca = \"…\" instead"));
                Trust::Anybody
            }
            (None, _) => Trust::Issuers(self.system_roots(&object, at)?),
        };
        match ClientTls::new(trust, identity, min_version, protocol) {
            Ok(tls) => Some(tls),
            Err(reason) => {
                self.report.error(raw.ca.as_ref().map_or(at, At::at), format!("{object}: ca: {reason}"));
                None
            }
        }
    }

    /// `tls` of a cluster's health checks: what servers are called there.
    fn check_names(
        &mut self,
        cluster: &str,
        by_tls: &Spanned<bool>,
        given: Option<&Spanned<String>>,
        servers: &mut [Server],
    ) {
        let name = given.and_then(|name| ServerName::try_from(name.get_ref().clone()).ok());
        let mut nameless = None;
        for server in servers {
            let host = server.host.strip_suffix('.').unwrap_or(&server.host);
            let its = || server.tls_name.clone().or_else(|| ServerName::try_from(host.to_owned()).ok());
            server.check_name = if *by_tls.get_ref() { name.clone().or_else(its) } else { None };
            if *by_tls.get_ref() && server.check_name.is_none() {
                nameless.get_or_insert(&server.url);
            }
        }
        // A name that is given and none is refused for itself.
        if let (Some(url), None) = (nameless, given) {
            let text =
                format!("{cluster}: health_check.tls: no certificate can be valid for the host of \"{url}\"");
            let right = "name it by the cluster's tls = { server_name = \"…\" }";
            self.report.error(by_tls.at(), format!("{text} ({right})"));
        }
    }

    fn set_server_name(
        &mut self,
        object: &str,
        name: &Spanned<String>,
        servers: &mut [Server],
    ) -> Option<ServerName<'static>> {
        match ServerName::try_from(name.get_ref().clone()) {
            Ok(checked) => {
                for name in
                    servers.iter_mut().flat_map(|server| [&mut server.tls_name, &mut server.check_name])
                {
                    *name = name.take().map(|_| checked.clone());
                }
                Some(checked)
            }
            Err(_) => {
                let text = format!("{object}: server_name {:?} is not a name or an address", name.get_ref());
                self.report.error(name.at(), text);
                None
            }
        }
    }

    fn client_auth(
        &mut self,
        object: &str,
        at: usize,
        wanted: Option<Spanned<String>>,
        ca: Option<&Spanned<String>>,
    ) -> Option<ClientAuth> {
        let Some(wanted) = wanted else {
            if let Some(ca) = ca {
                let right = "write client_auth = \"required\" or \"optional\"";
                self.report.error(ca.at(), format!("{object}: client_ca without client_auth ({right})"));
                return None;
            }
            return Some(ClientAuth::None);
        };
        let is_optional = match wanted.get_ref().as_str() {
            "none" => return Some(ClientAuth::None),
            "optional" => true,
            "required" => false,
            other => {
                let right = "\"none\", \"optional\" and \"required\"";
                self.report
                    .error(wanted.at(), format!("{object}: client_auth: {other:?} is not one of {right}"));
                return None;
            }
        };
        let Some(ca) = ca else {
            let right = "write client_ca = \"issuers.pem\"";
            self.report.error(at, format!("{object}: client_auth without client_ca ({right})"));
            return None;
        };
        let issuers = self.certificates(&format!("{object}: client_ca"), ca)?;
        Some(if is_optional { ClientAuth::Optional(issuers) } else { ClientAuth::Required(issuers) })
    }

    fn min_version(&mut self, object: &str, text: Option<&Spanned<String>>) -> MinVersion {
        match text.map(|text| text.get_ref().as_str()) {
            None | Some("1.2") => MinVersion::Tls12,
            Some("1.3") => MinVersion::Tls13,
            Some(other) => {
                let at = text.map_or(0, At::at);
                self.report
                    .error(at, format!("{object}: min_version: {other:?} is not one of \"1.2\" and \"1.3\""));
                MinVersion::Tls12
            }
        }
    }

    fn identity(
        &mut self,
        object: &str,
        at: usize,
        cert: Option<&Spanned<String>>,
        key: Option<&Spanned<String>>,
    ) -> Option<Identity> {
        let (Some(cert), Some(key)) = (cert, key) else {
            let (there, missing) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
            let what = if cert.is_none() && key.is_none() {
                "neither cert nor key".into()
            } else {
                format!("{there} without {missing}")
            };
            let right = "write { cert = \"site.pem\", key = \"site.key\" }";
            self.report.error(at, format!("{object}: {what} ({right})"));
            return None;
        };
        let (chain, private) = (self.file(object, "cert", cert), self.file(object, "key", key));
        match Identity::parse(&chain?, &private?) {
            Ok(identity) => {
                if let Some(mode) = self.files.open_to_all(&self.relative(key.get_ref())) {
                    let place = self.report.place(key.at());
                    let text =
                        format!("every user of this machine can read it (mode {mode:04o}; chmod o= FILE)");
                    self.report.warn(place, format!("{object}: key {:?}: {text}", key.get_ref()));
                }
                // No error: one site whose certificate was forgotten must not keep all others from being served.
                let now = SystemTime::now();
                let own = identity.validity.trouble(now);
                for trouble in own.into_iter().chain(certificate::troubles(&identity.key.cert, true, now)) {
                    let place = self.report.place(cert.at());
                    self.report.warn(place, format!("{object}: cert {:?} {trouble}", cert.get_ref()));
                }
                Some(identity)
            }
            Err(Wrong::Certificate(reason)) => {
                self.report.error(cert.at(), format!("{object}: cert {:?} {reason}", cert.get_ref()));
                None
            }
            Err(Wrong::Key(reason)) => {
                self.report.error(key.at(), format!("{object}: key {:?} {reason}", key.get_ref()));
                None
            }
        }
    }

    fn certificates(&mut self, object: &str, path: &Spanned<String>) -> Option<Vec<CertificateDer<'static>>> {
        let pem = self.file_bytes(object, path)?;
        match certificate::certificates(&pem) {
            Ok(certificates) => {
                for trouble in certificate::troubles(&certificates, false, SystemTime::now()) {
                    let place = self.report.place(path.at());
                    self.report.warn(place, format!("{object} {:?} {trouble}", path.get_ref()));
                }
                Some(certificates)
            }
            Err(reason) => {
                self.report.error(path.at(), format!("{object} {:?} {reason}", path.get_ref()));
                None
            }
        }
    }

    fn system_roots(&mut self, object: &str, at: usize) -> Option<Vec<CertificateDer<'static>>> {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let right = "install ca-certificates, or name the issuer by tls = { ca = \"…\" }";
            self.report.error(at, format!("{object}: this system has no trusted issuers ({right})"));
            return None;
        }
        Some(found.certs)
    }

    fn file(&mut self, object: &str, key: &str, path: &Spanned<String>) -> Option<FileBytes> {
        self.file_bytes(&format!("{object}: {key}"), path)
    }

    /// The one place where certificates and keys are read.
    fn file_bytes(&mut self, object: &str, path: &Spanned<String>) -> Option<FileBytes> {
        let read = self.bytes_of(path);
        read.map_err(|reason| {
            self.report.error(path.at(), format!("{object} {:?} {reason}", path.get_ref()));
        })
        .ok()
    }
}
