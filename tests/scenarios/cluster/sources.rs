//! Servers that sources outside name: they come, go and change while requests run, and no mistake of a source takes one out.

mod asked;
mod bad;
mod commands;
mod dns;
mod each;
mod files;
mod http;
mod named;
mod state;

use std::fs;
use std::path::{Path, PathBuf};

use tests::eventually;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::Site;
use trylist::process::control::SourceStatus;

/// A folder with what sources say.
struct Said(tempfile::TempDir);

impl Said {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The file that says the servers.
    fn file(&self) -> PathBuf {
        self.path().join("servers.json")
    }

    /// Replaces the file as orchestrators do.
    fn say(&self, text: &str) {
        let new = self.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// The same for a list of these servers.
    fn name<'a>(&self, origins: impl IntoIterator<Item = &'a Origin>) {
        let urls: Vec<String> = origins.into_iter().map(|origin| format!("{:?}", origin.url())).collect();
        self.say(&format!("[{}]", urls.join(", ")));
    }

    /// A proxy whose cluster `app` has the servers of the file, and further keys for the source.
    fn proxy(&self, keys: &str) -> Builder {
        from(&format!("type = \"file\", path = {:?}{keys}", self.file()))
    }
}

/// A proxy whose cluster `app` has the servers of a source with these keys.
fn from(keys: &str) -> Builder {
    let source = format!("discover = [{{ {keys} }}]");
    let over = Proxy::over_urls([""; 0]).named("app").module("round_robin");
    over.in_cluster(&source).in_cluster("settle = \"0s\"")
}

/// Waits until the source fails for this reason.
#[track_caller]
fn source_fails(site: &Site, why: &str) -> SourceStatus {
    source_is(site, why, |source| source.error.as_ref().is_some_and(|error| error.contains(why)))
}

/// How its only source is.
fn source(site: &Site) -> SourceStatus {
    let mut sources = site.status().discovery;
    assert_eq!(sources.len(), 1, "{sources:?}");
    sources.remove(0)
}

/// Waits until the source is so.
#[track_caller]
fn source_is(site: &Site, what: &str, is_so: impl Fn(&SourceStatus) -> bool) -> SourceStatus {
    let mut last = None;
    eventually(what, || {
        let now = source(site);
        if last.as_ref() != Some(&now) {
            // Shown where the test fails.
            eprintln!("{now:?}");
            last = Some(now.clone());
        }
        is_so(&now).then_some(now)
    })
}

/// Waits until as many requests are answered by these, in their order.
#[track_caller]
fn answered_by(site: &Site, names: &str) {
    let n = names.split(' ').count();
    let sorted = |names: &str| {
        let mut names: Vec<&str> = names.split(' ').collect();
        names.sort_unstable();
        names.join(" ")
    };
    let mut last = String::new();
    eventually(&format!("answers of {names}"), || {
        last = sorted(&site.names(n));
        (last == sorted(names)).then_some(())
    });
}

/// The process that asks the sources.
#[track_caller]
fn scout(site: &Site) -> u32 {
    let is_scout = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "trylist-scout"
    };
    eventually("a scout", || site.workers().into_iter().find(is_scout))
}
