//! Headers of the PROXY protocol.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::pieces::{Draws, pieces};
use crate::net::proxy_protocol::{ProxyVersion, read};

/// Longer than any header.
const MAX_BYTES: usize = 5000;

/// A header that comes in pieces is read as one that comes whole, with not a byte more; one that is written is read again.
pub fn proxy_header(data: &[u8]) {
    let data = &data[..data.len().min(MAX_BYTES)];
    let whole = read_of(vec![data]);
    assert_eq!(whole, read_of(pieces(data)), "the pieces make a difference");
    assert!(data.ends_with(&whole.1) || whole.0.is_err(), "what follows the header is changed");
    let mut draws = Draws::from(data);
    let mut address = |is_v4: bool| {
        let ip = Ipv6Addr::from(u128::from(draws.next()) << 64 | u128::from(draws.next()));
        let ip = if is_v4 { [ip.octets()[0], 1, 2, ip.octets()[3]].into() } else { ip.into() };
        SocketAddr::new(ip, draws.next() as u16)
    };
    for is_v4 in [true, false] {
        let (client, local) = (address(is_v4), address(is_v4));
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let header = version.header(Some(client), Some(local));
            let text = [&header[..], &data[..data.len().min(16)]].concat();
            let (named, rest) = read_of(pieces(&text));
            assert_eq!((named, &rest[..]), (Ok(Some(client)), &text[header.len()..]));
        }
    }
}

/// The result for a connection that sends these bytes and ends: the address or the error, and the bytes that are left.
fn read_of(pieces: Vec<&[u8]>) -> (Result<Option<SocketAddr>, String>, Vec<u8>) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let (mut client, server) = UnixStream::pair().expect("two sockets");
            server.set_nonblocking(true).expect("a socket");
            let mut server =
                TcpStream::from_std(OwnedFd::from(server).into()).expect("a stream socket on a runtime");
            let send = async move {
                for piece in pieces {
                    client.write_all(piece).expect("the socket takes it");
                    tokio::task::yield_now().await;
                }
            };
            let receive = async {
                let named = read(&mut server).await.map_err(|e| e.to_string());
                let mut rest = Vec::new();
                server.read_to_end(&mut rest).await.expect("the socket is read to its end");
                (named, rest)
            };
            tokio::join!(send, receive).1
        })
    })
}
