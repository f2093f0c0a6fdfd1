//! A server that is asked by GET, again and again. It tells by a 304 that nothing has changed, and may wait with its answer until
//! something has.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, ETAG, HOST, HeaderValue, IF_NONE_MATCH, LOCATION, USER_AGENT,
};
use ::http::uri::Authority;
use ::http::{Request, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::answer::{MOST_BYTES, SourceAnswer};
use super::file::bytes_of;
use super::read::{AnswerForm, read, too_long};
use super::{DiscoverySource, DiskWork, resolver};
use crate::cluster::dial::{Dial, Dialled};
use crate::cluster::names::{Addresses, Resolver};
use crate::config::{ResolverConfig, SourceKind, SourceSpec};
use crate::http::drive::drive;
use crate::tls::MinVersion;
use crate::tls::certificate;
use crate::tls::client::{ClientTls, Connector, Parting, Protocol, Trust};

/// After a failure it is asked again after this, then after twice as long, and so on up to
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

const AGENT: &str = concat!("trylist/", env!("CARGO_PKG_VERSION"), " (discovery)");

/// A server that says who the servers are.
pub(super) struct HttpSource {
    spec: Arc<SourceSpec>,
    resolver: ResolverConfig,
    /// Where it is, and the task that looks that up.
    addresses: Option<(Addresses, Option<JoinHandle<()>>)>,
    name_servers: DiskWork<Result<Resolver, String>>,
    connector: Option<Connector>,
    token: DiskWork<Result<Vec<u8>, String>>,
    issuers: DiskWork<Result<Connector, String>>,
    etag: Option<HeaderValue>,
    next_at: Instant,
    pause: Duration,
}

impl HttpSource {
    pub(super) fn new(spec: &Arc<SourceSpec>, resolver: &ResolverConfig) -> Self {
        Self {
            spec: Arc::clone(spec),
            resolver: resolver.clone(),
            addresses: None,
            name_servers: DiskWork::NONE,
            connector: None,
            token: DiskWork::NONE,
            issuers: DiskWork::NONE,
            etag: None,
            next_at: Instant::now(),
            pause: FIRST_PAUSE,
        }
    }

    async fn ask(&mut self) -> Result<Option<SourceAnswer>, String> {
        let spec = Arc::clone(&self.spec);
        let SourceKind::Http { url, token_file, ca, timeout, .. } = &spec.kind else {
            return Err("is no source over HTTP".to_owned());
        };
        let uri: Uri = url.parse().map_err(|_| "is no URL")?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let is_secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let request = self.request(&uri, token_file.as_deref()).await?;
        if is_secure && self.connector.is_none() {
            let ca = ca.clone();
            self.connector = Some(self.issuers.result(move || connector(ca.as_deref())).await??);
        }
        self.find(&host, port).await?;
        let name = ServerName::try_from(host);
        let tls = match (&self.connector, &name) {
            (Some(connector), Ok(name)) if is_secure => Some((connector, name)),
            _ if is_secure => return Err("no certificate can be valid for its host".to_owned()),
            _ => None,
        };
        let dial = Dial {
            addresses: self.addresses.as_ref().map(|(addresses, _)| addresses).ok_or("has no address")?,
            port: None,
            tls,
            preface: &[],
            patience: *timeout,
            fair: *timeout,
        };
        let answer = match dial.connect().await.map_err(|error| error.text)? {
            Dialled::Plain(stream) => exchange(stream, request).await,
            Dialled::Secured(stream) => exchange(Parting(stream), request).await,
        }?;
        self.take(answer)
    }

    async fn request(
        &mut self,
        uri: &Uri,
        token_file: Option<&std::path::Path>,
    ) -> Result<Request<Empty<Bytes>>, String> {
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
        let mut request = Request::get(path)
            .header(HOST, authority)
            .header(USER_AGENT, AGENT)
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        if let Some(etag) = &self.etag {
            request = request.header(IF_NONE_MATCH, etag);
        }
        if let Some(file) = token_file {
            let shown = file.display();
            let path = file.to_owned();
            let token = self.token.result(move || bytes_of(&path)).await?;
            let token = token.map_err(|why| format!("token_file {shown}: {why}"))?;
            let token = token.trim_ascii();
            let value = [b"Bearer ", token].concat();
            let mut value = HeaderValue::from_bytes(&value)
                .ok()
                .filter(|_| !token.is_empty())
                .ok_or_else(|| format!("token_file {shown}: holds no token"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Empty::new()).map_err(|error| format!("cannot be asked: {error}"))
    }

    /// Looks up where it is from now on.
    async fn find(&mut self, host: &str, port: u16) -> Result<(), String> {
        if self.addresses.is_none() {
            let found = match host.parse() {
                Ok(ip) => (Addresses::fixed(std::net::SocketAddr::new(ip, port)), None),
                Err(_) => {
                    let rules = self.resolver.clone();
                    let resolver = self.name_servers.result(move || resolver(&rules)).await??;
                    let addresses = Addresses::named(host, port);
                    let name = addresses.name().map(Arc::clone);
                    let task = name.map(|name| tokio::spawn(name.keep_resolved(Arc::new(resolver))));
                    (addresses, task)
                }
            };
            self.addresses = Some(found);
        }
        Ok(())
    }

    fn take(&mut self, (head, body): (Response<()>, Vec<u8>)) -> Result<Option<SourceAnswer>, String> {
        match head.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if self.etag.is_some() => return Ok(None),
            status if status.is_redirection() => {
                let to = head.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("elsewhere");
                return Err(format!(
                    "answers {}: it leads to {to} (write the URL that is meant)",
                    status.as_u16()
                ));
            }
            status => return Err(format!("answers {}", status.as_u16())),
        }
        // Nothing of an answer that is refused is remembered.
        self.etag = None;
        let (answer, n_twins) = read(&body, AnswerForm::Json, &self.spec)?;
        if n_twins > 0 {
            tracing::warn!(
                "source \"{}\": {n_twins} servers are left out: they are named before",
                self.spec.name
            );
        }
        self.etag = head.headers().get(ETAG).cloned();
        Ok(Some(answer))
    }
}

impl Drop for HttpSource {
    fn drop(&mut self) {
        if let Some((_, Some(task))) = &self.addresses {
            task.abort();
        }
    }
}

impl DiscoverySource for HttpSource {
    async fn next(&mut self) -> Result<Option<SourceAnswer>, String> {
        sleep_until(self.next_at).await;
        let (interval, most, url) = match &self.spec.kind {
            SourceKind::Http { interval, timeout, url, .. } => (*interval, *timeout, url.clone()),
            _ => return Err("is no source over HTTP".to_owned()),
        };
        let begun = Instant::now();
        let result = match timeout(most, self.ask()).await {
            Ok(result) => result,
            Err(_) => Err(format!("no whole answer within {most:?}")),
        };
        match result {
            Ok(answer) => {
                (self.next_at, self.pause) = (begun + interval, FIRST_PAUSE);
                Ok(answer)
            }
            Err(why) => {
                // Issuers may be others by now.
                self.connector = None;
                let pause = self.pause;
                (self.next_at, self.pause) = (Instant::now() + pause, (pause * 2).min(LONGEST_PAUSE));
                Err(format!("{url}: {why}"))
            }
        }
    }
}

fn connector(ca: Option<&std::path::Path>) -> Result<Connector, String> {
    let issuers = match ca {
        Some(ca) => bytes_of(ca)
            .and_then(|pem| certificate::certificates(&pem))
            .map_err(|why| format!("ca {}: {why}", ca.display()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    let tls = ClientTls::new(Trust::Issuers(issuers), None, MinVersion::Tls12, Protocol::Http1);
    tls.map(|tls| tls.checker(false)).map_err(|why| format!("trusted issuers: {why}"))
}

/// Makes the request over this connection, which is not used afterwards.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(Response<()>, Vec<u8>), String> {
    let words = |error: hyper::Error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(words)?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(words)?;
        let (head, body) = response.into_parts();
        Ok((Response::from_parts(head, ()), whole(body, words).await?))
    };
    drive(connection, answered, words).await
}

async fn whole(mut body: Incoming, words: impl Fn(hyper::Error) -> String) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(&words)?.into_data() else { continue };
        if bytes.len() + data.len() > MOST_BYTES {
            return Err(too_long());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
