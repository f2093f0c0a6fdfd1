//! The decisions of a request's head and the configuration, before a server is chosen.

use std::borrow::Cow;
use std::time::Duration;

use crate::cluster::sticky::Sticky;
use crate::config::{KeySource, Route};
use crate::http::h1::head::{Framing, Method, Name, RequestHead, is_authority, tokens};
use crate::http::headers::forwarded::Client;
use crate::http::path::normal_path;
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::request_id;
use crate::serve::route;
use crate::serve::thread::Thread;

/// The decisions of a request's head and the configuration.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) route: &'a Route,
    /// The route's cluster; without meaning where the request is answered without a server.
    pub(crate) cluster: usize,
    /// Host and port of the request.
    pub(crate) authority: Option<&'a [u8]>,
    /// In normal form.
    pub(crate) path: Cow<'a, [u8]>,
    /// Without the question mark.
    pub(crate) query: Option<&'a [u8]>,
    /// `Max-Forwards` of OPTIONS.
    pub(crate) max_forwards: Option<u32>,
    /// The client, as a trusted proxy names it.
    pub(crate) client: Client,
    /// Its ID in logs and headers, where that is configured.
    pub(crate) request_id: Option<Cow<'a, [u8]>>,
    /// The client asks for another protocol, and the route permits it.
    pub(crate) upgrade: bool,
    /// For the whole request, from its head to the last byte of its response.
    pub(crate) timeout: Option<Duration>,
}

/// The ID that a trusted proxy has given the request, or a new one.
#[cold]
fn request_id<'a>(thread: &Thread, head: &'a RequestHead, is_trusted: bool) -> Cow<'a, [u8]> {
    let given = thread.config.request_id.as_ref().filter(|_| is_trusted);
    match given.and_then(|name| head.field(name.as_bytes())).filter(|id| request_id::may_pass(id)) {
        Some(id) => Cow::Borrowed(id),
        None => Cow::Owned(request_id::new().to_vec()),
    }
}

/// Whether what is asked for may be spoken through a tunnel. HTTP may not: whoever spoke it there would get past all that is
/// decided for each request; nor may what would hide it.
#[cold]
fn asks_for_a_tunnel(head: &RequestHead) -> bool {
    let fields = || head.fields.iter().filter(|field| field.kind == Name::Upgrade);
    !fields().flat_map(|field| tokens(head.text(field.value))).any(|protocol| {
        let name = protocol.split(|&b| b == b'/').next().unwrap_or(protocol);
        [&b"h2c"[..], b"h2", b"http", b"tls"].iter().any(|refused| name.eq_ignore_ascii_case(refused))
    })
}

/// Authority, path and query of a target (RFC 9112 section 3.2). The authority of a target in absolute form counts more
/// than `Host`.
type SplitTarget<'a> = (Option<&'a [u8]>, &'a [u8], Option<&'a [u8]>);

fn split_target<'a>(
    target: &'a [u8],
    method: Method,
    host: Option<&'a [u8]>,
) -> Result<SplitTarget<'a>, Error> {
    let (authority, rest) = match target {
        [b'/', ..] => (host, target),
        b"*" if method == Method::Options => return Ok((host, target, None)),
        _ => {
            let lower = target.get(..8).unwrap_or(target).to_ascii_lowercase();
            let skip = match &lower[..] {
                [b'h', b't', b't', b'p', b':', b'/', b'/', ..] => 7,
                b"https://" => 8,
                _ => return Err(Error::Target("target is neither a path nor a URL")),
            };
            let rest = &target[skip..];
            let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at(end);
            if !is_authority(authority) {
                return Err(Error::Target("target's host is not a host and port"));
            }
            (Some(authority), rest)
        }
    };
    if target.contains(&b'#') {
        return Err(Error::Target("target has a fragment"));
    }
    let (path, query) = match memchr::memchr(b'?', rest) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let path: &[u8] = match path {
        // RFC 9112 section 3.2.4.
        [] if method == Method::Options && query.is_none() => b"*",
        [] => b"/",
        _ => path,
    };
    Ok((authority, path, query))
}

impl<'a> Plan<'a> {
    /// Reads target, host and route out of a head.
    pub(crate) fn of(thread: &'a Thread, head: &'a RequestHead, down: &Downstream) -> Result<Self, Error> {
        if matches!(head.method, Method::Connect | Method::Trace) {
            return Err(Error::Method);
        }
        if let (Framing::Length(n), Some(max)) = (head.framing, thread.config.limits.body_bytes)
            && n > max
        {
            return Err(Error::BodyTooLarge);
        }
        let host = head.host.map(|host| head.text(host)).filter(|host| !host.is_empty());
        let (authority, path, query) = split_target(head.text(head.target), head.method, host)?;
        let path = if path == b"*" { Cow::Borrowed(path) } else { normal_path(path) };
        // `OPTIONS *` is about the server as a whole, so it goes where the root goes.
        let routed = if *path == *b"*" { b"/" } else { &*path };
        let route = thread.routes.find(down.listener, authority, routed).ok_or(Error::NoRoute)?;
        let max_forwards = match head.method {
            Method::Options => head.known(Name::MaxForwards).and_then(number),
            _ => None,
        };
        let timeout = route.timeout.or(thread.config.timeouts.request);
        let mut client = thread.config.forwarded.client(head, down.peer);
        // A trusted proxy's word takes precedence.
        client.is_https |= down.stream.is_secure() && !client.is_scheme_told;
        let request_id = route.has_request_id.then(|| request_id(thread, head, client.is_trusted));
        let upgrade = head.asks_upgrade && route.upgrade && asks_for_a_tunnel(head);
        let cluster = route.cluster.unwrap_or_default();
        Ok(Self {
            route,
            cluster,
            authority,
            path,
            query,
            max_forwards,
            client,
            request_id,
            upgrade,
            timeout,
        })
    }
}

