//! A debugger on a module of a running worker.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use tests::artifacts;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::site::Site;

/// What the debugger does: it stops at a line of the module's source, shows the way there, and lets the worker go.
const STEPS: [&str; 6] = [
    "set pagination off",
    "set breakpoint pending on",
    "break c_example.c:next",
    "commands\nsilent\nbacktrace 1\ndetach\nquit\nend",
    "echo ready\\n",
    "continue",
];

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
