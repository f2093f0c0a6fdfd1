//! Operators' changes of servers at run time. A change is kept over reloads and crashes, until it is taken back, its time is
//! over, or the configuration changes the same field. `stored` is their form on a disk.

pub(super) mod stored;

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::cluster::membership::{Duty, ServerAct};
use crate::config::discover::MAX_URL_BYTES;
use crate::config::{Config, Server};
use crate::process::control::{ActStatus, ServerOrder};

/// An act outlives its server by this time: a configuration that lost a server by mistake brings it back as it was.
const OUTLIVES: Duration = Duration::from_secs(600);

/// An error that lists servers lists so many.
const MAX_LISTED: usize = 10;

/// All acts in force, by cluster and URL.
#[derive(Clone, Debug, Default)]
pub(super) struct Acts {
    entries: Vec<Entry>,
    /// How often they have changed.
    version: u64,
}

/// The changes in force of one server.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    cluster: String,
    url: String,
    duty: Option<Act<Duty>>,
    weight: Option<Act<u16>>,
    is_member: Option<Act<bool>>,
    /// The configuration's values when it was read last; `None` for a server that it does not have.
    configured: Option<Configured>,
    /// Since when the configuration has lost the server.
    lost: Option<SystemTime>,
}

/// One field of a server, as an operator wants it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Act<T> {
    value: T,
    by: String,
    since: SystemTime,
    until: Option<SystemTime>,
}

/// The fields of a server that acts may change, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Configured {
    drain: bool,
    weight: u16,
}

/// An operator's order.
#[derive(Clone, Debug)]
pub(super) struct Order<'a> {
    pub(super) cluster: &'a str,
    pub(super) url: &'a str,
    pub(super) order: ServerOrder,
    /// For how long it holds.
    pub(super) lasts: Option<Duration>,
    /// The operator that gives it.
    pub(super) by: &'a str,
}

/// How an order is taken back.
#[derive(Debug)]
pub(super) struct Undo {
    cluster: String,
    url: String,
    before: FieldBefore,
    configured: Option<Configured>,
}

/// The earlier change of a field.
#[derive(Debug)]
enum FieldBefore {
    Weight(Option<Act<u16>>),
    Member(Option<Act<bool>>),
}

impl Undo {
    /// Whether both are of one field of one server.
    pub(super) fn is_of_same(&self, other: &Self) -> bool {
        let is_same_field = matches!(
            (&self.before, &other.before),
            (FieldBefore::Weight(_), FieldBefore::Weight(_))
                | (FieldBefore::Member(_), FieldBefore::Member(_))
        );
        is_same_field && self.cluster == other.cluster && self.url == other.url
    }
}

impl Acts {
    /// Takes an order.
    ///
    /// # Errors
    /// It makes no sense for this configuration; in one line, with what would.
    pub(super) fn take(&mut self, config: &Config, order: &Order<'_>, now: SystemTime) -> Result<(), String> {
        let found = configured(config, order.cluster, order.url)?;
        let is_added = self.is_added(order.cluster, order.url);
        match order.order {
            ServerOrder::Weight(0) => {
                return Err(
                    "a weight is a number from 1 to 65535; to give a server nothing, drain it".to_owned()
                );
            }
            ServerOrder::Add if found.is_some() && !self.is_hidden(order.cluster, order.url) => {
                return Err(format!(
                    "cluster \"{}\" has the server \"{}\" already",
                    order.cluster, order.url
                ));
            }
            ServerOrder::Add if found.is_some() && order.lasts.is_some() => {
                let url = order.url;
                return Err(format!(
                    "server \"{url}\" was removed: add brings it back for good, without a time limit"
                ));
            }
            ServerOrder::Add if found.is_none() => check_new(config, order)?,
            ServerOrder::Add => {}
            // Which servers sources name is not known here: any server that they could name will do.
            _ if found.is_none() && !is_added && has_sources(config, order.cluster) => {
                check_new(config, order)?;
            }
            _ if found.is_none() && !is_added => return Err(unknown(config, order)),
            _ => {}
        }
        let until = order.lasts.map(|lasts| now.checked_add(lasts).ok_or("the time limit is too long"));
        let until = until.transpose()?;
        self.version += 1;
        if order.order == ServerOrder::Remove && is_added {
            self.entries.retain(|entry| !entry.is_of(order.cluster, order.url));
            return Ok(());
        }
        let entry = self.entry(order.cluster, order.url, found);
        let by = order.by.to_owned();
        match order.order {
            ServerOrder::Drain => entry.duty = Some(Act { value: Duty::Drain, by, since: now, until }),
            ServerOrder::Maintenance => {
                entry.duty = Some(Act { value: Duty::Maintenance, by, since: now, until });
            }
            ServerOrder::Ready => entry.duty = Some(Act { value: Duty::Ready, by, since: now, until }),
            ServerOrder::Weight(value) => entry.weight = Some(Act { value, by, since: now, until }),
            ServerOrder::Add if found.is_some() => entry.is_member = None,
            ServerOrder::Add => {
                // The configuration's earlier values for such a server are over.
                (entry.configured, entry.lost) = (None, None);
                entry.is_member = Some(Act { value: true, by, since: now, until });
            }
            ServerOrder::Remove => entry.is_member = Some(Act { value: false, by, since: now, until }),
        }
        self.entries.retain(Entry::says_anything);
        Ok(())
    }

