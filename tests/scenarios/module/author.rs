//! The tools for authors of modules: `module new` writes one that works, `module test` tells a good one from a bad one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use tests::artifacts;
use tests::command::trylist;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::site::Site;

/// What `module test` says of a file, line by line, and its exit code.
struct Report {
    lines: Vec<String>,
    code: Option<i32>,
}

impl Report {
    /// The verdict on a check, with what it says of it.
    #[track_caller]
    fn of(&self, check: &str) -> &str {
        let line = self.lines.iter().find(|line| line.get(9..).is_some_and(|rest| rest.starts_with(check)));
        line.unwrap_or_else(|| panic!("no check {check:?} in {:#?}", self.lines))
    }

    #[track_caller]
    fn passed(&self) {
        let n_bad = self.lines.iter().filter(|line| line.starts_with("FAILED")).count();
        assert_eq!((n_bad, self.code), (0, Some(0)), "{:#?}", self.lines);
    }

    /// It failed, in this check, with these words.
    #[track_caller]
    fn failed(&self, check: &str, why: &str) {
        let line = self.of(check);
        assert!(line.starts_with("FAILED ") && line.contains(why), "{why:?}: {line}");
        assert_eq!(self.code, Some(4));
    }
}

fn test(file: &Path, arguments: &[&str]) -> Report {
    let output = trylist(&[&["module", "test", file.to_str().unwrap()], arguments].concat());
    Report {
        lines: String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect(),
        code: output.status.code(),
    }
}

fn broken(fault: &str) -> Report {
    test(&artifacts::broken(fault), &[])
}

const OFFERS: &str = "offers every endpoint once, then ends";
const MEMORY: &str = "frees what has ended";

// ---- module test ---------------------------------------------------------------------------------------------------

#[test]
fn every_module_of_ours_keeps_the_contract() {
    for id in artifacts::module_ids() {
        let promised: &[&str] = match id.as_str() {
            // It looks at neither weights nor states, as the patch of 2003.
            "proxy_lb" => &[],
            // Turns, exact but for where the sequence is cut off.
            "round_robin" | "by_busyness" => &["--skips-unavailable", "--weighted", "0.001"],
            "backend_load" => &["--skips-unavailable", "--weighted", "0.01"],
            // Draws, and hashes as good as draws: the smallest share is 500 of 20,000 with a deviation of 22.
            "random" | "least_request" | "peak_ewma" => &["--skips-unavailable", "--weighted", "0.18"],
            "hash" | "ip_hash" | "maglev" | "rendezvous" | "ring_hash" => {
                &["--skips-unavailable", "--weighted", "0.18", "--keyed"]
            }
            // The order of the file; times; bytes of the past: no share of the requests follows from their weights.
            "first" | "least_time" | "by_traffic" => &["--skips-unavailable"],
            id => panic!("say how the choices of {id} follow from weights"),
        };
        // Far more than it takes, but where many tests run at once.
        test(&artifacts::module(&id), &[promised, &["--time-limit", "300"]].concat()).passed();
    }
    test(&artifacts::c_module(), &["--skips-unavailable", "--setting", "start_header=x-start"]).passed();
    test(&artifacts::third_party(), &["--setting", "header=x-cost", "--setting", "quota=0"]).passed();
}

#[test]
fn the_report_has_a_line_for_each_check_and_says_how_long_calls_take() {
    let file = artifacts::c_module();
    let report = test(&file, &["--setting", "first=1"]);
    assert_eq!(report.lines[0], format!("c_example 1.0.0, in C: {}", file.display()));
    assert_eq!(report.lines[1], "ok       loads");
    // A module that refuses its settings for some sizes is not at fault.
    let builds = "builds with its settings: but not for clusters of 1 (first: expected the index of an endpoint, from 0)";
    assert!(report.of(builds).starts_with("ok "));
    assert_eq!(report.lines.last().unwrap(), "27 checks: 25 ok, 0 failed, 2 skipped");
    assert_eq!(report.lines.len(), 29);
    assert!(report.of("follows effective weights").starts_with("skipped  "));
    assert!(report.of("keeps each key on its endpoint").starts_with("skipped  "));
    let time = report.of("time of a request's calls");
    for part in
        [" ns at 3 endpoints", " ns at 100 endpoints", " ns at 10000 endpoints", " ns after a failed try"]
    {
        assert!(time.contains(part), "{time}");
    }
}

