//! Commands that open modules do so in a process apart: a module that ends it, hangs in it or writes is what they say then.

use std::process::Output;

use tests::artifacts;
use tests::command::trylist;
use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Folder, spoken};

fn checked(builder: &Builder, more: &[&str]) -> (String, Output) {
    let folder = Folder::with(&builder.text());
    let output = trylist(&[&["check", "-c", &folder.config()], more].concat());
    (folder.config(), output)
}

/// With this compiled into the module.
fn with(fault: &str, origin: &Origin) -> Builder {
    Proxy::over([origin]).named("app").module_file("fault", &artifacts::fault(&[fault]))
}

#[test]
fn a_check_does_not_pass_where_a_module_ends_it() {
    let origin = Origin::named("a");
    for (fault, how) in [
        ("CONSTRUCTOR=exit_0", "opened: it ended the process (exit code 0)"),
        ("CONSTRUCTOR=_exit_0", "opened: it ended the process (exit code 0)"),
        ("INFO=segv", "opened: it ended the process (SIGSEGV)"),
        ("DESTRUCTOR=abort_", "a module: it ended the process (SIGABRT)"),
    ] {
        let (config, output) = checked(&with(fault, &origin), &[]);
        let (code, said, complained) = spoken(&output);
        let named = if fault.starts_with("DESTRUCTOR") { "" } else { "module \"fault\", " };
        assert_eq!((code, said.as_str()), (Some(4), ""), "{fault}");
        assert_eq!(complained, format!("{config}: {named}{how}\n"));
    }
    let built = with("X", &origin).in_cluster("settings = { at = \"build\", does = \"segv\" }");
    let (config, output) = checked(&built, &[]);
    let said = "module \"fault\", built for cluster \"app\": it ended the process (SIGSEGV)";
    assert_eq!(spoken(&output).2, format!("{config}: {said}\n"));
}

/// Among them those that the process would say so by.
#[test]
fn a_check_and_an_inspection_name_a_module_that_closes_descriptors() {
    let origin = Origin::named("a");
    let what = "it closed descriptors of the host\n";
    let (config, output) = checked(&with("INFO=close_all", &origin), &[]);
    let complained = format!("{config}: module \"fault\", opened: {what}");
    assert_eq!(spoken(&output), (Some(4), String::new(), complained));
    let built = with("X", &origin).in_cluster("settings = { at = \"build\", does = \"close_some\" }");
    let (config, output) = checked(&built, &[]);
    let (code, _, complained) = spoken(&output);
    assert!(complained.contains("a module has closed descriptors of the host: 3 ("), "{complained}");
    assert!(complained.ends_with(&format!("{config}: module \"fault\", built for cluster \"app\": {what}")));
    assert_eq!(code, Some(4));
    let file = artifacts::fault(&["CONSTRUCTOR=close_all"]);
    let (code, _, complained) = spoken(&trylist(&["module", "inspect", file.to_str().unwrap()]));
    assert_eq!((code, complained), (Some(4), format!("{}: {what}", file.display())));
}

#[test]
fn a_check_ends_though_a_module_does_not() {
    let origin = Origin::named("a");
    let hangs = with("CONSTRUCTOR=spin", &origin).top("supervision.start_timeout = \"1s\"");
    let (config, output) = checked(&hangs, &[]);
    let (code, _, complained) = spoken(&output);
    assert_eq!(code, Some(4));
    assert_eq!(complained, format!("{config}: module \"fault\", opened: it did not return within 1s\n"));
}

#[test]
fn an_inspection_says_what_became_of_a_module() {
    let file = artifacts::fault(&["CONSTRUCTOR=exit_0"]);
    let (code, said, complained) = spoken(&trylist(&["module", "inspect", file.to_str().unwrap()]));
    assert_eq!((code, said.as_str()), (Some(4), ""));
    assert_eq!(complained, format!("{}: it ended the process (exit code 0)\n", file.display()));
}

/// Output of a module is no part of ours, whenever it comes.
#[test]
fn a_module_that_prints_is_taken_and_spoils_no_json() {
    let origin = Origin::named("a");
    let (_, output) = checked(&with("CONSTRUCTOR=print_", &origin), &["--json"]);
    let (code, said, complained) = spoken(&output);
    let object: serde_json::Value = serde_json::from_str(&said).expect("one object");
    assert_eq!((code, &object["ok"]), (Some(0), &true.into()), "{complained}");
    assert!(complained.contains('{'), "the author sees it: {complained}");
}

/// Without the sandbox a module may fork, and its child may hold the output.
#[test]
fn a_process_that_a_module_leaves_behind_holds_nobody_up() {
    let origin = Origin::named("a");
    for how in ["fork_pause", "fork_twice"] {
        let settings = format!("settings = {{ at = \"build\", does = \"{how}\" }}");
        let forks = with("X", &origin).in_cluster(&settings).top("supervision.sandbox = \"off\"");
        let (config, output) = checked(&forks, &[]);
        let (code, said, complained) = spoken(&output);
        assert_eq!((code, said.as_str()), (Some(4), ""), "{how}: {complained}");
        let told = format!("{config}: a module: it left a process behind\n");
        assert!(complained.ends_with(&told), "{how}: {complained}");
    }
}
