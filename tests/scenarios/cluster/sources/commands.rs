//! A command that writes an answer a line.

use std::io::Write as _;

use rustix::process::Signal;
use tests::site::{proc_status, process, signal, wait_for_end_of};
use tests::traffic::Traffic;

use super::*;

/// Of this shell script.
fn script(text: &str) -> Builder {
    from(&format!(
        "type = \"exec\", command = [\"/bin/sh\", \"-c\", {text:?}], environment = {{ TOLD = \"yes\" }}"
    ))
}

#[test]
fn a_command_that_goes_on_changes_servers_line_by_line() {
    let origins = ["a", "b"].map(Origin::named);
    let said = Said::new();
    let lines = said.path().join("lines");
    let say = |text: &str| {
        let mut file = fs::File::options().create(true).append(true).open(&lines).unwrap();
        writeln!(file, "{text}").unwrap();
    };
    say(&format!("[{:?}]", origins[0].url()));
    let command =
        format!("type = \"exec\", command = [\"/usr/bin/tail\", \"-n\", \"+1\", \"-f\", {lines:?}]");
    let site = Site::run(&from(&command));
    answered_by(&site, "a a");
    let traffic = Traffic::start(site.address(), 2, 0);
    say(&format!("[{:?}, {:?}]", origins[0].url(), origins[1].url()));
    answered_by(&site, "a b a b");
    say("[{ \"url\": 7 }]");
    source_fails(&site, "line 1, column 11: url: invalid type: integer `7`, expected a string");
    answered_by(&site, "a b a b");
    say(&format!("{{ \"servers\": [{:?}] }}", origins[1].url()));
    answered_by(&site, "b b");
    traffic.ends_whole();
}

#[test]
fn a_command_that_crashes_changes_nothing_and_is_started_again() {
    let origin = Origin::named("a");
    let said = Said::new();
    let runs = said.path().join("runs");
    let text = format!(
        "echo run >> {}; echo '[{:?}]'; echo \"oops $TOLD$HOME\" >&2; exit 3",
        runs.display(),
        origin.url()
    );
    let site = Site::run(&script(&text));
    let status = source_fails(&site, "/bin/sh: ended (exit status: 3); next attempt in ");
    assert_eq!(status.members, Some(1));
    answered_by(&site, "a a");
    site.running().logs("source \"exec\": its command says: oops yes");
    eventually("another run", || (fs::read_to_string(&runs).unwrap().lines().count() > 1).then_some(()));
}

#[test]
fn a_command_that_is_not_there_or_floods_costs_nothing() {
    let origin = Origin::named("a");
    let site = Site::run(&from("type = \"exec\", command = [\"/no/such\"]"));
    source_fails(&site, "/no/such: ended (exit status: 1); next attempt in ");
    assert_eq!(site.get("/").status(), 503);
    // As fast as it can, on both outputs.
    let flood = format!("yes '[{:?}]' & yes oops >&2", origin.url());
    site.reload_with(&script(&flood));
    answered_by(&site, "a a");
    let traffic = Traffic::start(site.address(), 1, 0);
    traffic.goes_on_for(100);
    site.reload_with(&script("yes | tr -d '\\n'"));
    source_fails(&site, "a line is longer than 32 MiB");
    // The source of this name has told of that server before.
    answered_by(&site, "a a");
    traffic.ends_whole();
}

#[test]
fn a_command_and_its_children_die_with_the_scout() {
    let origin = Origin::named("a");
    let said = Said::new();
    let pids = said.path().join("pids");
    let text = format!("echo $$ > {}; echo '[{:?}]'; exec sleep 1000", pids.display(), origin.url());
    let site = Site::run(&script(&text));
    answered_by(&site, "a a");
    let pid: u32 = fs::read_to_string(&pids).unwrap().trim().parse().unwrap();
    let command = process(pid).unwrap();
    signal(scout(&site), Signal::KILL);
    wait_for_end_of(&command);
    answered_by(&site, "a a");
    // An orderly end takes all of its group along.
    let children = said.path().join("children");
    let text = format!("sleep 1000 & echo $! > {}; echo '[{:?}]'; wait", children.display(), origin.url());
    site.reload_with(&script(&text));
    let child =
        eventually("its child", || fs::read_to_string(&children).ok()?.trim().parse().ok().and_then(process));
    site.reload_with(&Proxy::over([&origin]).named("app").module("round_robin"));
    wait_for_end_of(&child);
}

/// Its scout leaves them to the supervisor. The shell itself reads: what it starts hears all anyhow.
#[test]
fn a_command_hears_every_signal() {
    let text = "while read key value; do [ $key != SigBlk: ] || echo blocked $value >&2; done </proc/self/status; \
                exec sleep 1000";
    let site = Site::run(&script(text));
    site.running().logs("its command says: blocked 0000000000000000");
}

#[test]
fn last_words_of_a_command_that_has_closed_its_output_are_logged() {
    let text = "exec >&-; i=0; while [ $i -lt 100 ]; do /bin/true; i=$((i+1)); done; echo going >&2; /bin/true; \
                echo \"bye $TOLD\" >&2; exit 3";
    let site = Site::run(&script(text));
    source_fails(&site, "/bin/sh: ended (exit status: 3)");
    site.running().logs("its command says: bye yes");
}

#[test]
fn a_scout_is_confined_as_workers_are_unless_a_source_is_a_command() {
    let origin = Origin::named("a");
    let said = Said::new();
    said.name([&origin]);
    let filters = |process: u32| proc_status(process, "Seccomp_filters");
    let site = Site::run(&said.proxy(""));
    answered_by(&site, "a a");
    assert_eq!(filters(scout(&site)), filters(site.worker()));
    site.reload_with(&script(&format!("echo '[{:?}]'; exec sleep 1000", origin.url())));
    answered_by(&site, "a a");
    let is_open = || (filters(scout(&site)) == filters(site.running().pid())).then_some(());
    eventually("a scout that may start commands", is_open);
    assert_eq!(source(&site).error, None);
}