#[test]
fn what_is_asked_for_beyond_the_contract_is_tried() {
    let report = test(&artifacts::module("proxy_lb"), &["--weighted", "0.1", "--skips-unavailable"]);
    report.failed("follows effective weights", "its weight's share is ");
    report.failed("ends when endpoints are unavailable", "answered endpoint 0 of 2, which is not available");
    let report = test(&artifacts::module("round_robin"), &["--keyed"]);
    report.failed(
        "keeps each key on its endpoint",
        "key 0 of 2 endpoints had 0, and has 1 when it is asked again",
    );
}

#[test]
fn settings_come_from_a_file_or_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    fs::write(&file, "# one that is wrong\nfirst = -1\n").unwrap();
    let module = artifacts::c_module();
    let why = "refused to build with 3 endpoints: first: expected the index of an endpoint, from 0";
    let report = test(&module, &["--settings", file.to_str().unwrap()]);
    report.failed("builds with its settings", why);
    assert_eq!(report.of(OFFERS), format!("skipped  {OFFERS}: it does not build"));
    test(&module, &["--setting", "first=-1"]).failed("builds with its settings", why);
    test(&module, &["--setting", "first=one"]).failed("builds with its settings", why);
    fs::write(&file, "first = \n").unwrap();
    let refused =
        trylist(&["module", "test", module.to_str().unwrap(), "--settings", file.to_str().unwrap()]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), said.lines().count()), (Some(3), 1), "{said}");
    assert!(said.starts_with(&format!("{}:1: not valid TOML", file.display())), "{said}");
}

#[test]
fn a_file_that_is_no_module_fails_where_it_is_loaded() {
    let report = broken("no-root");
    report.failed("loads", "not a balancer module");
    assert_eq!(report.of(OFFERS), format!("skipped  {OFFERS}: it does not load"));
    broken("null-call").failed("loads", "required call next is null");
}

#[test]
fn a_module_that_refuses_its_settings_is_not_tried_further() {
    let report = broken("refuses-settings");
    report.failed("builds with its settings", "choices: is missing");
    broken("panics-in-build").failed("builds with its settings", "src/lib.rs:14: cannot be built");
}

#[test]
fn wrong_answers_are_told_in_words() {
    broken("answers-out-of-range").failed(OFFERS, "answered endpoint 1000000 of 1");
    broken("answers-tried-again").failed(OFFERS, "answered endpoint 0 twice (tried: [0])");
    broken("answers-tried-again").failed("skips what the host has tried", "which the host had tried before");
    broken("exhausts-early").failed(OFFERS, "offered [0], expected [0, 1]");
    broken("always-busy").failed(OFFERS, "answered Busy, but no endpoint is full");
    broken("answers-unknown-kind").failed(OFFERS, "answered the unknown kind 99");
    broken("odd-status").failed(OFFERS, "next: returned status 99");
}

#[test]
fn panics_are_told_with_their_place() {
    broken("panics-in-next").failed(OFFERS, "next: panicked at panics-in-next/src/lib.rs:20: cannot choose");
    broken("panics-in-load-balance").failed(OFFERS, "src/lib.rs:18: cannot balance");
}

#[test]
fn a_module_that_ends_the_process_is_a_line_in_each_check() {
    for (fault, why) in [
        ("segfaults", "the process was ended by SIGSEGV"),
        ("aborts", "the process was ended by SIGABRT"),
        ("exits", "the module ended the process, with exit code 0"),
    ] {
        let report = broken(fault);
        report.failed(OFFERS, why);
        report.failed("works on several threads", why);
        assert_eq!(report.lines.last().unwrap(), "27 checks: 4 ok, 22 failed, 1 skipped");
    }
}

