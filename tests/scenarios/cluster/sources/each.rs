//! What holds for every type of source: it changes, is dead, and comes back under load, while each process is killed in turn.
//! `TRYLIST_SOURCES=60s` has it change, and be dead, for a minute each.

use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::dns::{Answer, NameServer};
use tests::eventually_within;
use tests::site::signal;
use tests::traffic::Traffic;

use super::dns::{ONE, TWO, at};
use super::http::Inventory;
use super::*;

const THREE: [u8; 4] = [127, 0, 0, 3];
/// Longer than any source pauses after a failure.
const BACK_OFF: Duration = Duration::from_secs(60);

/// Has a source name these servers, also where it was dead.
type Names = Box<dyn Fn(&[Origin])>;

/// A source, as its own test makes it.
struct Outside {
    keys: String,
    tables: String,
    names: Names,
    dies: Box<dyn Fn()>,
}

/// For how long each part lasts.
fn length() -> Duration {
    let told = std::env::var("TRYLIST_SOURCES").ok();
    let seconds = told.and_then(|text| text.trim_end_matches('s').parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Does this once, and again until the time is over.
fn for_the_time(mut step: impl FnMut()) {
    let until = Instant::now() + length();
    loop {
        step();
        if Instant::now() >= until {
            return;
        }
    }
}

/// As `answered_by`, for a source that may pause for long.
#[track_caller]
fn comes_back(site: &Site, names: &str) {
    eventually_within(BACK_OFF, "the source is well", || source(site).error.is_none().then_some(()));
    answered_by(site, names);
}

fn origins() -> [Origin; 3] {
    let one = at(ONE, 0, "one");
    let port = one.address().port();
    [one, at(TWO, port, "two"), at(THREE, port, "three")]
}

fn lives_through_everything(origins: &[Origin; 3], outside: &Outside) {
    let Outside { keys, tables, names, dies } = outside;
    let state = Said::new();
    let config = from(keys).tables(tables).top(&format!("state = {:?}", state.path())).threads(2);
    names(&origins[..2]);
    let site = Site::run(&config);
    answered_by(&site, "one two one two");
    let traffic = Traffic::start(site.address(), 2, 1);
    for_the_time(|| {
        names(&origins[1..]);
        answered_by(&site, "two three two three");
        names(&origins[..]);
        answered_by(&site, "one two three");
        names(&origins[..2]);
        answered_by(&site, "one two one two");
    });
    dies();
    source_is(&site, "a failure", |source| source.error.is_some());
    for_the_time(|| traffic.goes_on_for(50));
    let before = scout(&site);
    signal(before, Signal::KILL);
    eventually("another scout", || (scout(&site) != before).then_some(()));
    source_is(&site, "a failure of the other scout", |source| source.error.is_some());
    traffic.goes_on_for(50);
    answered_by(&site, "one two one two");
    assert_eq!(site.generation(), 1);
    names(&origins[1..]);
    comes_back(&site, "two three two three");
    traffic.ends_whole();
    // A worker dies with its connections: no load here and below.
    for is_dead in [false, true] {
        if is_dead {
            dies();
            source_is(&site, "a failure", |source| source.error.is_some());
        }
        let before = site.worker();
        signal(before, Signal::KILL);
        eventually("another worker", || (site.worker() != before).then_some(()));
        answered_by(&site, "two three two three");
    }
    names(&origins[..1]);
    comes_back(&site, "one one");
    let is_saved = |name: &str| {
        let text = fs::read_to_string(state.path().join(name)).unwrap_or_default();
        text.contains(&origins[0].url()) && !text.contains(&origins[1].url())
    };
    eventually("the answer on the disk", || {
        ["answers-0.json", "answers-1.json"].into_iter().any(is_saved).then_some(())
    });
    // The supervisor is killed, and all others with it.
    dies();
    drop(site);
    let site = Site::run(&config);
    assert_eq!(site.names(2), "one one");
    names(&origins[1..]);
    comes_back(&site, "two three two three");
}

#[test]
fn a_file_changes_dies_and_returns_while_each_process_is_killed() {
    let origins = origins();
    let said = Said::new();
    let file = said.file();
    let keys = format!("type = \"file\", path = {file:?}");
    let names = Box::new(move |origins: &[Origin]| said.name(origins));
    let dies = Box::new(move || fs::remove_file(&file).unwrap());
    lives_through_everything(&origins, &Outside { keys, tables: String::new(), names, dies });
}

#[test]
fn a_command_changes_dies_and_returns_while_each_process_is_killed() {
    let origins = origins();
    let said = Said::new();
    let [lines, pid, dead] = ["lines", "pid", "dead"].map(|name| said.path().join(name));
    let text = format!(
        "[ -e {} ] && exit 3; echo $$ > {}; exec tail -n 1 -f {}",
        dead.display(),
        pid.display(),
        lines.display()
    );
    let keys = format!("type = \"exec\", command = [\"/bin/sh\", \"-c\", {text:?}]");
    let was_dead = dead.clone();
    let names = Box::new(move |origins: &[Origin]| {
        let urls: Vec<String> = origins.iter().map(|origin| format!("{:?}", origin.url())).collect();
        let mut file = fs::File::options().create(true).append(true).open(&lines).unwrap();
        writeln!(file, "[{}]", urls.join(", ")).unwrap();
        let _ = fs::remove_file(&was_dead);
    });
    let dies = Box::new(move || {
        fs::write(&dead, "").unwrap();
        signal(fs::read_to_string(&pid).unwrap().trim().parse().unwrap(), Signal::KILL);
    });
    lives_through_everything(&origins, &Outside { keys, tables: String::new(), names, dies });
    drop(said);
}

#[test]
fn an_inventory_changes_dies_and_returns_while_each_process_is_killed() {
    let origins = origins();
    let inventory = Rc::new(Inventory::new());
    let keys = inventory.keys("");
    let names = Box::new({
        let inventory = Rc::clone(&inventory);
        move |origins: &[Origin]| inventory.names(origins)
    });
    // It closes every connection.
    let dies = Box::new(move || inventory.answers(""));
    lives_through_everything(&origins, &Outside { keys, tables: String::new(), names, dies });
}

#[test]
fn a_name_changes_dies_and_returns_while_each_process_is_killed() {
    let origins = origins();
    let dns = Rc::new(NameServer::new());
    let keys = format!("type = \"dns\", url = \"http://each.test:{}\"", origins[0].address().port());
    let tables = dns.config();
    let names = Box::new({
        let dns = Rc::clone(&dns);
        move |origins: &[Origin]| {
            let addresses = origins.iter().map(|origin| origin.address().ip()).collect();
            dns.set("each.test", Answer::Addresses(addresses, 0));
        }
    });
    let dies = Box::new(move || {
        dns.set("each.test", Answer::Silence);
    });
    lives_through_everything(&origins, &Outside { keys, tables, names, dies });
}