    /// Forgets what a new configuration says otherwise, and says of each what became of it.
    pub(super) fn reconcile(&mut self, config: &Config, now: SystemTime) -> Vec<String> {
        let mut said = Vec::new();
        self.version += u64::from(!self.entries.is_empty());
        self.entries.retain_mut(|entry| {
            let what = format!("cluster \"{}\": server \"{}\"", entry.cluster, entry.url);
            let Ok(found) = configured(config, &entry.cluster, &entry.url) else {
                said.push(format!("{what}: its acts end with its cluster"));
                return false;
            };
            match (found, entry.configured) {
                (None, None) => return true,
                (None, Some(_)) => {
                    entry.lost.get_or_insert(now);
                    return true;
                }
                (Some(found), before) => {
                    entry.lost = None;
                    entry.keep_what_is_new(before.unwrap_or(found), found, &what, &mut said);
                    entry.configured = Some(found);
                }
            }
            entry.says_anything()
        });
        said
    }

    /// Ends acts whose time is over: a drain becomes maintenance, all others are forgotten. Says what became of each.
    pub(super) fn expire(&mut self, now: SystemTime) -> Vec<String> {
        let mut said = Vec::new();
        self.entries.retain_mut(|entry| {
            let what = format!("cluster \"{}\": server \"{}\"", entry.cluster, entry.url);
            if let Some(duty) = entry.duty.as_mut().filter(|act| act.is_over(now)) {
                match duty.value {
                    Duty::Drain => {
                        (duty.value, duty.until) = (Duty::Maintenance, None);
                        said.push(format!("{what}: drain time is over, now in maintenance"));
                    }
                    Duty::Ready | Duty::Maintenance => {
                        entry.duty = None;
                        said.push(format!("{what}: its state is that of the configuration again"));
                    }
                }
            }
            if entry.weight.take_if(|act| act.is_over(now)).is_some() {
                said.push(format!("{what}: its weight is that of the configuration again"));
            }
            if let Some(over) = entry.is_member.take_if(|act| act.is_over(now)) {
                let is = if over.value { "removed" } else { "a server" };
                said.push(format!("{what}: is {is} again, as configured"));
                if over.value {
                    return false;
                }
            }
            let is_lost = entry.lost.is_some_and(|since| now >= since + OUTLIVES);
            if is_lost {
                said.push(format!("{what}: its acts end, it left the configuration {OUTLIVES:?} ago"));
            }
            entry.says_anything() && !is_lost
        });
        self.version += u64::from(!said.is_empty());
        said
    }

    /// When [`Acts::expire`] has something to do next.
    pub(super) fn next_end(&self) -> Option<SystemTime> {
        self.entries.iter().flat_map(Entry::ends).min()
    }