#[test]
fn a_module_that_never_returns_is_given_up() {
    let report = test(&artifacts::broken("never-returns"), &["--call-limit", "2"]);
    report.failed(OFFERS, "next did not return within 2 seconds");
    assert_eq!(report.lines.last().unwrap(), "27 checks: 3 ok, 1 failed, 23 skipped");
    let report = test(&artifacts::broken("hangs-in-finish"), &["--call-limit", "2"]);
    report.failed(OFFERS, "finish did not return within 2 seconds");
    // A check may take long without any call that does.
    let report = test(&artifacts::broken("never-returns"), &["--time-limit", "2"]);
    report.failed(OFFERS, "did not return within 2 seconds");
}

#[test]
fn memory_that_is_not_given_back_is_found() {
    broken("leaks-requests").failed(MEMORY, "bytes for each request that has ended");
    broken("leaks-instances").failed(MEMORY, "bytes for each instance of 200 endpoints that has ended");
}

#[test]
fn a_failed_check_is_repeated_by_the_command_that_the_report_names() {
    let file = artifacts::broken("byte-indices");
    let report = test(&file, &["--seed", "7"]);
    let again = report.lines.iter().find_map(|line| line.strip_prefix("again: ")).expect("a command");
    assert!(again.ends_with(&format!("--seed 7 --only '{MANY}'")), "{again}");
    let report = test(&file, &["--seed", "7", "--only", MANY]);
    report.failed(MANY, "twice");
    assert_eq!(report.of(OFFERS), format!("skipped  {OFFERS}: not requested (--only)"));
}

#[test]
fn a_balancer_of_subsets_may_end_early() {
    let report = test(&artifacts::broken("exhausts-early"), &["--may-end-early", "--only", OFFERS]);
    report.passed();
}

#[test]
fn the_model_in_cplusplus_keeps_the_contract() {
    match artifacts::cpp_module() {
        Some(file) => test(&file, &["--skips-unavailable"]).passed(),
        None => println!("SKIPPED: no C++ compiler `c++` on this machine"),
    }
}

const MANY: &str = "reaches every endpoint of 300 and of 10,000";
const PROCESS: &str = "leaves its process as it was";
const LOADS: &str = "loads";
const BUILDS: &str = "builds with its settings";

