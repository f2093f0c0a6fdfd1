//! Modules that fail while they save.

use super::*;

/// The reload does not wait for what a dead worker would have saved.
#[test]
fn a_module_that_dies_as_it_saves_does_not_keep_the_next_generation() {
    let origin = Origin::named("a");
    let site = Site::run(&misbehaving([&origin]).in_cluster("settings = { save = \"segfault\" }"));
    site.reload();
    site.running().logs("died by SIGSEGV while inside module \"misbehaves\" 1.0.0, cluster \"app\"");
    assert_eq!(site.running().logged(&["did not save within"]), [""; 0]);
    assert_eq!(site.names(2), "a a");
}

/// The supervisor does without an answer that is late: no request and no reload waits for longer than it is patient, and
/// the thread goes with its process.
#[track_caller]
fn does_not_end_its_save(misdeed: &str, line: &str) {
    let origin = Origin::named("a");
    let settings = format!("settings = {{ save = \"{misdeed}\" }}");
    let site = Site::run(&misbehaving([&origin]).in_cluster(&settings));
    let traffic = Traffic::start(site.address(), 1, 1);
    site.reload_with(&misbehaving([&origin]));
    site.running().logs(line);
    traffic.goes_on_for(10);
    site.wait_for_only(2);
    traffic.ends_whole();
    assert_eq!(site.running().logged(&["begins with what was saved"]), [""; 0]);
    assert_eq!(site.status().quarantine, []);
}

const UNSAVED: &str = "balancers did not save within 5s (a thread is inside module \"misbehaves\" 1.0.0, cluster \"app\"); the new generation starts without the latest state";

#[test]
fn a_module_that_blocks_as_it_saves_keeps_the_next_generation_for_a_moment() {
    does_not_end_its_save("block", UNSAVED);
}

#[test]
fn a_module_that_spins_as_it_saves_keeps_the_next_generation_for_a_moment() {
    does_not_end_its_save("spin", UNSAVED);
}

#[test]
fn a_module_that_panics_as_it_saves_does_not_keep_the_next_generation() {
    does_not_end_its_save("panic", "the balancer's state is not saved: the module failed in save");
}
