//! Long lives: downloads, streams of gRPC and WebSockets that outlive many publications, and requests that retry
//! and wait while all servers are replaced.
//!
//! `TRYLIST_PUBLICATIONS=1000` has them live through that many, with a download of 1 GiB; `TRYLIST_TUNNELS=1000` opens as many
//! WebSockets in `changes::tunnels_outlive_the_snapshots_that_they_began_with`.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use tests::origin::Origin;
use tests::site::Site;
use tests::stream::{End, Message};
use tests::{DEADLINE, eventually};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};
use trylist::process::control::ServerOrder::{Add, Remove, Weight};

use super::{echo, lives, long_or, order, order_in, over, tunnel};
use crate::http::tonic::{Text, client, path, runtime, serve};

const BLOCK: usize = 1 << 20;

/// The block of this number of a download.
fn block(number: usize) -> Vec<u8> {
    let mut block = vec![b'x'; BLOCK];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

/// Answers `/tunnel` by switching to an echo, and all else by a download of so many blocks, as fast as they are taken.
fn serving_blocks(n_blocks: usize) -> Origin {
    Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            if request.line().contains("/tunnel") {
                return echo(conn);
            }
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", n_blocks * BLOCK));
            if !(0..n_blocks).all(|number| conn.send(block(number))) {
                return;
            }
        }
    })
}

/// A download that is read block by block.
struct Download {
    socket: TcpStream,
    n_read: usize,
}

