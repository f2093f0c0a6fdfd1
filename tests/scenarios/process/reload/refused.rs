//! A refused reload changes nothing.

use super::*;

/// This configuration is refused, and the generation that serves does not notice.
#[track_caller]
fn changes_nothing(builder: &Builder, origin: &Origin, exit: i32, lines: &[&str]) {
    let site = Site::run(&over([origin]));
    let before = site.serving();
    let traffic = Traffic::start(site.address(), 2, 1);
    site.folder().write(&builder.text());
    let (code, said) = site.fails_to_reload();
    assert_eq!((code, said.len()), (Some(exit), lines.len() + 1), "{said:#?}");
    for (said, expected) in said.iter().zip(lines) {
        assert!(said.contains(expected), "{expected}: {said:#?}");
        site.running().logs(expected);
    }
    assert_eq!(said.last().unwrap(), "unchanged: generation 1 keeps serving");
    site.running().logs("new generation failed; unchanged: generation 1 keeps serving");
    traffic.goes_on_for(30);
    traffic.ends_whole();
    let after = site.wait_for_only(1);
    assert_eq!(
        (after.pid, after.config_sha256, after.modules),
        (before.pid, before.config_sha256, before.modules)
    );
    site.reload_with(&over([origin]));
}

#[test]
fn a_configuration_that_is_refused_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).in_cluster("modul = 1\nqueue = -1");
    changes_nothing(&builder, &origin, 3, &["unknown key \"modul\"", "queue"]);
}

/// Not even where the control socket is can be read from it as a whole.
#[test]
fn a_configuration_that_is_no_toml_changes_nothing() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    site.folder().write("[[listener]\naddress =");
    let (code, said) = site.fails_to_reload();
    assert_eq!((code, said.len()), (Some(3), 2), "{said:#?}");
    assert!(said[0].starts_with(&format!("{}:2: ", site.folder().config())), "{said:#?}");
    assert_eq!(site.generation(), 1);
}

#[test]
fn a_module_file_that_is_missing_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).module_file("round_robin", Path::new("/no/such/module.so"));
    changes_nothing(&builder, &origin, 4, &["/no/such/module.so"]);
}

#[test]
fn a_module_that_refuses_its_settings_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).broken("refuses-settings").in_cluster("settings = { a = 1 }");
    changes_nothing(&builder, &origin, 4, &["cluster \"app\""]);
}

#[test]
fn a_module_that_panics_when_it_is_built_changes_nothing() {
    let origin = Origin::named("a");
    changes_nothing(&over([&origin]).broken("panics-in-build"), &origin, 4, &["cannot be built"]);
}

#[test]
fn an_address_in_use_changes_nothing() {
    let (origin, other) = (Origin::named("a"), Origin::named("b"));
    let listener = format!("[[listener]]\naddress = \"{}\"", other.address());
    let said = format!("listener \"{}\": address in use", other.address());
    changes_nothing(&over([&origin]).tables(&listener), &origin, 1, &[&said]);
}

#[test]
fn a_generation_that_is_not_ready_in_time_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).broken("misbehaves").in_cluster("settings = { build = \"block\" }");
    let builder = builder.top("supervision.start_timeout = \"300ms\"");
    let said =
        "generation 2 is not ready after 300ms; a thread is inside module \"misbehaves\", cluster \"app\"";
    changes_nothing(&builder, &origin, 1, &[said]);
}

#[test]
fn an_access_log_that_cannot_be_opened_changes_nothing() {
    let origin = Origin::named("a");
    let builder = over([&origin]).tables("[access_log]\npath = \"/no/such/folder/access.log\"");
    changes_nothing(&builder, &origin, 1, &["access log \"/no/such/folder/access.log\": "]);
}
