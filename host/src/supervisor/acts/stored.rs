//! The form of acts on a disk, with the last addresses of names. What is read there is checked as what operators and workers say:
//! the process that writes the file has the rights of workers.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Acts, Entry, MAX_URL_BYTES, OUTLIVES, Order, ServerOrder, check_new, configured};
use crate::cluster::discovery::KnownAddresses;
use crate::cluster::names::MAX_ADDRESSES;
use crate::config::Config;

/// More are not read.
const MOST_ENTRIES: usize = 65_535;
/// Longest name of a host.
const MAX_HOST_BYTES: usize = 255;
/// Longest name of a cluster or an operator.
const MAX_NAME_BYTES: usize = 1024;

#[derive(Deserialize)]
struct StoredActs {
    acts: Vec<Entry>,
    #[serde(default)]
    names: KnownAddresses,
}

/// The same, to be written.
#[derive(Serialize)]
struct ActsToStore<'a> {
    acts: &'a [Entry],
    names: &'a KnownAddresses,
}

/// Acts and addresses of an earlier run.
#[derive(Debug)]
pub(in crate::supervisor) struct Recalled {
    pub(in crate::supervisor) acts: Acts,
    /// The last addresses of names.
    pub(in crate::supervisor) names: KnownAddresses,
    /// A line for each act that does not hold any more.
    pub(in crate::supervisor) said: Vec<String>,
}

impl Acts {
    /// As they are to be written; `None` where that cannot be.
    pub(in crate::supervisor) fn to_json(&self, names: &KnownAddresses) -> Option<String> {
        let text = serde_json::to_string(&ActsToStore { acts: &self.entries, names });
        text.inspect_err(|error| tracing::error!("changes of servers cannot be saved: {error}")).ok()
    }

    /// The addresses and the acts of an earlier run that still make sense for this configuration, and a line for each that does not.
    ///
    /// # Errors
    /// The text is none of acts; in words.
    pub(in crate::supervisor) fn from_json(
        text: &[u8],
        config: &Config,
        now: SystemTime,
    ) -> Result<Recalled, String> {
        let StoredActs { acts: mut entries, mut names } =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        names.retain(|name, addresses| name.len() <= MAX_HOST_BYTES && addresses.len() <= MAX_ADDRESSES);
        if names.len() > MOST_ENTRIES {
            names.clear();
        }
        if entries.len() > MOST_ENTRIES || !entries.iter().all(Entry::is_sound) {
            return Err("a value is out of range".to_owned());
        }
        let mut said = Vec::new();
        entries.retain(|entry| {
            let problem = entry.problem(config);
            said.extend(problem.iter().map(|why| format!("a change of before the start is over: {why}")));
            problem.is_none()
        });
        let mut acts = Self { entries, version: 1 };
        said.extend(acts.expire(now));
        Ok(Recalled { acts, names, said })
    }

    /// Servers that operators have added.
    pub(in crate::supervisor) fn n_added(&self) -> usize {
        let is_added = |entry: &&Entry| entry.is_member.as_ref().is_some_and(|act| act.value);
        self.entries.iter().filter(is_added).count()
    }
}

impl Entry {
    /// Whether it could have come from an operator, whatever the configuration.
    fn is_sound(&self) -> bool {
        let by = [
            self.duty.as_ref().map(|act| &act.by),
            self.weight.as_ref().map(|act| &act.by),
            self.is_member.as_ref().map(|act| &act.by),
        ];
        self.cluster.len() <= MAX_NAME_BYTES
            && by.into_iter().flatten().all(|by| by.len() <= MAX_NAME_BYTES)
            && self.weight.as_ref().is_none_or(|act| act.value > 0)
            && self.lost.is_none_or(|since| since.checked_add(OUTLIVES).is_some())
            && self.says_anything()
    }