impl Download {
    fn begin(site: &Site) -> Self {
        let mut socket = TcpStream::connect(site.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.write_all(b"GET /download HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
        Self { socket, n_read: 0 }
    }

    fn goes_on(&mut self) {
        let mut read = vec![0; BLOCK];
        self.socket.read_exact(&mut read).unwrap();
        assert!(read == block(self.n_read), "block {}", self.n_read);
        self.n_read += 1;
    }
}

/// A stream of gRPC that goes both ways.
struct Talk {
    sender: mpsc::Sender<String>,
    answers: Streaming<String>,
}

impl Talk {
    fn begin(runtime: &Runtime, site: &Site) -> Self {
        runtime.block_on(async {
            let (sender, receiver) = mpsc::channel(1);
            let request = Request::new(ReceiverStream::new(receiver));
            let mut client = client(site.address()).await;
            let answers = client.streaming(request, path("Talk"), Text).await.unwrap().into_inner();
            Self { sender, answers }
        })
    }

    fn goes_on(&mut self, runtime: &Runtime) {
        runtime.block_on(async {
            self.sender.send("alive".to_owned()).await.unwrap();
            assert_eq!(self.answers.message().await.unwrap(), Some("alive?".to_owned()));
        });
    }

    fn ends(mut self, runtime: &Runtime) {
        runtime.block_on(async {
            self.sender.send("enough".to_owned()).await.unwrap();
            assert_eq!(self.answers.message().await.unwrap_err().code(), Code::ResourceExhausted);
        });
    }
}

/// On a server that stays, and on one that left before all the publications.
#[test]
fn downloads_streams_and_websockets_live_through_many_publications() {
    let n_publications = long_or("TRYLIST_PUBLICATIONS", 60);
    let n_blocks = n_publications + 24;
    let origins = [serving_blocks(n_blocks), serving_blocks(n_blocks)];
    let runtime = runtime();
    let people = [(); 2].map(|()| {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(serve(listener));
        url
    });
    let grpc = format!(
        "[[cluster]]\nname = \"grpc\"\nmodule = \"round_robin\"\nservers = [{:?}]\nsettle = \"0s\"\nprotocol = \"h2\"\n[[route]]\n\
         path = \"/test.People/\"\ncluster = \"grpc\"",
        people[0]
    );
    let builder = over(&origins[..1]).listener("h2 = true").route("path = \"/\"").tables(&grpc);
    let site = Site::run(&builder);
    let worker = site.worker();
    let begin = || (Download::begin(&site), tunnel(&site, "/tunnel"), Talk::begin(&runtime, &site));
    let on_one_that_leaves = begin();
    for (cluster, [old, new]) in [("app", [origins[0].url(), origins[1].url()]), ("grpc", people.clone())] {
        order_in(&site, cluster, &new, Add);
        order_in(&site, cluster, &old, Remove);
    }
    let mut all = [on_one_that_leaves, begin()];
    for n in 0..n_publications {
        let weight = Weight((n % 100) as u16 + 2);
        order(&site, &origins[1].url(), weight);
        order_in(&site, "grpc", &people[1], weight);
        for (download, tunnel, talk) in &mut all {
            download.goes_on();
            lives(tunnel);
            talk.goes_on(&runtime);
        }
    }
    for (mut download, mut tunnel, talk) in all {
        while download.n_read < n_blocks {
            download.goes_on();
        }
        assert_eq!(tunnel.end_sending().end(), End::Eof);
        talk.ends(&runtime);
    }
    assert_eq!(origins.each_ref().map(|origin| origin.requests().len()), [2, 2]);
    assert_eq!((site.generation(), site.worker()), (1, worker));
}

/// Answers half of the requests 503 at their first try, and everything else with its name.
fn failing_first(name: &'static str, seen: &Arc<Mutex<HashSet<String>>>) -> Origin {
    let seen = Arc::clone(seen);
    Origin::serving(move |conn| {
        while let Some(request) = conn.request() {
            let id = number(&request).to_owned();
            let is_retried = id.ends_with(['0', '2', '4', '6', '8']);
            let is_new = seen.lock().unwrap().insert(id);
            let reply = match is_new && is_retried {
                true => "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
                false => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()),
            };
            conn.send(reply);
        }
    })
}

fn number(request: &Message) -> &str {
    request.header("x-number").unwrap()
}

/// There are more requests than the servers of the file have room for: those that fail are retried after a pause, most wait in
/// the queue.
#[test]
fn all_servers_are_replaced_while_requests_retry_back_off_and_wait() {
    const CLIENTS: usize = 8;
    let seen = Arc::default();
    let origins = ["a", "b", "c", "d"].map(|name| failing_first(name, &seen));
    let (odd, even) = origins.split_at(2);
    let retry =
        "path = \"/\"\nretry = { on = [\"503\"], backoff = \"5ms\", budget = { percent = 100, min = 100 } }";
    let builder = over(odd).each_server("max_requests = 1").route(retry);
    let site =
        Site::run(&builder.in_cluster("queue = 100\nqueue_timeout = \"20s\"\nejection = { failures = 0 }"));
    let (n_sent, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = site.connect();
                while !is_over.load(Ordering::SeqCst) {
                    let n = n_sent.fetch_add(1, Ordering::SeqCst);
                    let reply =
                        client.send(format!("GET / HTTP/1.1\r\nHost: test\r\nX-Number: {n}\r\n\r\n")).reply();
                    assert_eq!((reply.status(), reply.cut), (200, None), "request {n}");
                }
            });
        }
        for (old, new) in [(odd, even), (even, odd)].into_iter().cycle().take(8) {
            let enough = n_sent.load(Ordering::SeqCst) + 20;
            eventually("more requests", || (n_sent.load(Ordering::SeqCst) > enough).then_some(()));
            // Those of the file have room for one request, those that are added for all.
            new.iter().for_each(|origin| order(&site, &origin.url(), Add));
            old.iter().for_each(|origin| order(&site, &origin.url(), Remove));
        }
        is_over.store(true, Ordering::SeqCst);
    });
    let n_sent = n_sent.into_inner();
    let n_tries = origins.iter().map(|origin| origin.requests().len()).sum::<usize>();
    assert_eq!(n_tries, n_sent + n_sent.div_ceil(2), "each second one is tried twice, no other is");
    assert_eq!(site.generation(), 1);
}
