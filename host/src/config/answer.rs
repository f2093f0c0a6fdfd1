//! Answers that the proxy gives without a server: redirects, fixed responses, and pages for its own errors.

use std::sync::Arc;

/// Statuses of the proxy's own errors, for which a page can be set.
pub const ERROR_STATUSES: [u16; 13] = [400, 404, 405, 408, 413, 414, 417, 431, 501, 502, 503, 504, 505];

/// The answer of a route whose requests go to no server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Another URL.
    Redirect(Redirect),
    /// A fixed response.
    Respond(Respond),
}

/// How the URL of a redirect differs from the request's. A part that is `None` stays as the client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Only requests that did not come by https are redirected; without that, every request.
    pub only_http: bool,
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
    /// Without port. `None` only where the route names its hosts, so that no other host gets into the answer.
    pub host: Option<Box<str>>,
    /// Without one, the port is that of the scheme, or the request's where the scheme stays.
    pub port: Option<u16>,
    /// The whole path; one with a question mark replaces the query, too.
    pub path: Option<Box<str>>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A fixed response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Empty for statuses without a body.
    pub page: Page,
}

/// A body and its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The value of `Content-Type`.
    pub content_type: Arc<str>,
    /// The bytes.
    pub body: Arc<[u8]>,
}

/// Pages for errors of the proxy's own, by status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorPages(Vec<(u16, Page)>);

impl Answer {
    /// Whether it is the answer to a request; the others go to the route's cluster.
    pub(crate) fn is_for(&self, is_https: bool) -> bool {
        !matches!(self, Self::Redirect(redirect) if redirect.only_http && is_https)
    }
}

impl ErrorPages {
    /// The page of a status.
    pub(crate) fn get(&self, status: u16) -> Option<&Page> {
        self.0.iter().find(|(own, _)| *own == status).map(|(_, page)| page)
    }

    /// Sets the page of a status.
    pub(super) fn set(&mut self, status: u16, page: Page) {
        self.0.retain(|(own, _)| *own != status);
        self.0.push((status, page));
    }
}