    /// Why it makes no sense for this configuration.
    fn problem(&self, config: &Config) -> Option<String> {
        let what = |why: &str| format!("cluster \"{}\": server \"{}\": {why}", self.cluster, self.url);
        let order = |order| Order { cluster: &self.cluster, url: &self.url, order, lasts: None, by: "" };
        match configured(config, &self.cluster, &self.url) {
            Err(why) => Some(why),
            Ok(Some(_)) => None,
            Ok(None) if self.url.len() > MAX_URL_BYTES => Some(what("its URL is too long")),
            // It left the configuration, and may return.
            Ok(None) if self.is_member.as_ref().is_none_or(|act| !act.value) => None,
            Ok(None) => check_new(config, &order(ServerOrder::Add)).err(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::config::{self, Syntax};

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn config(servers: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{servers}]\n[[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        config::parse("t.toml", &text, Syntax::Toml).unwrap().0
    }

    fn names() -> KnownAddresses {
        KnownAddresses::from([("a.test".to_owned(), vec![[10, 0, 0, 1].into()])])
    }

    fn take(acts: &mut Acts, config: &Config, url: &str, order: ServerOrder, lasts: Option<u64>) {
        let lasts = lasts.map(Duration::from_secs);
        let order = Order { cluster: "c", url, order, lasts, by: "root" };
        acts.take(config, &order, at(100)).unwrap();
    }

    #[test]
    fn acts_that_are_still_in_force_are_read_as_they_were_written() {
        let config = config("\"http://a\", \"http://b\"");
        let mut acts = Acts::default();
        take(&mut acts, &config, "http://a", ServerOrder::Drain, Some(60));
        take(&mut acts, &config, "http://a", ServerOrder::Weight(7), Some(60));
        take(&mut acts, &config, "http://b", ServerOrder::Weight(3), None);
        take(&mut acts, &config, "http://n", ServerOrder::Add, None);
        let text = acts.to_json(&names()).unwrap();
        let Recalled { acts: read, said, names: found } =
            Acts::from_json(text.as_bytes(), &config, at(110)).unwrap();
        assert_eq!(found, names());
        assert_eq!((read.status(at(120)), said.len(), read.n_added()), (acts.status(at(120)), 0, 1));
        assert_eq!(read.all(), acts.all());
        // Later, as if the proxy had run meanwhile.
        let Recalled { acts: read, said, .. } = Acts::from_json(text.as_bytes(), &config, at(200)).unwrap();
        acts.expire(at(200));
        assert_eq!((read.all(), said.len()), (acts.all(), 2));
    }

    #[test]
    fn what_the_configuration_has_changed_meanwhile_counts() {
        let before = config("{ url = \"http://a\", weight = 2 }");
        let mut acts = Acts::default();
        take(&mut acts, &before, "http://a", ServerOrder::Weight(7), None);
        let text = acts.to_json(&names()).unwrap();
        let after = config("{ url = \"http://a\", weight = 3 }");
        let Recalled { acts: mut read, .. } = Acts::from_json(text.as_bytes(), &after, at(110)).unwrap();
        assert_eq!(read.reconcile(&after, at(110)).len(), 1);
        assert!(read.all().is_empty());
    }

    #[test]
    fn no_text_is_taken_that_no_operator_could_have_caused() {
        let config = config("\"http://a\"");
        let mut acts = Acts::default();
        take(&mut acts, &config, "http://a", ServerOrder::Weight(7), None);
        take(&mut acts, &config, "http://n", ServerOrder::Add, None);
        let text = acts.to_json(&names()).unwrap();
        let read = |text: &str| Acts::from_json(text.as_bytes(), &config, at(110));
        for (from, to) in [("7", "0"), ("7", "70000"), ("\"value\":7", "\"value\":\"x\""), ("{", "[")] {
            assert!(read(&text.replacen(from, to, if from == "{" { 1 } else { 9 })).is_err(), "{from} {to}");
        }
        let lost = text.replacen(
            "\"lost\":null",
            "\"lost\":{\"secs_since_epoch\":9223372036854775807,\"nanos_since_epoch\":0}",
            1,
        );
        assert!(read(&lost).is_err());
        // An added server whose URL the cluster could not have.
        let Recalled { acts: read, said, .. } = read(&text.replace("http://n", "https://n")).unwrap();
        assert_eq!((read.n_added(), said.len()), (0, 1));
    }
}