/// Everything in `tests/broken`, the check that finds what is wrong with it, and words of its line.
const BROKEN: [(&str, &str, &str); 54] = [
    ("aborts", OFFERS, "the process was ended by SIGABRT"),
    ("always-busy", OFFERS, "answered Busy, but no endpoint is full"),
    ("answers-out-of-range", OFFERS, "answered endpoint 1000000 of 1"),
    ("answers-tried-again", OFFERS, "answered endpoint 0 twice"),
    ("answers-unknown-kind", OFFERS, "answered the unknown kind 99"),
    ("busy-when-one-is-full", "waits only while all are full", "expected [1]; of those that are not full"),
    ("byte-indices", MANY, "twice"),
    ("changes-folder", PROCESS, "it changed the working directory from "),
    ("changes-handlers", PROCESS, "it changed the handlers of signals 11 "),
    ("divides-by-weights", "ends when weights are 0", "the process was ended by SIGFPE"),
    ("exhausts-early", OFFERS, "offered [0], expected [0, 1]"),
    ("exits", OFFERS, "the module ended the process, with exit code 0"),
    ("hides-layout", LOADS, "built without the layout of its root"),
    (
        "huge-trylist",
        LOADS,
        "its trylist has 1048576 bytes, expected at most 65536; keep the rest on the heap",
    ),
    ("info-of-another-abi", LOADS, "its table has ABI 1.0, its info 1.3; rebuild the whole module"),
    ("info-panics", LOADS, "panicked in info"),
    ("info-refuses", LOADS, "info returned status 1"),
    ("lacks-a-function", LOADS, "cannot be linked: undefined symbol: this_is_defined_nowhere"),
    ("keeps-texts", "keeps no text past its call", "a text is the host's once its call has returned"),
    ("leaks-descriptors", PROCESS, "it left 10 descriptors open or replaced"),
    ("leaks-instances", MEMORY, "bytes for each instance of 200 endpoints that has ended"),
    ("leaks-requests", MEMORY, "bytes for each request that has ended"),
    ("leaks-saves", MEMORY, "bytes for each save that has ended"),
    ("loses-turns", "loses no turn between threads", "updates are lost between threads"),
    ("lowers-limits", PROCESS, "it changed a limit: Max open files 500"),
    ("needs-addresses", "takes endpoints without an address", "an endpoint has no IPv4 address"),
    ("needs-clients", "takes every request", "the process was ended by SIGILL"),
    ("newer-minor", LOADS, "built for ABI 1.1, this host provides 1.0"),
    ("no-root", LOADS, "not a balancer module"),
    ("null-call", LOADS, "required call next is null; define it"),
    ("null-info", LOADS, "required call info is null; define it"),
    ("null-table", LOADS, "does not point to a table of calls"),
    ("odd-alignment", LOADS, "its trylist has alignment 24, expected a power of two up to 16"),
    ("odd-id", LOADS, "its ID \"Round-Robin\" is not snake_case"),
    ("odd-status", OFFERS, "next: returned status 99"),
    ("odd-text", LOADS, "its version is not UTF-8"),
    ("other-abi-stable", LOADS, "built with abi_stable 0.12, this host has 0.11"),
    ("other-layout", LOADS, "wire field Endpoint.size is 4 bytes at offset 4, here 4 bytes at offset 0"),
    ("other-major", LOADS, "built for ABI 2.0, this host provides 1.0"),
    ("other-root", LOADS, "its calls differ from this host's: its root differs"),
    ("panics-in-build", BUILDS, "src/lib.rs:14: cannot be built"),
    ("panics-in-load-balance", OFFERS, "src/lib.rs:18: cannot balance"),
    ("panics-in-next", OFFERS, "next: panicked at panics-in-next/src/lib.rs:20: cannot choose"),
    ("panics-in-root", LOADS, "its root could not be made: it panicked"),
    ("prints", "prints nothing", "printed \"building\" while "),
    ("refuses-settings", BUILDS, "choices: is missing"),
    ("saves-too-much", "saves, restores and follows a reload", "wrote more than 65536 KiB"),
    ("segfaults", OFFERS, "the process was ended by SIGSEGV"),
    ("short-table", LOADS, "its table of calls has 64 bytes, expected at least 104"),
    ("starts-threads", PROCESS, "it started threads: 1 more than before"),
    ("table-itself", LOADS, "does not point to a table of calls"),
    ("text-nowhere", LOADS, "its version is not a readable text of at most 512 bytes"),
    ("wants-ascii", "takes every request", "load_balance: returned status 1"),
    ("wrong-abi", LOADS, "built for ABI 2.0, this host provides 1.0"),
];

/// Modules in `tests/broken` that are good unless a setting breaks them, or that have a test of their own.
const NOT_TRIED: [&str; 12] = [
    "fault",
    "hangs-in-finish",
    "healthy",
    "misbehaves",
    "misbehaves-anew",
    "never-returns",
    "records-calls",
    "refuses-members",
    "runs-as",
    "saves-rubbish",
    "text-without-end",
    "waits",
];

#[test]
fn every_broken_module_fails_with_the_right_words() {
    for (fault, check, why) in BROKEN {
        let report = broken(fault);
        report.failed(check, why);
        if check == LOADS {
            // And nothing is said of what could not be tried.
            let tried = report.lines.iter().filter(|line| line.starts_with("ok ")).count();
            assert_eq!(tried, 0, "{fault}: {:#?}", report.lines);
        }
    }
    broken("text-without-end").failed(LOADS, "its version is not a readable text of at most 512 bytes");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("broken");
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let names = entries
            .filter(|path| path.join("Cargo.toml").exists() || path.extension().is_some_and(|e| e == "c"));
        names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for name in [names(&folder), names(&folder.join("c"))].concat() {
        let is_known = BROKEN.iter().any(|(fault, ..)| *fault == name) || NOT_TRIED.contains(&&*name);
        assert!(is_known, "{name} is not tried by module test");
    }
}