    /// For a worker of this configuration, which may never come to serve: what it says otherwise is left out.
    pub(super) fn of(&self, config: &Config, now: SystemTime) -> Vec<ServerAct> {
        let mut acts = self.clone();
        acts.reconcile(config, now);
        acts.entries.into_iter().map(Entry::into_act).collect()
    }

    /// For a worker whose configuration serves, or has served.
    pub(super) fn all(&self) -> Vec<ServerAct> {
        self.entries.iter().cloned().map(Entry::into_act).collect()
    }

    /// The order that takes back one about to be given, if a balancer may refuse that.
    pub(super) fn undo_of(&self, order: &Order<'_>) -> Option<Undo> {
        let entry = self.entries.iter().find(|entry| entry.is_of(order.cluster, order.url));
        let before = match order.order {
            ServerOrder::Weight(_) => FieldBefore::Weight(entry.and_then(|entry| entry.weight.clone())),
            ServerOrder::Add => FieldBefore::Member(entry.and_then(|entry| entry.is_member.clone())),
            ServerOrder::Drain | ServerOrder::Maintenance | ServerOrder::Ready | ServerOrder::Remove => {
                return None;
            }
        };
        let configured = entry.and_then(|entry| entry.configured);
        Some(Undo { cluster: order.cluster.to_owned(), url: order.url.to_owned(), before, configured })
    }

    /// Whether an order is to add a server that an operator has added before: it sets the time limit anew, and no more.
    pub(super) fn is_added_already(&self, order: &Order<'_>) -> bool {
        order.order == ServerOrder::Add && self.is_added(order.cluster, order.url)
    }

    /// Makes one field of a server what it was before.
    pub(super) fn undo(&mut self, undo: Undo) {
        let Undo { cluster, url, before, configured } = undo;
        self.version += 1;
        let entry = self.entry(&cluster, &url, configured);
        match before {
            FieldBefore::Weight(before) => entry.weight = before,
            FieldBefore::Member(before) => entry.is_member = before,
        }
        // All else that was said of a server goes with it.
        let is_any = entry.configured.is_some() || entry.is_member.is_some();
        if !is_any || !entry.says_anything() {
            self.entries.retain(|entry| !entry.is_of(&cluster, &url));
        }
    }

    /// Changes whenever they may have.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// For an operator.
    pub(super) fn status(&self, now: SystemTime) -> Vec<ActStatus> {
        self.entries.iter().flat_map(|entry| entry.status(now)).collect()
    }

    fn entry(&mut self, cluster: &str, url: &str, configured: Option<Configured>) -> &mut Entry {
        let idx = self.entries.iter().position(|entry| entry.is_of(cluster, url)).unwrap_or_else(|| {
            self.entries.push(Entry {
                cluster: cluster.to_owned(),
                url: url.to_owned(),
                duty: None,
                weight: None,
                is_member: None,
                configured,
                lost: None,
            });
            self.entries.len() - 1
        });
        &mut self.entries[idx]
    }

    fn is_added(&self, cluster: &str, url: &str) -> bool {
        self.member_act(cluster, url) == Some(true)
    }

    fn is_hidden(&self, cluster: &str, url: &str) -> bool {
        self.member_act(cluster, url) == Some(false)
    }

    fn member_act(&self, cluster: &str, url: &str) -> Option<bool> {
        let entry = self.entries.iter().find(|entry| entry.is_of(cluster, url))?;
        entry.is_member.as_ref().map(|act| act.value)
    }
}

impl<T> Act<T> {
    fn is_over(&self, now: SystemTime) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}

impl Entry {
    fn is_of(&self, cluster: &str, url: &str) -> bool {
        self.cluster == cluster && self.url == url
    }

    fn says_anything(&self) -> bool {
        self.duty.is_some() || self.weight.is_some() || self.is_member.is_some()
    }

