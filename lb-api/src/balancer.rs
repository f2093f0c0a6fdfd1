//! The trait that a module implements, and what its instances are built from.

use std::fmt;
use std::sync::{Arc, RwLock};

use serde::de::DeserializeOwned;

use crate::endpoint::{Cluster, Endpoints};
use crate::error::BuildError;
use crate::export::view::{Host, View};
use crate::outcome::{Event, EventKind, Failure, Outcome};
use crate::request::Request;
use crate::trylist::{Next, NextCx};
use crate::wire;

/// A way of choosing endpoints. One value of the type is a *balancer*: the instance for one cluster.
///
/// Any call may come from any thread, and calls on one balancer run at the same time; those on one trylist come one after
/// the other. A panic in any of them is caught: the host counts it, and serves the request by its own fallback.
pub trait Balancer: Sized + Send + Sync + 'static {
    /// Module ID in snake_case: the name by which the configuration calls it.
    const ID: &'static str;

    /// One line on its strategy, for people.
    const SUMMARY: &'static str;

    /// Version of the bytes that [`save`](Self::save) writes. Bytes of another version are not handed to `build`.
    const STATE_VERSION: u32 = 0;

    /// The module's own settings table; `()` for none. The SDK refuses unknown keys and tells the operator.
    type Settings: DeserializeOwned;

    /// State of one request between its tries. The host stores it in its own memory, without an allocation up to 112 bytes. Its
    /// alignment is 16 at most.
    type Trylist: Send + 'static;

    /// Makes the instance for one cluster: at start, at every reload in the process that is to take over, and when endpoints come,
    /// go, move or change weight. Requests go on meanwhile, on the instance before.
    ///
    /// Work that grows with the number of endpoints belongs here.
    ///
    /// # Errors
    /// The configuration is then refused: all problems that can be found should be named.
    fn build(cx: &BuildCx<'_, Self>, settings: Self::Settings) -> Result<Self, BuildError>;

    /// Data that this instance needs of requests. Asked once, after `build`; the host gathers nothing else.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// The hook: makes the trylist of one request. Called once a request, before every other call on the trylist.
    fn load_balance(&self, request: &Request<'_>) -> Self::Trylist;

    /// Returns the endpoint for the next try. Called once a try, and again after the host declined an answer because that
    /// endpoint is not available now.
    fn next(&self, trylist: &mut Self::Trylist, cx: &NextCx<'_>) -> Next;

    /// Reports that a try could not be established: look-up, connection or TLS failed. The host asks `next` for another.
    fn report_failure(&self, trylist: &mut Self::Trylist, failure: &Failure) {
        let _ = (trylist, failure);
    }

    /// Reports the progress of a try; only events that `needs` asks for.
    fn observe(&self, trylist: &mut Self::Trylist, event: &Event<'_>) {
        let _ = (trylist, event);
    }

    /// Reports the end of the request. Called at most once, before the trylist is dropped, and never after a panic.
    fn finish(&self, trylist: &mut Self::Trylist, outcome: &Outcome) {
        let _ = (trylist, outcome);
    }

    /// State for the next process, as bytes of the author's own form; [`BuildCx::saved`] hands them over. Called while
    /// requests go on. The SDK adds module ID, [`STATE_VERSION`](Self::STATE_VERSION) and a checksum.
    fn save(&self) -> Option<Vec<u8>> {
        None
    }

    /// One line for people on why the trylist chose as it did. Called only for requests that ask for an explanation.
    fn explain(&self, trylist: &Self::Trylist) -> Option<String> {
        let _ = trylist;
        None
    }
}

/// Input of [`Balancer::build`]. It is borrowed for the time of `build`; [`Live`](crate::Live),
/// [`Cluster`] and [`Log`] can be kept.
pub struct BuildCx<'a, B> {
    view: View<'a, wire::BuildCx>,
    previous: Option<&'a B>,
    saved: Option<&'a [u8]>,
    cluster: Cluster,
    log: Log,
}

impl<'a, B> BuildCx<'a, B> {
    /// None where the host's structs are not those of its own ABI version.
    pub(crate) fn new(
        view: View<'a, wire::BuildCx>,
        previous: Option<&'a B>,
        saved: Option<&'a [u8]>,
        log: Log,
    ) -> Option<Self> {
        let cx = Self { view, previous, saved, cluster: Cluster::new(view)?, log };
        (cx.endpoints().len() > 0 && cx.endpoints().readable()).then_some(cx)
    }

    /// Name of the cluster.
    pub fn cluster_name(&self) -> &'a str {
        self.view.text(|cx| cx.cluster)
    }

    /// The endpoints to balance.
    pub fn endpoints(&self) -> Endpoints<'a> {
        Endpoints { slice: self.view.strided(|cx| (cx.endpoints, cx.n_endpoints, cx.endpoint_stride)) }
    }

    /// The cluster's live numbers: how many endpoints are available, and when a table is stale.
    pub fn cluster(&self) -> Cluster {
        self.cluster
    }

    /// The instance that this one replaces in the same process. It is still in use: what is learned is best shared with
    /// it by `Arc`, keyed by [`Endpoint::id`](crate::Endpoint::id), since indices may differ. Live numbers are not: those of this
    /// build hold. A reload of `trylist` starts a new process, where there is none: see [`saved`](Self::saved).
    pub fn previous(&self) -> Option<&'a B> {
        self.previous
    }

    /// State [saved](Balancer::save) by an instance of an earlier process; none where there is a previous instance. Bytes of
    /// another module, of another state version or that are damaged are not handed over.
    pub fn saved(&self) -> Option<&'a [u8]> {
        self.saved
    }

    /// The host's log. Can be kept.
    pub fn log(&self) -> &Log {
        &self.log
    }
}

