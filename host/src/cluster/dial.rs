//! A connection to a server, by whichever of its addresses takes one: for requests and for checks.
//!
//! One address of a name may be dead, or a whole family may lead nowhere. So `race` tries them as RFC 8305 (Happy Eyeballs)
//! says: one after the other, each without a long wait for the one before, and the first that answers wins. The result for
//! each address ([`Reach`](crate::cluster::names::Reach)) is kept. One that failed or was much slower is tried after the
//! others from then on, and first again now and then.
//!
//! ```text
//! 192.0.2.1   SYN ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ (nothing comes)      outpaced: behind the others for 5 s
//! 192.0.2.2            SYN ─► SYN-ACK ─► TLS ─► the connection
//!             │◄ 0.25 s ►│
//! ```

mod race;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lb_api::wire;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;

use crate::cluster::names::Addresses;
use crate::http::stream::Stream;
use crate::net::unix;
use crate::tls;
use crate::tls::client::Connector;

/// A connection that is to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dial<'a> {
    /// Where the server is.
    pub(crate) addresses: &'a Addresses,
    /// Another port than the addresses have.
    pub(crate) port: Option<u16>,
    /// For TLS: how, and the name that the server's certificate must be for.
    pub(crate) tls: Option<(&'a Connector, &'a ServerName<'static>)>,
    /// Sent first, such as a PROXY header. It fits into the socket's buffer.
    pub(crate) preface: &'a [u8],
    /// Time for everything: the look-up if the name never had an address, the connection, and the TLS handshake.
    pub(crate) patience: Duration,
    /// The same, as configured. An address that had less than its share of this is not blamed for being late.
    pub(crate) fair: Duration,
}

/// A connection, ready to be spoken over.
#[derive(Debug)]
pub(crate) enum Dialled {
    /// In clear text.
    Plain(TcpStream),
    /// Secured, the handshake done.
    Secured(Box<TlsStream<TcpStream>>),
}

/// Why a connection could not be made.
#[derive(Clone, Debug)]
pub(crate) struct ConnectError {
    /// One of [`wire`]'s `FAILURE_*`.
    pub(crate) kind: u32,
    /// `errno`, where there is one.
    pub(crate) os_error: Option<i32>,
    /// In words.
    pub(crate) text: String,
}

impl Dial<'_> {
    /// Makes the connection. With one address it costs a timer beside the connection itself.
    ///
    /// # Errors
    /// The name has no address, or no address took a connection in time.
    pub(crate) async fn connect(&self) -> Result<Dialled, ConnectError> {
        let until = Instant::now() + self.patience;
        let name = match self.addresses {
            Addresses::Fixed([address]) => return self.alone(*address, until).await,
            Addresses::Unix(path) => return Box::pin(self.unix(path)).await,
            Addresses::Named(name) => name,
        };
        let answer = timeout_at(until.into(), name.addresses()).await;
        let answer = answer
            .map_err(|_| unresolved(format_args!("look-up failed: no answer within {:?}", self.patience)))?;
        match answer.as_ref() {
            Ok(places) => match &**places {
                [place] => self.alone(place.address, until).await,
                places => Box::pin(self.race(places, until)).await,
            },
            Err(e) => Err(unresolved(format_args!("look-up failed: {e}"))),
        }
    }

    async fn alone(&self, address: SocketAddr, until: Instant) -> Result<Dialled, ConnectError> {
        let is_connected = AtomicBool::new(false);
        match timeout_at(until.into(), self.attempt(address, &is_connected)).await {
            Ok(result) => result,
            Err(_) => Err(self.late(&is_connected)),
        }
    }

    /// One address, for as long as it takes.
    async fn attempt(&self, address: SocketAddr, is_connected: &AtomicBool) -> Result<Dialled, ConnectError> {
        let address = SocketAddr::new(address.ip(), self.port.unwrap_or(address.port()));
        let mut stream = TcpStream::connect(address).await?;
        is_connected.store(true, Relaxed);
        // Only a hint to the kernel: a connection without it still works.
        let _ = stream.set_nodelay(true);
        if !self.preface.is_empty() {
            stream.write_all(self.preface).await?;
        }
        let Some((connector, name)) = self.tls else { return Ok(Dialled::Plain(stream)) };
        match Box::pin(connector.connect(name, stream)).await {
            Ok(stream) => Ok(Dialled::Secured(Box::new(stream))),
            Err(e) => Err(not_secured(&e)),
        }
    }

    async fn unix(&self, path: &Path) -> Result<Dialled, ConnectError> {
        let connected = tokio::time::timeout(self.patience, unix::connect(path)).await;
        let mut stream = connected.map_err(|_| timed_out(self.patience))??;
        if !self.preface.is_empty() {
            stream.write_all(self.preface).await?;
        }
        Ok(Dialled::Plain(stream))
    }

    /// The connection timed out, or the handshake that follows.
    fn late(&self, is_connected: &AtomicBool) -> ConnectError {
        if is_connected.load(Relaxed) {
            let text = format!("TLS handshake not complete within {:?}", self.patience);
            return ConnectError { kind: wire::FAILURE_CONNECT_TIMEOUT, os_error: None, text };
        }
        timed_out(self.patience)
    }
}

fn unresolved(why: impl fmt::Display) -> ConnectError {
    ConnectError { kind: wire::FAILURE_RESOLVE, os_error: None, text: why.to_string() }
}

pub(crate) fn timed_out(patience: Duration) -> ConnectError {
    ConnectError {
        kind: wire::FAILURE_CONNECT_TIMEOUT,
        os_error: None,
        text: format!("no connection within {patience:?}"),
    }
}

pub(crate) fn not_secured(e: &io::Error) -> ConnectError {
    let text = format!("TLS handshake failed: {}", tls::describe_io(e));
    ConnectError { kind: wire::FAILURE_TLS, os_error: e.raw_os_error(), text }
}

impl From<Dialled> for Stream {
    fn from(dialled: Dialled) -> Self {
        match dialled {
            Dialled::Plain(stream) => stream.into(),
            Dialled::Secured(stream) => Self::Tls(Box::new((*stream).into())),
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(e: io::Error) -> Self {
        use rustix::io::Errno;
        let os_error = e.raw_os_error();
        let kind = match os_error.map(Errno::from_raw_os_error) {
            // A shortage of the proxy itself.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
                wire::FAILURE_LOCAL
            }
            Some(Errno::TIMEDOUT) => wire::FAILURE_CONNECT_TIMEOUT,
            _ => wire::FAILURE_CONNECT,
        };
        let text = match e.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".into(),
            _ => e.to_string(),
        };
        Self { kind, os_error, text }
    }
}

#[cfg(test)]
mod tests;