    /// Takes back fields of which the configuration has a new value.
    fn keep_what_is_new(&mut self, before: Configured, now: Configured, what: &str, said: &mut Vec<String>) {
        if now.drain != before.drain && self.duty.take().is_some() {
            said.push(format!("{what}: drain = {} of the configuration counts again", now.drain));
        }
        if now.weight != before.weight && self.weight.take().is_some() {
            said.push(format!("{what}: weight = {} of the configuration counts again", now.weight));
        }
        // The configuration has it by now.
        if self.is_member.as_ref().is_some_and(|act| act.value) {
            self.is_member = None;
        }
    }

    fn ends(&self) -> impl Iterator<Item = SystemTime> {
        let acts = [
            self.duty.as_ref().and_then(|act| act.until),
            self.weight.as_ref().and_then(|act| act.until),
            self.is_member.as_ref().and_then(|act| act.until),
            self.lost.map(|since| since + OUTLIVES),
        ];
        acts.into_iter().flatten()
    }

    fn into_act(self) -> ServerAct {
        ServerAct {
            cluster: self.cluster,
            url: self.url,
            duty: self.duty.map(|act| act.value),
            weight: self.weight.map(|act| act.value),
            is_member: self.is_member.map(|act| act.value),
        }
    }

    fn status(&self, now: SystemTime) -> impl Iterator<Item = ActStatus> {
        fn one<T>(
            entry: &Entry,
            act: Option<&Act<T>>,
            what: impl Fn(&T) -> String,
            now: SystemTime,
        ) -> Option<ActStatus> {
            let act = act?;
            let seconds = |time: Duration| time.as_secs();
            Some(ActStatus {
                cluster: entry.cluster.clone(),
                url: entry.url.clone(),
                what: what(&act.value),
                by: act.by.clone(),
                age_s: now.duration_since(act.since).map_or(0, seconds),
                left_s: act.until.map(|until| until.duration_since(now).map_or(0, seconds)),
            })
        }
        let duty = |duty: &Duty| match duty {
            Duty::Ready => "ready".to_owned(),
            Duty::Drain => "drain".to_owned(),
            Duty::Maintenance => "maint".to_owned(),
        };
        let member = |is_member: &bool| if *is_member { "added".to_owned() } else { "removed".to_owned() };
        [
            one(self, self.duty.as_ref(), duty, now),
            one(self, self.weight.as_ref(), |weight| format!("weight {weight}"), now),
            one(self, self.is_member.as_ref(), member, now),
        ]
        .into_iter()
        .flatten()
    }
}

/// The configuration's values for the server of this URL, or for the name that it is an address of.
fn configured(config: &Config, cluster: &str, url: &str) -> Result<Option<Configured>, String> {
    let found = config.clusters.iter().find(|known| *known.name == *cluster);
    let found = found.ok_or_else(|| {
        let names: Vec<&str> = config.clusters.iter().map(|cluster| &*cluster.name).collect();
        format!("there is no cluster \"{cluster}\" (there are: {})", names.join(", "))
    })?;
    let of = |server: &Server| Configured { drain: server.drain, weight: server.weight };
    Ok(found.servers.iter().find(|server| server.is_named_by(url)).map(of))
}

/// Whether the URL of an order is one of a server that the cluster could have.
fn check_new(config: &Config, order: &Order<'_>) -> Result<(), String> {
    let url = order.url;
    if url.len() > MAX_URL_BYTES {
        return Err(format!("the URL of the server is longer than {MAX_URL_BYTES} bytes"));
    }
    let cluster = config.clusters.iter().find(|known| *known.name == *order.cluster);
    let server = cluster.map_or(Ok(()), |cluster| cluster.server_of(url).map(drop));
    server.map_err(|problem| format!("cluster \"{}\": server \"{url}\": {problem}", order.cluster))
}

/// Whether a cluster has servers that are not in the configuration.
fn has_sources(config: &Config, cluster: &str) -> bool {
    config.clusters.iter().any(|known| *known.name == *cluster && !known.discover.is_empty())
}

