//! An HTTP check: the response must have an expected status and, if configured, an expected text in its body.

use ::http::Request;
use ::http::header::{CONNECTION, HOST, USER_AGENT};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncWrite};

use super::CheckError;
use crate::config::HttpProbe;
use crate::http::drive::drive;

/// The expected text must be within so many bytes. A health page is a few lines.
const BODY_BYTES: usize = 64 * 1024;

/// The `User-Agent` of checks.
pub(super) const AGENT: &str = concat!("trylist/", env!("CARGO_PKG_VERSION"), " (health check)");

/// Makes the check over this connection, which is not used afterwards.
pub(super) async fn check(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    probe: &HttpProbe,
    authority: &str,
) -> Result<(), CheckError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(probe.method.as_str())
        .uri(&*probe.path)
        .header(HOST, probe.host.as_deref().unwrap_or(authority))
        .header(USER_AGENT, AGENT)
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| CheckError::Answer(format!("cannot ask: {e}")))?;
    let answered = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        if !probe.statuses.iter().any(|range| range.contains(&status.as_u16())) {
            return Err(CheckError::Answer(format!("status {}", status.as_u16())));
        }
        match &probe.body {
            Some(text) => expect(text, response.into_body()).await,
            None => Ok(()),
        }
    };
    drive(connection, answered, CheckError::from).await
}

/// Whether the text is in the body's first bytes.
async fn expect(text: &str, mut body: Incoming) -> Result<(), CheckError> {
    let (finder, mut seen) = (memmem::Finder::new(text), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        // The text may have begun in what came before.
        let from = seen.len().saturating_sub(text.len());
        let room = BODY_BYTES - seen.len();
        seen.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if finder.find(&seen[from..]).is_some() {
            return Ok(());
        }
        if bytes.len() > room || (seen.len() == BODY_BYTES && !body.is_end_stream()) {
            let text = format!("{text:?} is not in the first {} KiB of the body", BODY_BYTES / 1024);
            return Err(CheckError::Answer(text));
        }
    }
    match finder.find(&seen) {
        Some(_) => Ok(()),
        None => Err(CheckError::Answer(format!("{text:?} is not in the body"))),
    }
}
