//! A server and a client of gRPC, as far as a proxy is concerned: HTTP/2 streams that go both ways at once and end in
//! trailers. By the `h2` crate, and not by the proxy's own code.

use std::future::Future;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use crate::DEADLINE;

/// Sends back every message as it comes, and ends with `grpc-status: 0` and the number of bytes. Stopped when dropped.
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One call under way.
#[derive(Debug)]
pub struct Call {
    send: SendStream<Bytes>,
    response: client::ResponseFuture,
}

impl Echo {
    /// On a free port.
    pub fn start() -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// As configurations have it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

async fn accept(listener: TcpListener) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(mut connection) = server::handshake(socket).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(echo(request, respond));
            }
        });
    }
}

async fn echo(request: Request<RecvStream>, mut respond: server::SendResponse<Bytes>) {
    let takes_trailers = request.headers().get("te").is_some_and(|te| te == "trailers");
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut send) = respond.send_response(head, false) else { return };
    let mut body = request.into_body();
    let mut n_bytes = 0;
    while let Some(Ok(data)) = body.data().await {
        n_bytes += data.len();
        let _ = body.flow_control().release_capacity(data.len());
        if send.send_data(data, false).is_err() {
            return;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", if takes_trailers { "0" } else { "13" }.parse().unwrap());
    trailers.insert("x-bytes", n_bytes.to_string().parse().unwrap());
    let _ = send.send_trailers(trailers);
}

/// Runs a client on a connection to this address, within the deadline.
///
/// # Panics
/// At the deadline.
pub fn with_client<F: Future<Output = ()>>(
    address: SocketAddr,
    run: impl FnOnce(client::SendRequest<Bytes>) -> F,
) {
    runtime().block_on(async {
        let socket = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = client::handshake(socket).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let within: Duration = DEADLINE;
        tokio::time::timeout(within, run(sender)).await.expect("a client that ends within the deadline");
    });
}

/// Begins a call.
pub async fn call(sender: &mut client::SendRequest<Bytes>) -> Call {
    let mut sender = sender.clone().ready().await.unwrap();
    let head = Request::post("http://test/echo.Echo/Both")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, send) = sender.send_request(head, false).unwrap();
    Call { send, response }
}

impl Call {
    /// Sends a message; the last one ends the client's half.
    pub fn send(&mut self, message: &str, is_last: bool) {
        self.send.send_data(Bytes::copy_from_slice(message.as_bytes()), is_last).unwrap();
    }

    /// The response's head, and what comes after it.
    pub async fn response(self) -> (http::response::Parts, RecvStream, SendStream<Bytes>) {
        let (parts, body) = self.response.await.unwrap().into_parts();
        (parts, body, self.send)
    }
}

/// The next message.
pub async fn message(body: &mut RecvStream) -> String {
    let data = body.data().await.expect("a message").unwrap();
    let _ = body.flow_control().release_capacity(data.len());
    String::from_utf8_lossy(&data).into_owned()
}

/// The bytes up to the end, and the trailers.
pub async fn rest(body: &mut RecvStream) -> (String, HeaderMap) {
    let mut text = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        text.extend(data);
    }
    (String::from_utf8_lossy(&text).into_owned(), body.trailers().await.unwrap().unwrap_or_default())
}
