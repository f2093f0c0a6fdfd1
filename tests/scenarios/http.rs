//! HTTP as clients and servers speak it: bodies, framing, both versions, TLS, tunnels, and what is refused.

mod bodies;
mod framing;
mod grpc;
mod grpc_go;
mod http2;
mod http2_attacks;
mod limits;
mod pipelining;
pub(crate) mod rubbish;
mod slow_clients;
mod tls;
pub(crate) mod tonic;
mod tunnels;
mod unix_sockets;