/// The data that a balancer asks the host to gather.
///
/// ```
/// # use lb_api::{EventKind, Needs};
/// let needs = Needs::default().key().request_header("x-user").event(EventKind::TryEnded);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub(crate) flags: u32,
    pub(crate) events: u32,
    pub(crate) request_headers: Vec<String>,
    pub(crate) response_headers: Vec<String>,
}

impl Needs {
    /// The request's key, for [`Request::key`](crate::Request::key).
    #[must_use]
    pub fn key(mut self) -> Self {
        self.flags |= wire::NEEDS_KEY;
        self
    }

    /// One more request header, in any case; [`Request::header`](crate::Request::header) counts them in the order of
    /// these calls.
    #[must_use]
    pub fn request_header(mut self, name: impl Into<String>) -> Self {
        self.request_headers.push(name.into());
        self
    }

    /// One more response header, in any case; [`Event::header`](crate::Event::header) counts them in the order of these
    /// calls.
    #[must_use]
    pub fn response_header(mut self, name: impl Into<String>) -> Self {
        self.response_headers.push(name.into());
        self.event(EventKind::ResponseHeaders)
    }

    /// One more kind of event for [`Balancer::observe`].
    #[must_use]
    pub fn event(mut self, kind: EventKind) -> Self {
        self.events |= 1
            << match kind {
                EventKind::Connected => wire::EVENT_CONNECTED,
                EventKind::ResponseHeaders => wire::EVENT_RESPONSE_HEADERS,
                EventKind::TryEnded => wire::EVENT_TRY_ENDED,
            };
        self
    }
}

/// Writes to the host's log, under the balancer's name. Not for the way of a request: a line that every request writes
/// is of no use to anybody.
#[derive(Clone)]
pub struct Log {
    // The host's promise ends with the balancer, a kept `Log` may not: the lock makes writing after that do nothing.
    host: Arc<RwLock<Option<Host>>>,
}

impl Log {
    pub(crate) fn new(host: Host) -> Self {
        Self { host: Arc::new(RwLock::new(Some(host))) }
    }

    /// Ends it, for all its clones.
    pub(crate) fn close(&self) {
        *self.host.write().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }

    /// A request or a start failed.
    pub fn error(&self, text: impl fmt::Display) {
        self.write(wire::LOG_ERROR, &text.to_string());
    }

    /// Recovered, but someone should look.
    pub fn warn(&self, text: impl fmt::Display) {
        self.write(wire::LOG_WARN, &text.to_string());
    }

    /// A start, a stop, a change.
    pub fn info(&self, text: impl fmt::Display) {
        self.write(wire::LOG_INFO, &text.to_string());
    }

    /// Details.
    pub fn debug(&self, text: impl fmt::Display) {
        self.write(wire::LOG_DEBUG, &text.to_string());
    }

    fn write(&self, level: u32, text: &str) {
        if let Some(host) = *self.host.read().unwrap_or_else(std::sync::PoisonError::into_inner) {
            host.log(level, text);
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}
