//! Active health checks, made at intervals on the background runtime.
//!
//! A server is up until its first check, which decides alone. From then on `fall` consecutive failures make it down, and `rise`
//! consecutive passes make it up. (As in HAProxy: no request waits at the start, and a dead server is known after one check.)
//! Results of earlier workers are taken over, so that a reload starts nothing again.
//!
//! Every probe speaks over any stream, so checks over TLS need no code of their own.

mod grpc;
mod http;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lb_api::wire;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::cluster::dial::{Dial, Dialled};
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::HealthSource;
use crate::cluster::random::{Random, fraction};
use crate::cluster::{Cluster, Clusters};
use crate::config::{HealthCheck, Probe};
use crate::net::proxy_protocol::ProxyVersion;
use crate::tls::client::{Connector, Parting};

/// An interval is up to one part in this longer or shorter, so that the checks of many proxies spread.
const JITTER: f64 = 10.0;
/// First checks are spread over no more than this, because nothing is known before.
const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// When an endpoint is checked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstCheck {
    /// At once: it gets no request before.
    AtOnce,
    /// Within a second, not all endpoints together.
    Spread,
}

/// Why a check failed.
#[derive(Debug)]
enum CheckError {
    /// No connection.
    Connect(String),
    /// The connection failed or ended.
    Io(io::Error),
    /// It speaks another protocol, or violates this one.
    Protocol(hyper::Error),
    /// It answered something else than expected.
    Answer(String),
    /// It took longer than this.
    TimedOut(Duration),
}

/// Checks one endpoint for ever.
pub(crate) async fn keep_checked(
    clusters: Clusters,
    cluster: usize,
    endpoint: Arc<Endpoint>,
    first: FirstCheck,
) {
    let cluster = &clusters[cluster];
    let Some(check) = &cluster.config.health_check else { return };
    let speaks_h2 = matches!(check.probe, Probe::Grpc { .. });
    let tls = cluster.config.tls.as_ref().map(|tls| tls.checker(speaks_h2));
    let random = Random::new();
    let spread = check.interval.min(FIRST_WITHIN).mul_f64(fraction(random.next()));
    // A separate port for checks expects no PROXY header.
    let version = cluster.config.send_proxy_protocol.filter(|_| check.port.is_none());
    let preface = version.map(ProxyVersion::own_header).unwrap_or_default();
    if first == FirstCheck::Spread {
        tokio::time::sleep(spread).await;
    }
    loop {
        let result = run(check, &endpoint, &preface, tls.as_ref()).await;
        judge(cluster, &endpoint, check, &result);
        let jitter = 1.0 + (fraction(random.next()) * 2.0 - 1.0) / JITTER;
        let pause = tokio::time::sleep(check.interval.mul_f64(jitter));
        tokio::select! {
            () = pause => {}
            () = endpoint.health.check_now.notified() => {}
        }
    }
}

/// Counts a check's result, and marks the endpoint up or down.
fn judge(cluster: &Cluster, endpoint: &Endpoint, check: &HealthCheck, result: &Result<(), CheckError>) {
    let name = &cluster.config.name;
    let streak = &endpoint.health.checks;
    let is_up = streak.count(result.is_ok(), check);
    if let Some(outlier) = &cluster.outlier {
        outlier.checked(endpoint, result.is_ok());
    }
    if let Err(e) = result {
        tracing::debug!(
            "cluster \"{name}\": server \"{}\": check failed ({}: {e})",
            endpoint.url,
            check.probe
        );
    }
    let Some(is_up) = is_up else { return };
    let (n, url, probe) = (streak.get().unsigned_abs(), &endpoint.url, &check.probe);
    let n = if n == 1 { "1 check".into() } else { format!("{n} consecutive checks") };
    if let Err(e) = result {
        endpoint.health.told.because(HealthSource::Check, &format_args!("{n} failed ({probe}: {e})"));
    }
    if !cluster.set_source(endpoint, HealthSource::Check, !is_up) {
        return;
    }
    match result {
        Ok(()) => {
            tracing::info!("cluster \"{name}\": server \"{url}\" is up: {n} passed ({probe})");
            // Its ejection is older than this.
            if let Some(outlier) = &cluster.outlier {
                outlier.pardon(&endpoint.health.traffic);
            }
        }
        Err(e) => tracing::warn!("cluster \"{name}\": server \"{url}\" is down: {n} failed ({probe}: {e})"),
    }
}

/// One check, over TLS if the endpoint has a name for that. `preface` is sent first.
async fn run(
    check: &HealthCheck,
    endpoint: &Endpoint,
    preface: &[u8],
    tls: Option<&Connector>,
) -> Result<(), CheckError> {
    let checked = async {
        let tls = tls.zip(endpoint.check_name.as_ref());
        let dial = Dial {
            addresses: &endpoint.addresses,
            port: check.port,
            tls,
            preface,
            patience: check.timeout,
            fair: check.timeout,
        };
        match dial.connect().await {
            Ok(Dialled::Plain(stream)) => ask(check, endpoint, "http", stream).await,
            Ok(Dialled::Secured(stream)) => ask(check, endpoint, "https", Parting(stream)).await,
            Err(e) if e.kind == wire::FAILURE_CONNECT_TIMEOUT => Err(CheckError::TimedOut(check.timeout)),
            Err(e) => Err(CheckError::Connect(e.text)),
        }
    };
    match tokio::time::timeout(check.timeout, checked).await {
        Ok(result) => result,
        Err(_) => Err(CheckError::TimedOut(check.timeout)),
    }
}

async fn ask(
    check: &HealthCheck,
    endpoint: &Endpoint,
    scheme: &str,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<(), CheckError> {
    match &check.probe {
        Probe::Tcp => Ok(()),
        Probe::Http(probe) => http::check(stream, probe, &endpoint.authority).await,
        Probe::Grpc { service } => grpc::check(stream, service, (scheme, &endpoint.authority)).await,
    }
}

impl From<io::Error> for CheckError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<hyper::Error> for CheckError {
    fn from(e: hyper::Error) -> Self {
        Self::Protocol(e)
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(text) | Self::Answer(text) => f.write_str(text),
            Self::Io(e) => e.fmt(f),
            Self::Protocol(e) => match std::error::Error::source(e) {
                Some(source) => write!(f, "{e}: {source}"),
                None => e.fmt(f),
            },
            Self::TimedOut(time) => write!(f, "no answer within {time:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
