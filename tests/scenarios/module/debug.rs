//! A debugger on a module of a running worker.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use tests::artifacts;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::site::{Folder, Site, spoken};

/// Steps of the debugger. It stops at a line of the module's source, shows the way there, and lets the worker go.
const STEPS: [&str; 6] = [
    "set pagination off",
    "set breakpoint pending on",
    "break c_example.c:next",
    "commands\nsilent\nbacktrace 1\ndetach\nquit\nend",
    "echo ready\\n",
    "continue",
];

/// Names of the files that a worker has mapped.
fn mapped(site: &Site) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", site.worker())).unwrap();
    maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(str::to_owned).collect()
}

#[test]
fn copies_of_modules_are_files_where_a_folder_is_named_for_them() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let key = format!("module_files = {:?}", folder.path());
    let proxy = Proxy::over([&origin]).module_file("c_example", &artifacts::c_module()).top(&key);
    let site = Site::run(&proxy);
    let kept = || -> Vec<String> {
        let files = std::fs::read_dir(folder.path()).unwrap();
        files.map(|file| file.unwrap().path().display().to_string()).collect()
    };
    let [file] = &kept()[..] else { panic!("{:?}", kept()) };
    assert!(file.contains("/c_example-") && mapped(&site).contains(file), "{file}: {:?}", mapped(&site));
    site.reload_wholly();
    assert_eq!(kept(), std::slice::from_ref(file), "generations share it");
    assert!(mapped(&site).contains(file));
    // Nobody is served by what somebody has put in its place.
    let spoiled = file.clone();
    std::fs::remove_file(&spoiled).unwrap();
    std::fs::write(&spoiled, "no module").unwrap();
    site.reload_wholly();
    assert_eq!(site.names(1), "a");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (_, said) = site.fails_to_reload();
    assert!(said[0].contains("code is kept only where nobody else can change it"), "{said:?}");
}

#[test]
fn a_check_writes_no_copies() {
    let origin = Origin::named("a");
    let folder = tempfile::tempdir().unwrap();
    let checked = |files: &Path| {
        let key = format!("module_files = {files:?}");
        let proxy = Proxy::over([&origin]).module_file("c_example", &artifacts::c_module()).top(&key);
        spoken(&Folder::with(&proxy.text()).command("check", &[]))
    };
    let (code, _, complained) = checked(folder.path());
    assert_eq!((code, folder.path().read_dir().unwrap().count()), (Some(0), 0), "{complained}");
    let (code, _, complained) = checked(&folder.path().join("missing"));
    assert!(code == Some(4) && complained.contains("cannot be kept as"), "{code:?} {complained}");
}

/// The debugger opens the module by the path that the worker opened it by.
#[test]
fn a_debugger_stops_in_a_modules_source() {
    if Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("SKIPPED: gdb is not installed");
        return;
    }
    let origin = Origin::named("a");
    let proxy = Proxy::over([&origin]).module_file("c_example", &artifacts::c_module());
    let site = Site::run(&proxy.threads(1));
    let script = site.folder().file("steps.gdb");
    std::fs::write(&script, STEPS.join("\n")).unwrap();
    let mut debugger = Command::new("gdb")
        .args(["-q", "-batch", "-nx", "-p", &site.worker().to_string(), "-x"])
        .arg(&script)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(debugger.stdout.take().unwrap());
    let mut line = String::new();
    while !line.ends_with("ready\n") {
        line.clear();
        if said.read_line(&mut line).unwrap() == 0 {
            println!("SKIPPED: gdb may not attach to a process here");
            debugger.wait().unwrap();
            return;
        }
    }
    assert_eq!(site.names(1), "a");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    debugger.wait().unwrap();
    assert!(rest.contains("next (") && rest.contains("c_example.c:"), "{rest}");
    assert_eq!(site.names(1), "a", "the worker goes on");
}
