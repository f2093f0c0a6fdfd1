//! An inventory that is asked over HTTP.

use std::sync::{Arc, Mutex};

use tests::Gate;
use tests::tls::Authority;

use super::*;

/// An inventory that answers this, and 304 to those who have it already.
pub(super) struct Inventory {
    origin: Origin,
    answer: Arc<Mutex<String>>,
}

impl Inventory {
    pub(super) fn new() -> Self {
        let answer = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&answer);
        let origin = Origin::serving(move |conn| {
            let Some(request) = conn.request() else { return };
            let answer = shared.lock().unwrap().clone();
            let etag = answer.split("ETag: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            let is_known = etag.is_some() && request.header("if-none-match") == etag;
            conn.send(if is_known { "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned() } else { answer });
        });
        Self { origin, answer }
    }

    pub(super) fn answers(&self, whole: &str) {
        whole.clone_into(&mut self.answer.lock().unwrap());
    }

    /// Names these servers, with an ETag.
    pub(super) fn names(&self, origins: &[Origin]) {
        let urls: Vec<String> = origins.iter().map(|origin| format!("{:?}", origin.url())).collect();
        let body = format!("[{}]", urls.join(", "));
        let etag = format!("\"{}\"", body.replace('"', "'"));
        self.answers(&format!(
            "HTTP/1.1 200 OK\r\nETag: {etag}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
    }

    fn source(&self, keys: &str) -> Builder {
        from(&self.keys(keys))
    }

    /// The keys of a source that asks it, with these further ones.
    pub(super) fn keys(&self, keys: &str) -> String {
        format!("type = \"http\", url = \"{}/servers?of=app\", interval = \"10ms\"{keys}", self.origin.url())
    }
}

#[test]
fn an_inventory_is_asked_again_and_told_what_is_known() {
    let origins = ["a", "b"].map(Origin::named);
    let inventory = Inventory::new();
    inventory.names(&origins[..1]);
    let said = Said::new();
    let token = said.path().join("token");
    fs::write(&token, "first\n").unwrap();
    let site = Site::run(&inventory.source(&format!(", token_file = {token:?}")));
    answered_by(&site, "a a");
    let request = inventory.origin.wait_for_requests(1).remove(0);
    assert_eq!(request.line(), "GET /servers?of=app HTTP/1.1");
    assert_eq!(request.header("authorization"), Some("Bearer first"));
    // 304 for ever is no error, and no news.
    let n = inventory.origin.requests().len();
    let later = inventory.origin.wait_for_requests(n + 5);
    assert!(later.last().unwrap().header("if-none-match").is_some());
    let status = source(&site);
    assert_eq!((status.answers, status.errors), (1, 0));
    fs::write(&token, "second").unwrap();
    eventually("the other token", || {
        let last = inventory.origin.requests().pop().unwrap();
        (last.header("authorization") == Some("Bearer second")).then_some(())
    });
    inventory.names(&origins);
    answered_by(&site, "a b a b");
    fs::write(&token, "").unwrap();
    source_fails(&site, "holds no token");
    fs::remove_file(&token).unwrap();
    source_fails(&site, "cannot be opened: No such file");
    answered_by(&site, "a b a b");
}

#[test]
fn an_inventory_that_is_wrong_or_down_changes_nothing() {
    let origins = ["a", "b"].map(Origin::named);
    let inventory = Inventory::new();
    inventory.names(&origins);
    let site = Site::run(&inventory.source(", timeout = \"1s\""));
    answered_by(&site, "a b a b");
    for (answer, why) in [
        ("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "answers 500"),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://else/\r\nContent-Length: 0\r\n\r\n",
            "answers 302: it leads to http://else/",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops", "line 1, column 1: expected value"),
        ("rubbish\r\n\r\n", "invalid HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", "end of file before message length reached"),
    ] {
        inventory.answers(answer);
        source_fails(&site, why);
        answered_by(&site, "a b a b");
        inventory.names(&origins);
        source_is(&site, "well again", |source| source.error.is_none());
    }
    inventory.origin.stop();
    source_fails(&site, "connection refused");
    site.reload_wholly();
    answered_by(&site, "a b a b");
}

#[test]
fn an_inventory_that_is_down_at_the_start_or_never_ends_its_answer_keeps_nobody() {
    let dead = Origin::dead();
    let site = Site::run(&from(&format!("type = \"http\", url = \"{}/\"", dead.url())));
    assert_eq!(site.get("/").status(), 503);
    source_fails(&site, "connection refused");
    let gate = Gate::default();
    let dripping = Origin::serving({
        let gate = gate.clone();
        move |conn| {
            conn.request();
            conn.send("HTTP/1.1 200 OK\r\n\r\n[");
            gate.wait();
        }
    });
    site.reload_with(&from(&format!("type = \"http\", url = \"{}/\", timeout = \"100ms\"", dripping.url())));
    source_fails(&site, "no whole answer within 100ms");
    gate.open();
}

#[test]
fn an_inventory_by_https_is_who_it_says() {
    let origin = Origin::named("a");
    let authority = Authority::new("inventories");
    let inventory = Inventory::new();
    inventory.names(std::slice::from_ref(&origin));
    let files = authority.issue(&["localhost"]);
    let secured = Proxy::over([&inventory.origin])
        .listener(&format!("tls = {{ certificates = [{}] }}", files.toml()))
        .start();
    let port = secured.address().port();
    let source = |host: &str, keys: &str| {
        from(&format!("type = \"http\", url = \"https://{host}:{port}/\", interval = \"10ms\"{keys}"))
    };
    let ca = format!(", ca = {:?}", authority.file());
    let site = Site::run(&source("127.0.0.1", &ca));
    source_fails(&site, "certificate");
    site.reload_with(&source("localhost", ""));
    source_fails(&site, "certificate");
    site.reload_with(&source("localhost", &ca));
    answered_by(&site, "a a");
}
