//! Requests and responses with bytes changed, lost and added at random places: whatever that turns out to be, nothing
//! panics, and nothing is left behind.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

use tests::DEADLINE;
use tests::origin::Origin;
use tests::proxy::Proxy;

const THREADS: u64 = 8;
const CONNECTIONS: usize = 40;

const REQUESTS: [&str; 7] = [
    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HEAD http://y/z?q HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, x-a\r\nX-A: 1\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "PUT /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
    "OPTIONS * HTTP/1.1\r\nHost: x\r\nMax-Forwards: 1\r\n\r\n",
];

const RESPONSES: [&str; 8] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "HTTP/1.0 200 OK\r\n\r\nuntil it closes",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
    "HTTP/1.1 101 Switching Protocols\r\n\r\n",
];

/// A sequence of its own for each seed (SplitMix64), so that a failure can be repeated.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below this.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// One of these, in half of all cases with up to four bytes changed, lost or added, and now and then cut short.
    fn mangled(&mut self, texts: &[&str]) -> Vec<u8> {
        const SUSPECTS: &[u8] = b"\r\n :;,\0\xff09azAZ%/?#";
        let mut text = texts[self.below(texts.len())].as_bytes().to_vec();
        if self.below(2) == 0 {
            for _ in 0..=self.below(4) {
                let at = self.below(text.len());
                let byte = SUSPECTS[self.below(SUSPECTS.len())];
                match self.below(3) {
                    0 => text[at] = byte,
                    1 => drop(text.remove(at)),
                    _ => text.insert(at, byte),
                }
            }
        }
        if self.below(5) == 0 {
            text.truncate(self.below(text.len()));
        }
        text
    }
}

/// How many threads of a worker have panicked in this process.
fn panics_of_workers() -> &'static AtomicUsize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().name().is_some_and(|name| name.starts_with("worker-")) {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            hook(panic);
        }));
    });
    &PANICS
}

#[test]
fn leaves_nothing_behind() {
    let panics = panics_of_workers();
    let origins = [1, 2].map(|seed| {
        Origin::serving(move |conn| {
            let mut dice = Dice(seed << 32 | conn.number as u64);
            // Some answer before they have read, and some close afterwards.
            while (dice.below(8) == 0 || conn.request().is_some())
                && conn.send(dice.mangled(&RESPONSES))
                && dice.below(5) > 0
            {}
        })
    });
    let proxy = Proxy::over(&origins)
        .module("round_robin")
        .threads(2)
        .in_cluster("response_timeout = \"200ms\"\nbody_timeout = \"200ms\"")
        .tables("[timeouts]\nrequest_head = \"200ms\"\nbody = \"200ms\"\nkeepalive = \"200ms\"")
        .start();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let address = proxy.address();
            scope.spawn(move || {
                for connection in 0..CONNECTIONS {
                    let mut dice = Dice(thread << 16 | connection as u64);
                    let mut client = TcpStream::connect(address).unwrap();
                    client.set_read_timeout(Some(DEADLINE)).unwrap();
                    for _ in 0..=dice.below(3) {
                        // The proxy may have refused and closed by now.
                        let _ = client.write_all(&dice.mangled(&REQUESTS));
                    }
                    let _ = client.shutdown(Shutdown::Write);
                    // Some leave without waiting for anything.
                    if dice.below(4) > 0
                        && let Err(e) = client.read_to_end(&mut Vec::new())
                    {
                        assert!(e.kind() != std::io::ErrorKind::WouldBlock, "no end: {thread} {connection}");
                    }
                }
            });
        }
    });
    proxy.wait_for_metric(&format!("trylist_open_connections{{listener=\"{}\"}}", proxy.address()), 0.0);
    for origin in &origins {
        proxy.wait_for_metric(
            &format!("trylist_endpoint_in_flight{{cluster=\"%\",endpoint=\"{}\"}}", origin.url()),
            0.0,
        );
    }
    let calls = |call| {
        proxy.metric(&format!(
            "trylist_module_calls_total{{cluster=\"%\",module=\"round_robin\",call=\"{call}\"}}"
        ))
    };
    assert!(calls("load_balance") > 100.0, "most of it was refused: {}", calls("load_balance"));
    assert_eq!((calls("finish"), calls("drop")), (calls("load_balance"), calls("load_balance")));
    assert_eq!(panics.load(Ordering::SeqCst), 0);
}
