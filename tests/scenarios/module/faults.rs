//! A table of what modules can do wrong, each set off in a proxy that serves, with what becomes of it. Afterwards the proxy answers,
//! ends in order, and leaves no process.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tests::origin::Origin;
use tests::proxy::{Builder, Proxy};
use tests::site::{Site, children, spoken};
use tests::{artifacts, eventually};

use Outcome::{Answered, Dies, Ends, Hangs, Refused, Replaced, Says};

/// Outcome of a fault.
enum Outcome {
    /// The request is answered, by the same worker.
    Answered,
    /// The same, and the log says this.
    Says(&'static str),
    /// Another worker takes the place of the one that died; the log says this.
    Dies(&'static str),
    /// Another worker takes the place of the one that hangs, and this one ends, though a request of the thread is under way.
    Hangs,
    /// The reload that sets it off is refused with this, and the generation before serves on.
    Refused(&'static str),
    /// A reload to a module without the fault sets it off; it goes on all the same, and the log says this.
    Replaced(&'static str),
    /// The stop sets it off; the proxy ends in order all the same, and the log says this once.
    Ends(&'static str),
}

const AFTER_ALL: &str = "had nothing left to do and died by SIGSEGV in code of module \"fault\"";

const CLOSING: &str =
    "its worker ended because descriptors of the host were closed while inside module \"fault\"";

/// Call, what it does there, and the outcome.
const TABLE: &[(&str, &str, Outcome)] = &[
    // Ends of the process, in each call.
    ("load_balance", "segv", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("next", "segv", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("finish", "segv", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("drop_trylist", "segv", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("explain", "segv", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("build", "segv", Refused("died by SIGSEGV while inside module \"fault\"")),
    ("build", "_exit_0", Refused("exited unexpectedly with code 0 while inside module \"fault\"")),
    ("build", "exit_0", Refused("exited unexpectedly with code 0 while inside module \"fault\"")),
    ("report_failure", "segv", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("report_failure", "_exit_7", Dies("exited unexpectedly with code 7 while inside module \"fault\"")),
    ("observe", "segv", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("observe", "_exit_7", Dies("exited unexpectedly with code 7 while inside module \"fault\"")),
    ("constructor", "segv", Refused("died by SIGSEGV while inside module \"fault\"")),
    ("constructor", "_exit_7", Refused("exited unexpectedly with code 7 while inside module \"fault\"")),
    ("info", "segv", Refused("died by SIGSEGV while inside module \"fault\"")),
    ("info", "_exit_7", Refused("exited unexpectedly with code 7 while inside module \"fault\"")),
    ("save", "segv", Replaced("died by SIGSEGV while inside module \"fault\"")),
    ("save", "_exit_7", Replaced("exited unexpectedly with code 7 while inside module \"fault\"")),
    ("drop_balancer", "segv", Replaced("died by SIGSEGV while inside module \"fault\"")),
    ("drop_balancer", "_exit_7", Replaced("exited unexpectedly with code 7 while inside module \"fault\"")),
    ("destructor", "segv", Replaced(AFTER_ALL)),
    ("destructor", "_exit_7", Replaced("exited unexpectedly with code 7 in code of module \"fault\"")),
    // The same at the end of all.
    (
        "drop_balancer",
        "segv",
        Ends("had nothing left to do and died by SIGSEGV while inside module \"fault\""),
    ),
    ("destructor", "segv", Ends(AFTER_ALL)),
    ("destructor", "abort_", Ends("died by SIGABRT, perhaps in a destructor of a module (\"fault\")")),
    ("destructor", "_exit_7", Ends("exited unexpectedly with code 7 in code of module \"fault\"")),
    (
        "drop_balancer",
        "spin",
        Ends("hangs in drop_balancer of module \"fault\" 1.0.0, cluster \"app\"; killed"),
    ),
    ("destructor", "wait_", Ends("hangs, perhaps in a destructor of a module (\"fault\"); killed")),
    // And in each way.
    ("next", "bus", Dies("died by SIGBUS while inside module \"fault\"")),
    ("next", "ill", Dies("died by SIGILL while inside module \"fault\"")),
    ("next", "fpe", Dies("died by SIGFPE while inside module \"fault\"")),
    ("next", "abort_", Dies("died by SIGABRT while inside module \"fault\"")),
    ("next", "overflow", Dies("died by SIGSEGV while inside module \"fault\"")),
    ("next", "exit_0", Dies("exited unexpectedly with code 0 while inside module \"fault\"")),
    ("next", "_exit_0", Dies("exited unexpectedly with code 0 while inside module \"fault\"")),
    ("next", "_exit_7", Dies("exited unexpectedly with code 7 while inside module \"fault\"")),
    ("next", "handled_segv", Dies("exited unexpectedly with code 0 while inside module \"fault\"")),
    ("next", "default_segv", Dies("died by SIGSEGV, probably by module \"fault\"")),
    ("next", "ignore_segv", Dies("died by SIGSEGV, probably by module \"fault\"")),
    ("next", "block_segv", Dies("died by SIGSEGV, probably by module \"fault\"")),
    ("next", "no_altstack", Dies("died by SIGSEGV, probably by module \"fault\"")),
    ("next", "free_twice", Dies("died by SIGABRT while inside module \"fault\"")),
    ("next", "thread_segv", Dies("died by SIGSEGV in code of module \"fault\"")),
    ("next", "thread__exit", Dies("exited unexpectedly with code 0 in code of module \"fault\"")),
    // Of these nobody can be blamed.
    ("next", "kill_self", Dies("died by SIGKILL")),
    ("next", "thread_abort", Dies("died by SIGABRT")),
    ("next", "thread_exit", Dies("exited unexpectedly with code 0")),
    ("next", "alarm_", Dies("died by SIGALRM")),
    // Calls that do not return.
    ("load_balance", "spin", Hangs),
    ("next", "spin", Hangs),
    ("next", "wait_", Hangs),
    ("finish", "spin", Hangs),
    ("drop_trylist", "wait_", Hangs),
    ("explain", "wait_", Hangs),
    ("next", "log_loop", Hangs),
    ("next", "spin_segv", Hangs),
    ("next", "refault", Hangs),
    ("next", "end_thread", Hangs),
    ("report_failure", "spin", Hangs),
    ("observe", "wait_", Hangs),
    ("constructor", "spin", Refused("is not ready after 2s; a thread is inside module \"fault\"")),
    ("info", "wait_", Refused("is not ready after 2s; a thread is inside module \"fault\"")),
    ("save", "wait_", Replaced("balancers did not save within 5s (a thread is inside module \"fault\"")),
    (
        "drop_balancer",
        "spin",
        Replaced("hangs in drop_balancer of module \"fault\" 1.0.0, cluster \"app\"; killed"),
    ),
    ("destructor", "spin", Replaced("hangs, perhaps in a destructor of a module (\"fault\"); killed")),
    // Calls that the system refuses.
    ("report_failure", "fork_pause", Says("fork: EPERM")),
    ("report_failure", "no_files", Says("setrlimit: EPERM")),
    ("observe", "fork_pause", Says("fork: EPERM")),
    ("observe", "no_files", Says("setrlimit: EPERM")),
    ("constructor", "fork_pause", Answered),
    ("constructor", "no_files", Answered),
    ("info", "fork_pause", Answered),
    ("info", "no_files", Answered),
    ("save", "fork_pause", Replaced("fork: EPERM")),
    ("save", "no_files", Replaced("setrlimit: EPERM")),
    ("drop_balancer", "fork_pause", Replaced("fork: EPERM")),
    ("drop_balancer", "no_files", Replaced("setrlimit: EPERM")),
    ("destructor", "fork_pause", Replaced("generation 1 has ended")),
    ("destructor", "no_files", Replaced("generation 1 has ended")),
    ("next", "strict_seccomp", Answered),
    ("next", "fork_pause", Answered),
    ("next", "fork_twice", Answered),
    ("next", "system_", Answered),
    ("next", "exec_", Answered),
    ("next", "write_file", Answered),
    ("next", "trace_parent", Answered),
    ("next", "stop_parent", Answered),
    ("next", "term_group", Answered),
    ("next", "unshare_", Answered),
    ("next", "no_files", Answered),
    ("next", "chdir_", Answered),
    // Descriptors of the host's.
    ("constructor", "close_some", Refused(CLOSING)),
    ("info", "close_some", Refused(CLOSING)),
    ("build", "close_some", Refused(CLOSING)),
    ("constructor", "close_all", Refused(CLOSING)),
    ("info", "close_all", Refused(CLOSING)),
    ("build", "close_all", Refused(CLOSING)),
    // Wrong answers.
    ("next", "odd_kind", Answered),
    ("next", "far_index", Answered),
    ("next", "odd_status", Answered),
    ("load_balance", "odd_status", Answered),
    // Slow, and more and more.
    ("next", "burn_10ms", Answered),
    ("next", "sleep_10ms", Answered),
    ("next", "leak_64m", Answered),
    ("next", "log_10000", Answered),
    ("report_failure", "log_10000", Answered),
    ("observe", "log_10000", Answered),
    ("save", "log_10000", Replaced(" lines of the module were left out")),
];

fn proxy(origins: &[&Origin], at: &str, does: &str) -> Builder {
    // Before there are settings it is compiled in.
    let macros = match at {
        "constructor" | "info" | "destructor" => vec![format!("{}={does}", at.to_uppercase())],
        _ => Vec::new(),
    };
    let macros: Vec<&str> = macros.iter().map(String::as_str).collect();
    let patience = if matches!(does, "spin" | "wait_") && !macros.is_empty() { "2s" } else { "60s" };
    Proxy::over(origins.iter().copied())
        .named("app")
        .threads(2)
        .module_file("fault", &artifacts::fault(&macros))
        .in_cluster(&format!("settings = {{ at = \"{at}\", does = \"{does}\" }}"))
        .top(&format!("supervision.start_timeout = \"{patience}\""))
        .top("explain.allow = [\"127.0.0.1\"]\nsupervision.module_time_limit = \"200ms\"\ntimeouts.drain = \"120s\"")
}

#[track_caller]
fn becomes(at: &str, does: &str, outcome: &Outcome) {
    let (dead, origin) = (Origin::dead(), Origin::named("a"));
    // The first server is asked first.
    let origins = if at == "report_failure" { vec![&dead, &origin] } else { vec![&origin] };
    let first = match outcome {
        Refused(_) => proxy(&origins, "never", "segv"),
        _ => proxy(&origins, at, does),
    };
    let site = Site::run(&first);
    let boom = "GET /boom HTTP/1.1\r\nHost: test\r\nX-Trylist-Explain: 1\r\n\r\n";
    let mut client = site.connect();
    match outcome {
        Answered | Says(_) => {
            assert_eq!(client.send(boom).reply().text(), "a");
            assert_eq!(site.generation(), 1);
            if let Says(said) = outcome {
                site.running().logs(said);
            }
        }
        Dies(said) => {
            client.send(boom);
            site.running().logs(said);
            eventually("the next generation", || (site.generation() > 1).then_some(()));
        }
        Hangs => {
            client.send(boom);
            site.running().logs("its worker (pid ");
            // Long before its drain would end.
            site.wait_for_only(2);
            let what = if does == "end_thread" { "has ended inside module" } else { "hangs inside module" };
            assert!(!site.running().logged(&[what, "\"fault\""]).is_empty());
        }
        Refused(said) => {
            site.folder().write(&proxy(&origins, at, does).text());
            let (code, lines) = site.fails_to_reload();
            assert!(code == Some(1) && lines[0].contains(said), "{lines:#?}");
            assert_eq!(site.generation(), 1);
        }
        Replaced(said) => {
            // An idle connection would keep the old worker from its end.
            client.send("GET /arm HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").reply();
            site.reload_with(&proxy(&origins, "never", "segv"));
            site.running().logs(said);
            site.wait_for_only(2);
        }
        Ends(_) => {
            client.send("GET /arm HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").reply();
        }
    }
    drop(client);
    assert_eq!(site.get("/").text(), "a");
    assert_eq!(spoken(&site.folder().command("stop", &[])).0, Some(0));
    let session = site.running().pid();
    let (code, said) = site.end();
    assert_eq!(code, Some(0), "{said}");
    if let Ends(expected) = outcome {
        assert_eq!(said.matches(expected).count(), 1, "{said}");
    }
    assert!(children(session).is_empty());
}

#[test]
fn each_fault_has_its_outcome() {
    const AT_ONCE: usize = 4;
    artifacts::fault(&[]);
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((at, does, outcome)) = TABLE.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = std::panic::catch_unwind(|| becomes(at, does, outcome));
                    if result.is_err() {
                        failed.lock().unwrap().push(format!("{at}:{does}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "not as the table says: {failed:?}");
}
