//! gRPC as a library speaks it that knows nothing of proxies: a client and a server of tonic with the proxy between them, all
//! four kinds of calls, metadata, statuses.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::{Buf as _, BufMut as _};
use http::uri::PathAndQuery;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{StreamExt as _, iter};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status, Streaming, body, server};
use tower::service_fn;

/// Messages that are text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = src.copy_to_bytes(src.remaining());
        String::from_utf8(bytes.into()).map(Some).map_err(|e| Status::invalid_argument(e.to_string()))
    }
}

type Messages = ReceiverStream<Result<String, Status>>;

/// Greets, and says in its metadata what the client has said in its own.
async fn greet(request: Request<String>) -> Result<Response<String>, Status> {
    if request.get_ref() == "nobody" {
        return Err(Status::failed_precondition("there is no such person: 100 % sure"));
    }
    let tag = request.metadata().get("x-tag").cloned();
    let mut response = Response::new(format!("hello {}", request.into_inner()));
    if let Some(tag) = tag {
        response.metadata_mut().insert("x-tag", tag);
    }
    Ok(response)
}

async fn count(request: Request<String>) -> Result<Response<Messages>, Status> {
    let to: u32 = request.into_inner().parse().map_err(|_| Status::invalid_argument("no number"))?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for n in 1..=to {
            if sender.send(Ok(n.to_string())).await.is_err() {
                break;
            }
        }
    });
    Ok(Response::new(ReceiverStream::new(receiver)))
}

async fn join(request: Request<Streaming<String>>) -> Result<Response<String>, Status> {
    let (mut messages, mut joined) = (request.into_inner(), String::new());
    while let Some(message) = messages.message().await? {
        joined += &message;
    }
    Ok(Response::new(joined))
}

/// Answers each message before the next, and ends as it is told to.
async fn talk(request: Request<Streaming<String>>) -> Result<Response<Messages>, Status> {
    let (mut messages, (sender, receiver)) = (request.into_inner(), mpsc::channel(1));
    tokio::spawn(async move {
        while let Ok(Some(message)) = messages.message().await {
            let answer = match message.as_str() {
                "enough" => Err(Status::resource_exhausted("enough")),
                message => Ok(format!("{message}?")),
            };
            if sender.send(answer).await.is_err() {
                break;
            }
        }
    });
    Ok(Response::new(ReceiverStream::new(receiver)))
}

pub(crate) async fn serve(listener: TcpListener) {
    let service = service_fn(async |request: http::Request<body::Body>| {
        let mut grpc = server::Grpc::new(Text);
        Ok::<_, Infallible>(match request.uri().path() {
            "/test.People/Greet" => grpc.unary(service_fn(greet), request).await,
            "/test.People/Count" => grpc.server_streaming(service_fn(count), request).await,
            "/test.People/Join" => grpc.client_streaming(service_fn(join), request).await,
            "/test.People/Talk" => grpc.streaming(service_fn(talk), request).await,
            path => Status::unimplemented(path.to_owned()).into_http(),
        })
    });
    Server::builder().serve_with_incoming(service, TcpListenerStream::new(listener)).await.unwrap();
}

fn over(url: String) -> Builder {
    Proxy::over_urls([url]).listener("h2 = true").in_cluster("protocol = \"h2\"")
}

pub(crate) fn runtime() -> Runtime {
    runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Has a client do this with the server, through the proxy.
#[track_caller]
fn through_the_proxy(calls: impl AsyncFnOnce(Grpc<Channel>)) {
    let runtime = runtime();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(listener));
        let proxy = over(url).start();
        calls(client(proxy.address()).await).await;
    });
}

pub(crate) async fn client(address: SocketAddr) -> Grpc<Channel> {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = Grpc::new(channel);
    client.ready().await.unwrap();
    client
}

pub(crate) fn path(method: &str) -> PathAndQuery {
    format!("/test.People/{method}").parse().unwrap()
}

#[test]
fn a_message_is_answered_with_its_metadata() {
    through_the_proxy(async |mut client| {
        let mut request = Request::new("Ann".to_owned());
        request.metadata_mut().insert("x-tag", "seven".parse().unwrap());
        let response = client.unary(request, path("Greet"), Text).await.unwrap();
        assert_eq!(response.metadata().get("x-tag").unwrap(), "seven");
        assert_eq!(response.into_inner(), "hello Ann");
    });
}

#[test]
fn a_status_is_the_servers_own() {
    through_the_proxy(async |mut client| {
        let request = Request::new("nobody".to_owned());
        let status = client.unary(request, path("Greet"), Text).await.unwrap_err();
        let expected = (Code::FailedPrecondition, "there is no such person: 100 % sure");
        assert_eq!((status.code(), status.message()), expected);
        client.ready().await.unwrap();
        let request = Request::new("Ann".to_owned());
        let status = client.unary(request, path("Marry"), Text).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    });
}

#[test]
fn a_stream_of_the_server_is_whole() {
    through_the_proxy(async |mut client| {
        let request = Request::new("1000".to_owned());
        let response = client.server_streaming(request, path("Count"), Text).await.unwrap();
        let counted: Result<Vec<String>, Status> = response.into_inner().collect().await;
        assert_eq!(counted.unwrap(), (1..=1000).map(|n: u32| n.to_string()).collect::<Vec<_>>());
    });
}

#[test]
fn a_stream_of_the_client_is_whole() {
    through_the_proxy(async |mut client| {
        let messages = iter((0..200).map(|n: u32| format!("{n} {}\n", "x".repeat(2_000))));
        let response = client.client_streaming(Request::new(messages), path("Join"), Text).await.unwrap();
        let joined = response.into_inner();
        let heads: Vec<_> = joined.lines().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(heads, (0..200).map(|n: u32| n.to_string()).collect::<Vec<_>>());
        assert_eq!(joined.len(), heads.iter().map(|head| head.len() + 2_002).sum::<usize>());
    });
}

#[test]
fn both_sides_talk_in_turns_and_end_with_a_status() {
    through_the_proxy(async |mut client| {
        let (sender, receiver) = mpsc::channel(1);
        let request = Request::new(ReceiverStream::new(receiver));
        let mut answers = client.streaming(request, path("Talk"), Text).await.unwrap().into_inner();
        for n in 0..50 {
            sender.send(format!("message {n}")).await.unwrap();
            assert_eq!(answers.message().await.unwrap(), Some(format!("message {n}?")));
        }
        sender.send("enough".to_owned()).await.unwrap();
        let status = answers.message().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, "enough"));
    });
}

#[test]
fn where_no_server_is_left_the_client_hears_unavailable() {
    let proxy = over(Origin::dead().url()).start();
    runtime().block_on(async {
        let mut client = client(proxy.address()).await;
        let request = Request::new("Ann".to_owned());
        let status = client.unary(request, path("Greet"), Text).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    });
}
