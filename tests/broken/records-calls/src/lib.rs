//! A module that tells of every call, and answers as its settings say: healthy itself, it shows what a host does with
//! any answer.
//!
//! Each call is a line, which begins with the request's path, on a Unix socket that the test listens on. `answers` are
//! for the calls of `next` of each request in turn, `exhausted` when they are used up:
//!
//! - a number: this endpoint, whether there is one or not
//! - `exhausted`, `busy`
//! - `free N`: endpoint N if nothing is on its way to it, else busy, as often as asked
//! - `panic`

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use lb_api::serde::Deserialize;
use lb_api::{
    Balancer, BuildCx, BuildError, Event, EventKind, Failure, Live, Needs, Next, NextCx, Outcome, Request,
};

#[derive(Deserialize)]
#[serde(crate = "lb_api::serde", deny_unknown_fields)]
struct Settings {
    journal: PathBuf,
    answers: Vec<String>,
    /// A call in which it panics: `load_balance`, `report_failure`, `observe`, `explain`, `finish` or `drop`.
    #[serde(default)]
    panics_in: String,
    /// Its explanation.
    #[serde(default)]
    words: String,
}

struct RecordsCalls {
    journal: Arc<UnixStream>,
    answers: Vec<String>,
    panics_in: Arc<str>,
    words: String,
    endpoints: Box<[Live]>,
}

struct Trylist {
    journal: Arc<UnixStream>,
    path: Box<str>,
    panics_in: Arc<str>,
    n_asked: usize,
    ballast: [u64; 32],
}

/// Makes the trylist larger than what the host has in place for one.
const BALLAST: [u64; 32] = [0x5afe_5afe_5afe_5afe; 32];

impl Balancer for RecordsCalls {
    const ID: &'static str = "records_calls";
    const SUMMARY: &'static str = "tells of every call and answers as told";
    type Settings = Settings;
    type Trylist = Trylist;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        Ok(Self {
            journal: Arc::new(UnixStream::connect(settings.journal).expect("the test listens")),
            answers: settings.answers,
            panics_in: settings.panics_in.into(),
            words: settings.words,
            endpoints: cx.endpoints().live(),
        })
    }

    fn needs(&self) -> Needs {
        Needs::default()
            .key()
            .request_header("x-user")
            .event(EventKind::Connected)
            .event(EventKind::TryEnded)
            .response_header("x-load")
    }

    fn load_balance(&self, request: &Request<'_>) -> Trylist {
        let path: Box<str> = String::from_utf8_lossy(request.path()).into();
        if &*self.panics_in == "load_balance" {
            tell(&self.journal, &path, "load_balance: panic");
            panic!("told to");
        }
        let text = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
        let key = request.key().map_or(String::new(), |key| format!(", key {}", text(key)));
        let user = request.header(0).map_or(String::new(), |user| format!(", x-user {}", text(user)));
        let preferred =
            request.preferred().map_or(String::new(), |endpoint| format!(", preferred {endpoint}"));
        tell(&self.journal, &path, &format!("load_balance{key}{user}{preferred}"));
        let (journal, panics_in) = (Arc::clone(&self.journal), Arc::clone(&self.panics_in));
        Trylist { journal, path, panics_in, n_asked: 0, ballast: BALLAST }
    }

    fn next(&self, trylist: &mut Trylist, cx: &NextCx<'_>) -> Next {
        let answer = self.answers.get(trylist.n_asked).map_or("exhausted", String::as_str);
        let tried: Vec<_> = (0..self.endpoints.len()).filter(|i| cx.tried(*i)).collect();
        let tell = |answer: &str| trylist.tell(&format!("next after {tried:?}: {answer}"));
        if let Some(endpoint) = answer.strip_prefix("free ") {
            let endpoint: usize = endpoint.parse().expect("a number");
            if self.endpoints[endpoint].in_flight() > 0 {
                if trylist.n_asked == 0 {
                    tell("busy");
                }
                return Next::Busy;
            }
            tell(&endpoint.to_string());
            return Next::Endpoint(endpoint);
        }
        tell(answer);
        trylist.n_asked += 1;
        match answer {
            "exhausted" => Next::Exhausted,
            "busy" => Next::Busy,
            "panic" => panic!("told to"),
            number => Next::Endpoint(number.parse().expect("a number")),
        }
    }

    fn report_failure(&self, trylist: &mut Trylist, failure: &Failure) {
        trylist.hear(
            "report_failure",
            &format!("{} {:?}, try {}", failure.endpoint, failure.kind, failure.try_id),
        );
    }

    fn observe(&self, trylist: &mut Trylist, event: &Event<'_>) {
        let what = match event.kind {
            EventKind::ResponseHeaders => {
                let load = event.header(0).map(String::from_utf8_lossy);
                format!("{} ResponseHeaders {:?}, load {load:?}", event.endpoint, event.status.unwrap_or(0))
            }
            EventKind::TryEnded => {
                format!("{} TryEnded {:?}", event.endpoint, event.result.expect("it has one"))
            }
            other => format!("{} {other:?}", event.endpoint),
        };
        trylist.hear("observe", &what);
    }

    fn finish(&self, trylist: &mut Trylist, outcome: &Outcome) {
        let (kind, endpoint, status, n) = (outcome.kind, outcome.endpoint, outcome.status, outcome.n_tries);
        trylist.hear("finish", &format!("{kind:?} by {endpoint:?}, status {status:?}, tries {n}"));
    }

    fn explain(&self, trylist: &Trylist) -> Option<String> {
        trylist.hear("explain", "");
        Some(self.words.clone())
    }
}

impl Trylist {
    fn hear(&self, call: &str, what: &str) {
        self.tell(&format!("{call} {what}"));
        assert!(&*self.panics_in != call, "told to");
    }

    fn tell(&self, text: &str) {
        assert_eq!(self.ballast, BALLAST, "the trylist's storage was written to");
        tell(&self.journal, &self.path, text);
    }
}

fn tell(mut journal: &UnixStream, path: &str, text: &str) {
    // One write a line, so that lines of several threads stay apart.
    journal.write_all(format!("{path} {text}\n").as_bytes()).expect("the test listens");
}

impl Drop for Trylist {
    fn drop(&mut self) {
        self.hear("drop", "");
    }
}

lb_api::export_balancer!(RecordsCalls);