// ---- what authors copy ---------------------------------------------------------------------------------------------

/// The smallest module and the one in C, which authors begin with, go on after a reload with the server whose turn it is.
#[test]
fn models_for_authors_go_on_with_the_next_server_after_a_reload() {
    for (id, file) in [("proxy_lb", artifacts::module("proxy_lb")), ("c_example", artifacts::c_module())] {
        let origins = ["a", "b", "c"].map(Origin::named);
        let site = Site::run(&Proxy::over(&origins).module_file(id, &file));
        assert_eq!(site.names(4), "a b c a", "{id}");
        site.reload_wholly();
        assert_eq!(site.names(2), "b c", "{id}");
    }
}

// ---- module new ----------------------------------------------------------------------------------------------------

/// `module new` in a folder that had nothing in it.
fn new(name: &str, lang: &str) -> (tempfile::TempDir, PathBuf, Output) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join(name.replace('_', "-"));
    let output = trylist(&["module", "new", name, "--lang", lang, "--path", folder.to_str().unwrap()]);
    (parent, folder, output)
}

/// Does what it says to do next, line by line, but for the last, which runs a proxy on a port that may be another's.
#[track_caller]
fn follow_the_steps(folder: &Path, output: &Output) {
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{said}");
    let steps: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let (last, steps) = steps.split_last().unwrap();
    assert_eq!(*last, "trylist run -c sample.toml");
    assert!(
        steps[0].starts_with("cd ") && steps.iter().any(|line| line.starts_with("trylist module test ")),
        "{said}"
    );
    artifacts::shell_in(folder, &steps.join("\n"));
}

/// Passes its test with this setting too, is taken by its own sample, and serves.
#[track_caller]
fn works(id: &str, folder: &Path, module: &Path, setting: &str, names: &str) {
    test(module, &["--skips-unavailable", "--setting", setting]).passed();
    let checked = trylist(&["check", "-c", folder.join("sample.toml").to_str().unwrap()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let origins = ["a", "b", "c"].map(Origin::named);
    let settings = format!("settings = {{ {setting} }}");
    let proxy = Proxy::over(&origins).module_file(id, module).in_cluster(&settings).start();
    assert_eq!(proxy.names(6), names);
}

#[test]
fn a_new_module_in_rust_builds_passes_and_serves() {
    let (_parent, folder, output) = new("my_runs", "rust");
    follow_the_steps(&folder, &output);
    works("my_runs", &folder, &folder.join("target/release/libmod_my_runs.so"), "run = 2", "a a b b c c");
}

#[test]
fn a_new_module_in_c_builds_passes_and_serves() {
    let (_parent, folder, output) = new("my_turns", "c");
    follow_the_steps(&folder, &output);
    works("my_turns", &folder, &folder.join("libmod_my_turns.so"), "first = 1", "b c a b c a");
}

#[test]
fn a_new_module_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str]| {
        let output = trylist(&[&["module", "new"], arguments].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        said
    };
    let there = folder.path().to_str().unwrap();
    assert!(refused(&["Least-Used"]).contains("a module ID is in snake_case"));
    assert_eq!(
        refused(&["mine", "--path", there]),
        format!("trylist: {there}: already exists; name another folder with --path DIR\n")
    );
    let elsewhere = folder.path().join("mine");
    let elsewhere = elsewhere.to_str().unwrap();
    assert_eq!(
        refused(&["mine", "--path", elsewhere, "--lb-api", there]),
        format!("trylist: {there}: sources of lb-api not found\n")
    );
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        0,
        "nothing is written where something is wrong"
    );
}
