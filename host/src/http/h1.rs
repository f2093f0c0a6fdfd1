//! HTTP/1.1 framing for a proxy. Heads are parsed in place and written again line by line, bodies are relayed without being
//! buffered, and ambiguous framing is refused.
//!
//! A proxy needs a codec that owns nothing for each header, keeps the exact bytes of a refused head, and gives its memory back
//! while a connection is idle. So `httparse` parses heads into [`head`]'s spans of the read [`buffer`], and [`body`] decodes
//! chunks in place.

pub mod buffer;
pub mod head;
pub mod body;
