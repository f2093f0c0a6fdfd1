//! A gRPC check by the health protocol, `grpc.health.v1`: <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>.
//!
//! Its two messages have one field each, so they are encoded here by hand.

use ::http::header::{CONTENT_TYPE, TE, USER_AGENT};
use ::http::{HeaderMap, Request, StatusCode};
use bytes::{BufMut, Bytes};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::CheckError;
use super::http::AGENT;
use crate::http::drive::drive;

/// An answer is seven bytes.
const ANSWER_BYTES: usize = 1024;

/// `HealthCheckResponse.ServingStatus`.
const SERVING: u64 = 1;

/// Makes the check over this connection, which is not used afterwards.
pub(super) async fn check(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: &str,
    (scheme, authority): (&str, &str),
) -> Result<(), CheckError> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let request = Request::post(format!("{scheme}://{authority}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(Full::new(question(service)))
        .map_err(|e| CheckError::Answer(format!("cannot ask: {e}")))?;
    let answered = async {
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(CheckError::Answer(format!("status {}", response.status().as_u16())));
        }
        // An error may come without a message; its status is then in the head.
        status(response.headers(), false)?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|e| CheckError::Answer(format!("bad answer: {e}")))?;
        status(body.trailers().unwrap_or(&HeaderMap::new()), true)?;
        match serving_status(&body.to_bytes()) {
            Some(SERVING) => Ok(()),
            Some(0) => Err(CheckError::Answer("the service is UNKNOWN".into())),
            Some(2) => Err(CheckError::Answer("the service is NOT_SERVING".into())),
            Some(3) => Err(CheckError::Answer("the service is SERVICE_UNKNOWN".into())),
            Some(other) => Err(CheckError::Answer(format!("the service is in status {other}"))),
            None => Err(CheckError::Answer("the answer is no HealthCheckResponse".into())),
        }
    };
    drive(connection, answered, CheckError::from).await
}

/// Whether the call itself succeeded.
fn status(headers: &HeaderMap, must_be_there: bool) -> Result<(), CheckError> {
    let message = || headers.get("grpc-message").and_then(|value| value.to_str().ok()).unwrap_or_default();
    match headers.get("grpc-status") {
        Some(status) if status == "0" => Ok(()),
        None if !must_be_there => Ok(()),
        None => Err(CheckError::Answer("no grpc-status".into())),
        Some(status) => {
            let status = String::from_utf8_lossy(status.as_bytes());
            Err(CheckError::Answer(format!("grpc-status {status} {}", message()).trim_end().into()))
        }
    }
}

/// `HealthCheckRequest { string service = 1; }` as a gRPC message: no compression, length, and the message.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | LENGTH_DELIMITED);
        let mut n = service.len();
        while n >= 0x80 {
            message.push(n as u8 | 0x80);
            n >>= 7;
        }
        message.push(n as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = Vec::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message);
    framed.into()
}

/// `status` of `HealthCheckResponse { ServingStatus status = 1; }`, which a message leaves out where it is 0.
fn serving_status(framed: &[u8]) -> Option<u64> {
    let ([0, length @ ..], mut message) = framed.split_first_chunk::<5>()? else { return None };
    if message.len() != u32::from_be_bytes(*length) as usize {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match ((key >> 3), (key & 7) as u8) {
            (1, VARINT) => status = varint(&mut message)?,
            // Fields that the protocol may get later.
            (_, VARINT) => {
                varint(&mut message)?;
            }
            (_, FIXED_64) => message = message.get(8..)?,
            (_, LENGTH_DELIMITED) => {
                let n = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(n..)?;
            }
            (_, FIXED_32) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

// Wire types: https://protobuf.dev/programming-guides/encoding/
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const FIXED_32: u8 = 5;

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_as_protobuf_has_it() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], b"\0\0\0\0\x04\x0a\x02ab");
        let long = question(&"x".repeat(200));
        assert_eq!(&long[..8], [0, 0, 0, 0, 203, 0x0a, 200, 1]);
        assert_eq!(long.len(), 208);
    }

    #[test]
    fn reads_the_status_and_passes_over_what_it_does_not_know() {
        assert_eq!(serving_status(b"\0\0\0\0\0"), Some(0));
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x01"), Some(1));
        assert_eq!(serving_status(b"\0\0\0\0\x02\x08\x02"), Some(2));
        let more = b"\x12\x01x\x18\x80\x01\x25abcd\x29abcdefgh\x08\x01";
        let framed = [b"\0\0\0\0", &[more.len() as u8][..], more].concat();
        assert_eq!(serving_status(&framed), Some(1));
    }

    #[test]
    fn refuses_what_is_no_answer() {
        let wrong: [&[u8]; 9] = [
            b"",
            b"\0\0\0\0",
            // Compressed, though nobody offered it; too short; too long.
            b"\x01\0\0\0\x02\x08\x01",
            b"\0\0\0\0\x02\x08",
            b"\0\0\0\0\x01\x08\x01",
            // No value, an endless one, a length beyond the end, a wire type that is none.
            b"\0\0\0\0\x01\x08",
            b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\0\0\0\0\x02\x12\x05",
            b"\0\0\0\0\x01\x07",
        ];
        for bytes in wrong {
            assert_eq!(serving_status(bytes), None, "{bytes:?}");
        }
    }
}
