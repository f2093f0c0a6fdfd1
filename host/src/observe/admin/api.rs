//! The API for reading: `/api/v1/…`, JSON of the [`status`](crate::observe::status), one page at a time.
//!
//! `conf/openapi.json` describes every answer; a test holds it to them.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode, Uri};
use serde::Serialize;

use super::query::{Paging, Query};
use crate::observe::events::Event;
use crate::observe::status::{
    ClusterStatus, ListenerStatus, ModuleStatus, ServerStatus, Status, WorkerSummary,
};

/// The beginning of all paths of the API.
pub(super) const PREFIX: &str = "/api/";

/// The paths, for who asks for another.
const PATHS: &str =
    "/api/v1/ has status, clusters, clusters/NAME, servers, modules, generations, listeners and events";

/// States of servers.
const STATES: [&str; 4] = ["available", "down", "ejected", "draining"];

/// Where the API reads. Its answers are as of now.
pub trait StateSource: Send + Sync {
    /// Why it is not ready though it serves, one line; `None` where it is.
    fn unready(&self) -> Option<String>;
    /// The worker in a few numbers.
    fn summary(&self) -> WorkerSummary;
    /// So many clusters from this one on, without their servers; and how many there are.
    fn clusters(&self, page: Paging) -> (usize, Vec<ClusterStatus>);
    /// The cluster of this name with a page of its servers.
    fn cluster(&self, name: &str, page: Paging) -> Option<ClusterStatus>;
    /// So many of the servers that are wanted; and how many there are. `None` where there is no such cluster.
    fn servers(&self, wanted: &WantedServers<'_>, page: Paging) -> Option<(usize, Vec<ServerStatus>)>;
    /// Its listeners.
    fn listeners(&self) -> Vec<ListenerStatus>;
    /// Its modules.
    fn modules(&self) -> Vec<ModuleStatus>;
    /// The supervisor's answer, where there is a supervisor.
    fn supervisor(&self) -> SupervisorAnswer;
}

/// The supervisor's answer; an error, in words, where it does not answer.
pub type SupervisorAnswer = Pin<Box<dyn Future<Output = Result<Option<Box<Status>>, String>> + Send>>;

/// Which servers are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct WantedServers<'a> {
    /// Those of this cluster.
    pub cluster: Option<&'a str>,
    /// Those in this state.
    pub state: Option<&'a str>,
}

/// A page of a list.
#[derive(Serialize)]
struct ListPage<T> {
    /// How many there are on all pages.
    total: usize,
    offset: usize,
    limit: usize,
    /// The next page, if there is one.
    next: Option<String>,
    items: Vec<T>,
}

#[derive(Serialize)]
struct ClusterPage {
    #[serde(flatten)]
    cluster: ClusterStatus,
    offset: usize,
    limit: usize,
    /// The next page of its servers.
    next: Option<String>,
}

#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    worker: WorkerSummary,
    /// The supervisor's answer.
    supervisor: Option<Box<Status>>,
    /// Why that is not known, where there is a supervisor.
    problem: Option<String>,
}

/// The answer to a request for this, but for `events`.
pub(super) async fn answer(uri: &Uri, state: &dyn StateSource) -> Response<Full<Bytes>> {
    match read(uri, state).await {
        Ok(body) => json(StatusCode::OK, body),
        Err((status, text)) => refusal(status, &text),
    }
}

/// The answer to a request for events.
pub(super) fn events(uri: &Uri, query: &Query, events: Vec<Event>) -> Response<Full<Bytes>> {
    match cut(uri.path(), query, events) {
        Ok(body) => json(StatusCode::OK, body),
        Err((status, text)) => refusal(status, &text),
    }
}

/// An answer that says what is wrong.
pub(super) fn refusal(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    json(status, serde_json::json!({ "error": text }).to_string())
}

type Refusal = (StatusCode, String);

async fn read(uri: &Uri, state: &dyn StateSource) -> Result<String, Refusal> {
    let path = uri.path();
    let query = Query::parse(uri.query().unwrap_or_default()).map_err(bad)?;
    let takes = |names: &[&str]| query.takes(path, names).map_err(bad);
    let missing = |what: &str| (StatusCode::NOT_FOUND, format!("there is no {what}"));
    match path.strip_prefix("/api/v1/").unwrap_or_default() {
        "status" => {
            takes(&[])?;
            let supervisor = state.supervisor().await;
            let (supervisor, problem) = supervisor.map_or_else(|why| (None, Some(why)), |said| (said, None));
            text(&Whole { worker: state.summary(), supervisor, problem })
        }
        "clusters" => {
            takes(&Paging::NAMES)?;
            let page = query.page().map_err(bad)?;
            let (total, items) = state.clusters(page);
            text(&list(path, &query, page, total, items))
        }
        "servers" => {
            takes(&["cluster", "state", Paging::NAMES[0], Paging::NAMES[1]])?;
            let page = query.page().map_err(bad)?;
            let state_of = query.one_of("state", &STATES).map_err(bad)?;
            let wanted = WantedServers { cluster: query.get("cluster"), state: state_of };
            let found = state.servers(&wanted, page);
            let (total, items) = found
                .ok_or_else(|| missing(&format!("cluster \"{}\"", wanted.cluster.unwrap_or_default())))?;
            text(&list(path, &query, page, total, items))
        }
        "listeners" => {
            takes(&Paging::NAMES)?;
            cut(path, &query, state.listeners())
        }
        "modules" => {
            takes(&Paging::NAMES)?;
            cut(path, &query, state.modules())
        }
        "generations" => {
            takes(&Paging::NAMES)?;
            let said = state.supervisor().await.map_err(|why| (StatusCode::SERVICE_UNAVAILABLE, why))?;
            cut(path, &query, said.map_or_else(Vec::new, |said| said.generations))
        }
        other => {
            let name = other.strip_prefix("clusters/").filter(|name| !name.is_empty() && !name.contains('/'));
            let name = name.ok_or_else(|| missing(&format!("\"{path}\"; {PATHS}")))?;
            takes(&Paging::NAMES)?;
            let page = query.page().map_err(bad)?;
            let name = super::query::decoded(name).map_err(bad)?;
            let cluster = state.cluster(&name, page);
            let cluster = cluster.ok_or_else(|| missing(&format!("cluster \"{name}\"")))?;
            let total = usize::try_from(cluster.states.servers).unwrap_or(usize::MAX);
            let next = page.next(path, &query, total);
            text(&ClusterPage { cluster, offset: page.offset, limit: page.limit, next })
        }
    }
}

fn cut<T: Serialize>(path: &str, query: &Query, all: Vec<T>) -> Result<String, Refusal> {
    let page = query.page().map_err(bad)?;
    let total = all.len();
    let items = all.into_iter().skip(page.offset).take(page.limit).collect();
    text(&list(path, query, page, total, items))
}

fn list<T>(path: &str, query: &Query, page: Paging, total: usize, items: Vec<T>) -> ListPage<T> {
    ListPage { total, offset: page.offset, limit: page.limit, next: page.next(path, query, total), items }
}

fn text(answer: &impl Serialize) -> Result<String, Refusal> {
    serde_json::to_string(answer).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn bad(text: String) -> Refusal {
    (StatusCode::BAD_REQUEST, text)
}

fn json(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new((body + "\n").into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