fn unknown(config: &Config, order: &Order<'_>) -> String {
    let found = config.clusters.iter().find(|known| *known.name == *order.cluster);
    let servers = found.map_or(&[][..], |cluster| &cluster.servers);
    let mut urls: Vec<&str> = servers.iter().take(MAX_LISTED).map(|server| &*server.url).collect();
    if urls.is_empty() {
        urls.push("none");
    }
    let more = match servers.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let urls = urls.join(", ");
    format!("cluster \"{}\" has no server \"{}\" (it has: {urls}{more})", order.cluster, order.url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Syntax};

    fn config(servers: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{servers}]\n[[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        config::parse("t.toml", &text, Syntax::Toml).unwrap().0
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn order<'a>(url: &'a str, order: ServerOrder) -> Order<'a> {
        Order { cluster: "c", url, order, lasts: None, by: "root" }
    }

    /// An act as URL, duty, weight and membership.
    type Fields = (String, Option<Duty>, Option<u16>, Option<bool>);

    fn of(acts: &Acts, config: &Config) -> Vec<Fields> {
        let acts = acts.of(config, at(0)).into_iter();
        acts.map(|act| (act.url, act.duty, act.weight, act.is_member)).collect()
    }

    #[test]
    fn an_act_holds_until_the_configuration_says_something_new_of_the_same_field() {
        let before = config("{ url = \"http://a\", weight = 2 }");
        let mut acts = Acts::default();
        acts.take(&before, &order("http://a", ServerOrder::Drain), at(0)).unwrap();
        acts.take(&before, &order("http://a", ServerOrder::Weight(7)), at(0)).unwrap();
        assert_eq!(acts.reconcile(&before, at(1)), Vec::<String>::new());
        let after = config("{ url = \"http://a\", weight = 3 }");
        assert_eq!(
            acts.reconcile(&after, at(2)),
            ["cluster \"c\": server \"http://a\": weight = 3 of the configuration counts again"]
        );
        assert_eq!(of(&acts, &after), [("http://a".into(), Some(Duty::Drain), None, None)]);
    }

    #[test]
    fn an_act_outlives_its_server_by_ten_minutes() {
        let (with, without) = (config("\"http://a\", \"http://b\""), config("\"http://b\""));
        let mut acts = Acts::default();
        acts.take(&with, &order("http://a", ServerOrder::Maintenance), at(0)).unwrap();
        acts.reconcile(&without, at(100));
        assert_eq!(acts.next_end(), Some(at(700)));
        acts.expire(at(699));
        assert_eq!(acts.reconcile(&with, at(699)), Vec::<String>::new());
        assert_eq!(of(&acts, &with), [("http://a".into(), Some(Duty::Maintenance), None, None)]);
        acts.reconcile(&without, at(1000));
        acts.expire(at(1600));
        assert!(of(&acts, &with).is_empty());
    }

    #[test]
    fn a_drain_for_a_time_ends_in_maintenance_and_all_else_ends_as_configured() {
        let config = config("\"http://a\"");
        let lasting =
            |url, what, seconds| Order { lasts: Some(Duration::from_secs(seconds)), ..order(url, what) };
        let mut acts = Acts::default();
        acts.take(&config, &lasting("http://a", ServerOrder::Drain, 60), at(0)).unwrap();
        acts.take(&config, &lasting("http://a", ServerOrder::Weight(9), 30), at(0)).unwrap();
        acts.take(&config, &lasting("http://n", ServerOrder::Add, 90), at(0)).unwrap();
        assert_eq!(acts.next_end(), Some(at(30)));
        assert_eq!(acts.expire(at(29)), Vec::<String>::new());
        assert_eq!(acts.expire(at(60)).len(), 2);
        let left = [
            ("http://a".into(), Some(Duty::Maintenance), None, None),
            ("http://n".into(), None, None, Some(true)),
        ];
        assert_eq!(of(&acts, &config), left);
        assert_eq!(acts.expire(at(90)).len(), 1);
        assert_eq!(of(&acts, &config), left[..1]);
    }

    #[test]
    fn a_server_of_the_file_is_hidden_until_it_is_added_and_an_added_one_goes_when_it_is_removed() {
        let config = config("\"http://a\"");
        let mut acts = Acts::default();
        let mut take = |url, what| acts.take(&config, &order(url, what), at(0)).map(|()| of(&acts, &config));
        let already = "cluster \"c\" has the server \"http://a\" already";
        assert_eq!(take("http://a", ServerOrder::Add), Err(already.to_owned()));
        let hidden = ("http://a".into(), None, None, Some(false));
        assert_eq!(take("http://a", ServerOrder::Remove), Ok(vec![hidden]));
        assert_eq!(take("http://a", ServerOrder::Add), Ok(vec![]));
        let added = ("http://n".into(), None, None, Some(true));
        assert_eq!(take("http://n", ServerOrder::Add), Ok(vec![added]));
        assert_eq!(take("http://n", ServerOrder::Remove), Ok(vec![]));
        let unknown = "cluster \"c\" has no server \"http://n\" (it has: http://a)";
        assert_eq!(take("http://n", ServerOrder::Remove), Err(unknown.to_owned()));
    }

    #[test]
    fn a_server_that_is_added_for_a_time_goes_with_all_that_was_said_of_it() {
        let config = config("\"http://a\"");
        let mut acts = Acts::default();
        let add = Order { lasts: Some(Duration::from_secs(60)), ..order("http://n", ServerOrder::Add) };
        acts.take(&config, &add, at(0)).unwrap();
        acts.take(&config, &order("http://n", ServerOrder::Weight(5)), at(0)).unwrap();
        assert_eq!(of(&acts, &config), [("http://n".into(), None, Some(5), Some(true))]);
        let said = "cluster \"c\": server \"http://n\": is removed again, as configured";
        assert_eq!((acts.expire(at(60)), of(&acts, &config)), (vec![said.to_owned()], vec![]));
        // Once it is of the configuration, this is what counts.
        acts.take(&config, &add, at(100)).unwrap();
        let with = self::config("\"http://a\", \"http://n\"");
        acts.reconcile(&with, at(110));
        assert_eq!((acts.next_end(), of(&acts, &with)), (None, vec![]));
    }

    #[test]
    fn a_server_that_is_added_again_is_there_once_and_for_the_time_that_was_said_last() {
        let config = config("\"http://a\"");
        let mut acts = Acts::default();
        let mut add = |lasts: Option<u64>, now| {
            let order =
                Order { lasts: lasts.map(Duration::from_secs), ..order("http://n", ServerOrder::Add) };
            let was_there = acts.is_added_already(&order);
            acts.take(&config, &order, at(now)).unwrap();
            let left: Vec<_> = acts.status(at(now)).into_iter().map(|act| (act.what, act.left_s)).collect();
            (was_there, left)
        };
        let added = |left| vec![("added".to_owned(), left)];
        assert_eq!(add(Some(60), 0), (false, added(Some(60))));
        assert_eq!(add(Some(90), 30), (true, added(Some(90))));
        assert_eq!(add(None, 40), (true, added(None)));
        acts.take(&config, &order("http://n", ServerOrder::Weight(3)), at(50)).unwrap();
        assert_eq!(acts.expire(at(1000)), Vec::<String>::new());
        assert_eq!(of(&acts, &config), [("http://n".into(), None, Some(3), Some(true))]);
    }

    #[test]
    fn a_server_that_left_the_configuration_can_be_added_and_stays() {
        let (with, without) = (config("\"http://a\", \"http://b\""), config("\"http://b\""));
        let mut acts = Acts::default();
        acts.take(&with, &order("http://a", ServerOrder::Weight(3)), at(0)).unwrap();
        acts.reconcile(&without, at(10));
        acts.take(&without, &order("http://a", ServerOrder::Add), at(20)).unwrap();
        assert_eq!(acts.next_end(), None);
        assert_eq!(of(&acts, &without), [("http://a".into(), None, Some(3), Some(true))]);
    }

    #[test]
    fn orders_that_make_no_sense_are_refused_and_change_nothing() {
        let config = config("\"http://a\"");
        let mut acts = Acts::default();
        let long = format!("http://{}", "a".repeat(MAX_URL_BYTES));
        for (url, what, said) in [
            ("https://n", ServerOrder::Add, "needs TLS"),
            ("n", ServerOrder::Add, "cluster \"c\": server \"n\": "),
            ("http://n#10.0.0.1", ServerOrder::Add, "cluster \"c\": server \"http://n#10.0.0.1\": "),
            ("http://n/path", ServerOrder::Add, "cluster \"c\": server \"http://n/path\": "),
            ("", ServerOrder::Add, "cluster \"c\": server \"\": "),
            (&long, ServerOrder::Add, "longer than 300 bytes"),
            ("http://a", ServerOrder::Weight(0), "drain it"),
        ] {
            let refused = acts.take(&config, &order(url, what), at(0)).unwrap_err();
            assert!(refused.contains(said), "{url}: {refused}");
        }
        let ever = Order { lasts: Some(Duration::MAX), ..order("http://a", ServerOrder::Drain) };
        assert_eq!(acts.take(&config, &ever, at(0)).unwrap_err(), "the time limit is too long");
        acts.take(&config, &order("http://a", ServerOrder::Remove), at(0)).unwrap();
        let back = Order { lasts: Some(Duration::from_secs(1)), ..order("http://a", ServerOrder::Add) };
        assert!(acts.take(&config, &back, at(0)).unwrap_err().contains("without a time limit"));
        assert_eq!(of(&acts, &config), [("http://a".into(), None, None, Some(false))]);
    }

    #[test]
    fn what_is_taken_back_is_one_field_of_one_server() {
        let config = config("\"http://a\", \"http://b\"");
        let mut acts = Acts::default();
        let take = |acts: &mut Acts, order: Order<'_>| {
            let undo = acts.undo_of(&order);
            acts.take(&config, &order, at(0)).unwrap();
            undo
        };
        take(&mut acts, order("http://a", ServerOrder::Weight(2)));
        let weight = take(&mut acts, order("http://a", ServerOrder::Weight(9))).unwrap();
        assert!(take(&mut acts, order("http://a", ServerOrder::Drain)).is_none());
        let add = take(&mut acts, order("http://n", ServerOrder::Add)).unwrap();
        let of_new = take(&mut acts, order("http://n", ServerOrder::Weight(9))).unwrap();
        assert!(!weight.is_of_same(&of_new) && !add.is_of_same(&of_new));
        acts.undo(weight);
        acts.undo(add);
        acts.undo(of_new);
        assert_eq!(of(&acts, &config), [("http://a".into(), Some(Duty::Drain), Some(2), None)]);
        take(&mut acts, order("http://b", ServerOrder::Remove));
        let back = take(&mut acts, order("http://b", ServerOrder::Add)).unwrap();
        assert_eq!(of(&acts, &config).len(), 1);
        acts.undo(back);
        assert_eq!(of(&acts, &config)[1], ("http://b".into(), None, None, Some(false)));
    }

    #[test]
    fn one_address_of_a_name_can_be_named_where_each_is_a_server() {
        let config = config("{ url = \"http://a\", resolve = \"all\" }, \"http://b\"");
        let mut acts = Acts::default();
        assert!(acts.take(&config, &order("http://a#10.0.0.1", ServerOrder::Drain), at(0)).is_ok());
        assert!(acts.take(&config, &order("http://b#10.0.0.1", ServerOrder::Drain), at(0)).is_err());
    }

    #[test]
    fn status_says_who_did_what_when_and_for_how_long() {
        let config = config("\"http://a\"");
        let mut acts = Acts::default();
        let drain = Order { lasts: Some(Duration::from_secs(60)), ..order("http://a", ServerOrder::Drain) };
        acts.take(&config, &drain, at(100)).unwrap();
        let status = acts.status(at(110));
        assert_eq!((&*status[0].what, &*status[0].by, status[0].age_s), ("drain", "root", 10));
        assert_eq!(status[0].left_s, Some(50));
    }

    #[test]
    fn names_that_do_not_exist_are_told_with_those_that_do() {
        let config = config("\"http://a\"");
        let elsewhere = Order { cluster: "d", ..order("http://a", ServerOrder::Ready) };
        let refused = Acts::default().take(&config, &elsewhere, at(0)).unwrap_err();
        assert_eq!(refused, "there is no cluster \"d\" (there are: c)");
    }
}
