//! HTTP/1.1 framing for a proxy: heads are parsed in place and written out again line by line, bodies are relayed
//! without being held, and whatever could be framed in two ways is refused.
//!
//! A proxy needs other things of a codec than a client or a server does: nothing owned per header, the exact bytes of
//! what was refused, and memory that goes back while a connection is idle. So heads are parsed by `httparse` into
//! [`head`]'s spans of the read [`buffer`], and [`body`] decodes chunks where they lie.

pub mod buffer;
pub mod head;
pub mod body;