impl Plan<'_> {
    /// `http` or `https`, as the client sees it.
    pub(crate) fn scheme(&self) -> &'static [u8] {
        if self.client.is_https { b"https" } else { b"http" }
    }

    /// The target as the server gets it, in origin form.
    pub(crate) fn target<'b>(&'b self, head: &'b RequestHead) -> Cow<'b, [u8]> {
        let sent = head.text(head.target);
        let path = route::rewrite(self.route, &self.path);
        match (path, self.query) {
            (path, None) => path,
            // As sent, where it was sent in origin form and is sent on as it is.
            (Cow::Borrowed(_), Some(_))
                if matches!(self.path, Cow::Borrowed(_)) && sent.starts_with(b"/") =>
            {
                Cow::Borrowed(sent)
            }
            (path, Some(query)) => {
                let mut target = path.into_owned();
                target.push(b'?');
                target.extend_from_slice(query);
                Cow::Owned(target)
            }
        }
    }

    /// The endpoint of the request's session; `None` where it has none that is known.
    pub(crate) fn preferred(&self, sticky: &Sticky, head: &RequestHead) -> Option<usize> {
        sticky.sources.iter().find_map(|source| {
            let session = match source {
                // There may be several of one name, for other paths and domains, and ours need not be the first.
                KeySource::Cookie(name) => {
                    return cookies(head, name.as_bytes()).find_map(|session| sticky.endpoint(session));
                }
                // Or as servlet containers write it: /a;jsessionid=x.route/b
                KeySource::Query(name) => self.key(source, head).or_else(|| {
                    let value = parameter(&self.path, b';', name.as_bytes())?;
                    Some(Cow::Borrowed(value.split(|&b| b == b'/').next().unwrap_or_default()))
                })?,
                _ => self.key(source, head)?,
            };
            sticky.endpoint(&session)
        })
    }

    /// The cluster's key of a request; `None` where the request has none, or an empty one.
    pub(crate) fn key<'b>(&'b self, source: &KeySource, head: &'b RequestHead) -> Option<Cow<'b, [u8]>> {
        let key = match source {
            KeySource::Client => self.client.address.ip().map(|ip| Cow::Owned(ip.to_string().into_bytes())),
            KeySource::Header(name) => head.field(name.as_bytes()).map(Cow::Borrowed),
            KeySource::Cookie(name) => cookies(head, name.as_bytes()).next().map(Cow::Borrowed),
            KeySource::Query(name) => {
                self.query.and_then(|query| parameter(query, b'&', name.as_bytes())).map(Cow::Borrowed)
            }
            KeySource::Path => Some(Cow::Borrowed(&*self.path)),
            KeySource::Uri => match self.query {
                None => Some(Cow::Borrowed(&*self.path)),
                Some(query) => Some(Cow::Owned([&*self.path, b"?", query].concat())),
            },
        };
        key.filter(|key| !key.is_empty())
    }
}

/// Values of all cookies of this name, in the order of the request.
fn cookies<'a>(head: &'a RequestHead, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let lines = head.fields.iter().filter(|field| head.text(field.name).eq_ignore_ascii_case(b"cookie"));
    lines.flat_map(move |field| parameters(head.text(field.value), b';', name))
}

/// Value of `name` in a list of `name=value`.
fn parameter<'a>(list: &'a [u8], separator: u8, name: &[u8]) -> Option<&'a [u8]> {
    parameters(list, separator, name).next()
}

/// All values of `name` in a list of `name=value`.
fn parameters<'a>(list: &'a [u8], separator: u8, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    list.split(move |&b| b == separator)
        .filter_map(move |pair| pair.trim_ascii().strip_prefix(name).and_then(|rest| rest.strip_prefix(b"=")))
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_every_form_of_target() {
        let host = Some(&b"h"[..]);
        let split = |target: &'static str, method| split_target(target.as_bytes(), method, host);
        assert_eq!(split("/a?b", Method::Get), Ok((host, &b"/a"[..], Some(&b"b"[..]))));
        assert_eq!(split("HTTP://x:1/a?", Method::Get), Ok((Some(&b"x:1"[..]), &b"/a"[..], Some(&b""[..]))));
        assert_eq!(split("http://x", Method::Get), Ok((Some(&b"x"[..]), &b"/"[..], None)));
        assert_eq!(split("http://x?q", Method::Get), Ok((Some(&b"x"[..]), &b"/"[..], Some(&b"q"[..]))));
        assert_eq!(split("*", Method::Options), Ok((host, &b"*"[..], None)));
        assert_eq!(split("http://x", Method::Options), Ok((Some(&b"x"[..]), &b"*"[..], None)));
        for refused in ["*", "x", "x:80", "ftp://x/", "http://", "http://a@b/", "/a#b"] {
            assert!(split(refused, Method::Get).is_err(), "{refused}");
        }
    }

    #[test]
    fn finds_a_parameter_by_its_whole_name() {
        assert_eq!(parameter(b"xid=1; id=2; id=3", b';', b"id"), Some(&b"2"[..]));
        assert_eq!(parameter(b"ids=1&id", b'&', b"id"), None);
    }
}
