//! Configurations that cannot run: what is said, all of it in one go, and that nothing is left behind.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use tests::artifacts;
use tests::command::{Running, command, trylist};
use tests::origin::Origin;
use tests::proxy::Proxy;

/// What `check` says of this file, whose name is left out, and its exit code.
fn check(name: &str, text: &str) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, text).unwrap();
    let output = trylist(&["check", "-c", file.to_str().unwrap()]);
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8_lossy(&output.stderr).replace(&*folder.path().to_string_lossy(), "");
    (said, output.status.code())
}

#[test]
fn every_problem_of_a_file_is_named_in_one_run() {
    let (said, code) = check(
        "site.toml",
        "[[listener]]
address = \"127.0.0.1:8080\"
adress = \"x\"
[load_module]
round_robin = \"libmod_round_robin.so\"
[[cluster]]
name = \"empty\"
servers = []
[[cluster]]
name = \"app\"
module = \"round_robbin\"
servers = [\"http://127.0.0.1:1\"]
[[route]]
path = \"/\"
cluster = \"ap\"
",
    );
    let expected = [
        ("/site.toml:3: ", "adress", "address"),
        ("/site.toml:6: ", "empty", "no server"),
        ("/site.toml:11: ", "round_robbin", "round_robin"),
        ("/site.toml:15: ", "\"ap\"", "\"app\""),
    ];
    assert_eq!((said.lines().count(), code), (expected.len(), Some(3)), "{said}");
    for ((place, wrong, right), line) in expected.into_iter().zip(said.lines()) {
        assert!(line.starts_with(place) && line.contains(wrong) && line.contains(right), "{line}");
    }
}

#[test]
fn httpd_lines_are_blamed_by_their_number() {
    let (said, code) = check(
        "site.conf",
        "Listen 127.0.0.1:8080\nLoadModule proxy_lb_module modules/mod_proxy_lb.so\n\
         LBServerCluster a http://127.0.0.1:1\nLBProxyPas / a\nLBProxyPass / b\n",
    );
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("/site.conf:4: ") && said.contains("LBProxyPas"), "{said}");
    assert!(said.contains("/site.conf:5: "), "{said}");
}

/// Keys of an unknown section were called missing, before the section itself was named.
#[test]
fn a_file_for_httpds_own_balancer_is_told_what_to_write() {
    let (said, code) = check(
        "site.conf",
        "Listen 8080
<VirtualHost *:80>
  LoadModule proxy_lb_module modules/mod_proxy_lb.so
  <Proxy balancer://shop>
    BalancerMember http://127.0.0.1:7100 route=a
    ProxySet stickysession=ROUTEID
  </Proxy>
  ProxyPass /x balancer://shop/
</VirtualHost>
",
    );
    let expected = [
        ("/site.conf:2: <VirtualHost *:80>: ", "(remove the two lines around its content)"),
        (
            "/site.conf:4: <Proxy balancer://shop>: ",
            "(write LBServerCluster shop URL for each BalancerMember)",
        ),
        ("/site.conf:8: ProxyPass /x balancer://shop/: ", "(write LBProxyPass /x shop)"),
    ];
    assert_eq!((said.lines().count(), code), (expected.len(), Some(3)), "{said}");
    for ((wrong, right), line) in expected.into_iter().zip(said.lines()) {
        assert!(line.starts_with(wrong) && line.ends_with(right), "{line}");
    }
}

#[test]
fn a_rule_for_a_header_that_frames_is_refused_however_it_is_spelt() {
    for name in ["Content-Length", "Content_Length", "transfer_encoding", "Keep_Alive", "Max_Forwards"] {
        let origin = Origin::named("a");
        for direction in ["request_headers", "response_headers"] {
            let rule = format!("path = \"/\"\n{direction} = {{ remove = [{name:?}] }}");
            let (said, code) = check("site.toml", &Proxy::over([&origin]).route(&rule).text());
            assert_eq!((said.lines().count(), code), (1, Some(3)), "{said}");
            assert!(said.contains(name), "{said}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let output = trylist(&["check", "-c", "/nowhere/site.toml"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "/nowhere/site.toml: cannot be read: file not found\n");
}

#[test]
fn a_module_that_is_not_there_is_another_exit_code() {
    let (said, code) = check(
        "site.toml",
        "[[listener]]\naddress = \"127.0.0.1:8080\"\n[load_module]\nx = \"libmod_x.so\"\n\
         [[cluster]]\nname = \"a\"\nservers = [\"http://127.0.0.1:1\"]\n[[route]]\npath = \"/\"\ncluster = \"a\"\n",
    );
    assert_eq!(code, Some(4), "{said}");
    assert!(said.starts_with("/site.toml:4: module \"x\": libmod_x.so: not found; looked for "), "{said}");
}

#[test]
fn a_module_that_is_not_there_is_named_beside_other_errors() {
    let (said, code) = check(
        "site.toml",
        "[[listener]]\nadress = \"127.0.0.1:8080\"\n[load_module]\nx = \"libmod_x.so\"\ny = \"\"\n\
         [[cluster]]\nname = \"a\"\nmodule = \"x\"\nservers = [\"http://127.0.0.1:1\"]\n[[route]]\npath = \"/\"\n\
         cluster = \"a\"\n",
    );
    let lines: Vec<_> = said.lines().collect();
    assert_eq!((code, lines.len()), (Some(3), 3), "{said}");
    assert!(lines[0].starts_with("/site.toml:2: ") && lines[0].contains("adress"), "{said}");
    assert!(lines[1].starts_with("/site.toml:5: module \"y\": the file's name is empty"), "{said}");
    assert!(
        lines[2].starts_with("/site.toml:4: module \"x\": libmod_x.so: not found; looked for "),
        "{said}"
    );
}

#[test]
fn readiness_that_needs_an_unknown_cluster_is_named() {
    let admin = "[admin]\naddress = \"127.0.0.1:0\"\nready_needs = [\"a\", \"b\"]\n";
    let (said, code) = check("site.toml", &(lacking("", "access.log") + admin));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("admin: ready_needs: no cluster \"b\" ("), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_log_that_cannot_be_is_named() {
    for (log, wrong) in [
        ("format = \"xml\"", "log.format: \"xml\" is not one of \"text\" and \"json\""),
        ("level = \"loud\"", "log.level: invalid level \"loud\"; use error, warn, info, debug, trace or off"),
        ("file = \"a.log\"\nsyslog = \"/dev/log\"", "log.syslog: the log goes to log.file already"),
        ("file = \"access.log\"", "log.file: \"access.log\" is the file of access_log.path, too"),
        ("file = \"\"", "log.file: is empty"),
        ("fille = \"a\"", "unknown key \"fille\""),
        ("file = \"none/error.log\"", "/none/error.log\": its folder does not exist; create it first"),
    ] {
        let (said, code) = check("site.toml", &format!("{}[log]\n{log}\n", lacking("", "access.log")));
        assert!(code.is_some_and(|code| code > 0) && said.contains(wrong), "{log}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// A configuration that is right, of files and accounts that this machine does not have.
fn lacking(top: &str, log: &str) -> String {
    format!(
        "{top}\n[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\nrandom = {:?}\n[[cluster]]\nname = \"a\"\n\
         servers = [\"http://127.0.0.1:1\"]\n[[route]]\npath = \"/\"\ncluster = \"a\"\n[access_log]\npath = {log:?}\n",
        artifacts::module("random")
    )
}

#[test]
fn check_refuses_what_a_start_would_not_come_past() {
    let text = lacking("user = \"no-such-user\"\npid_file = \"none/pid\"", "none/access.log");
    let is_root = rustix::process::geteuid().is_root();
    let is_of_root = |line: &&str| line.contains("there is no user \"no-such-user\"");
    for command in ["check", "run"] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        let control = format!("control = {:?}\n", folder.path().join("site.sock"));
        let address = format!("unix:{}", folder.path().join("front.sock").display());
        let listener = format!("[[listener]]\naddress = {address:?}\nowner = \"no-such-owner\"\n");
        std::fs::write(&file, control + &text + &listener).unwrap();
        let output = trylist(&[command, "-c", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).replace(&*folder.path().to_string_lossy(), "");
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        // A user that is not root keeps its account, and only `check` warns.
        assert_eq!(said.lines().filter(is_of_root).count(), usize::from(is_root), "{command}: {said}");
        let lines: Vec<_> = said.lines().filter(|line| !is_of_root(line)).collect();
        assert_eq!(lines.len(), 3, "{command}: {said}");
        assert!(lines[0].ends_with("there is no user \"no-such-owner\""), "{command}: {said}");
        let why = "its folder does not exist; create it first";
        assert_eq!(lines[1], format!("access log \"/none/access.log\": {why}"), "{command}: {said}");
        assert_eq!(lines[2], format!("pid_file \"/none/pid\": {why}"), "{command}: {said}");
    }
}

/// The supervisor creates the folder of the control socket, and a pid file may stand beside that.
#[test]
fn a_folder_that_a_start_creates_is_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (file, created) = (folder.path().join("site.toml"), folder.path().join("created"));
    let top = format!("control = {:?}\npid_file = \"created/pid\"", created.join("site.sock"));
    std::fs::write(&file, lacking(&top, "created/access.log")).unwrap();
    let output = trylist(&["check", "-c", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let running = Running::start(&["run", "-c", file.to_str().unwrap()]);
    running.address();
    assert_eq!(std::fs::read_to_string(created.join("pid")).unwrap(), format!("{}\n", running.pid()));
    running.signal(Signal::TERM);
    assert_eq!(running.end().0, Some(0));
}

/// `run` becomes that user before it opens a module. Without one, `check` lends it no rights of root unless it is told to.
#[test]
fn check_runs_code_of_modules_as_the_user_that_the_configuration_names() {
    const NOBODY: &str = "65534";
    const OTHER: &str = "65533";
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become somebody");
        return;
    }
    let (origin, folder) = (Origin::named("a"), tempfile::tempdir().unwrap());
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    // Only root can read the module's file; that is who reads it.
    let file = folder.path().join("runs_as.so");
    std::fs::copy(artifacts::broken("runs-as"), &file).unwrap();
    std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let site = folder.path().join("site.toml");
    let as_other = format!("user = \"{OTHER}\"\ngroup = \"{OTHER}\"");
    for (n, (top, more, user)) in
        [(as_other.as_str(), None, OTHER), ("", None, NOBODY), ("", Some("--as-root"), "0")]
            .into_iter()
            .enumerate()
    {
        let opened_as = folder.path().join(format!("opened-as-{n}"));
        std::fs::create_dir(&opened_as).unwrap();
        std::fs::set_permissions(&opened_as, Permissions::from_mode(0o777)).unwrap();
        // The module writes down who it is.
        let builder =
            Proxy::over([&origin]).module_file("runs_as", &file).top("supervision.sandbox = \"off\"");
        std::fs::write(&site, builder.top(top).text()).unwrap();
        let mut check = command(&["check", "-c", site.to_str().unwrap()]);
        let output = check.args(more).env("RUNS_AS", &opened_as).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let users: Vec<_> =
            std::fs::read_dir(&opened_as).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(users, [user]);
    }
}

#[test]
fn check_makes_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (file, log) = (folder.path().join("site.toml"), folder.path().join("access.log"));
    std::fs::write(&file, lacking("pid_file = \"site.pid\"", log.to_str().unwrap())).unwrap();
    let output = trylist(&["check", "-c", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn settings_that_a_module_refuses_are_blamed_by_their_line() {
    let origin = Origin::named("a");
    let builder = Proxy::over([&origin]).broken("refuses-settings").in_cluster("settings = { choices = 3 }");
    let line = 1 + builder.text().lines().position(|line| line.starts_with("settings")).unwrap();
    let error = builder.try_start().expect_err("its settings are refused").to_string();
    assert!(
        error.contains(&format!("test.toml:{line}: ")) && error.contains("3 is not what it wants"),
        "{error}"
    );
    assert!(error.contains("nothing is"), "both problems: {error}");
}

#[test]
fn a_module_of_another_id_is_refused() {
    let origin = Origin::named("a");
    let file = artifacts::module("random");
    let error = Proxy::over([&origin]).module_file("rondom", &file).try_start().expect_err("it is not it");
    assert!(error.to_string().ends_with("is module \"random\"; load it by that ID"), "{error}");
}

#[test]
fn addresses_in_use_are_all_named() {
    let taken = [Origin::named("a"), Origin::named("b")];
    let text = Proxy::over(&taken).text();
    let text = text.replacen("127.0.0.1:0", &taken[0].address().to_string(), 1).replacen(
        "127.0.0.1:0",
        &taken[1].address().to_string(),
        1,
    );
    let error = Proxy::of("test.toml", &text).expect_err("they are taken").to_string();
    assert_eq!(error.lines().count(), 2, "{error}");
    for (line, origin) in error.lines().zip(&taken) {
        assert!(line.contains(&origin.address().to_string()) && line.contains("in use"), "{line}");
        assert!(line.starts_with("test.toml:"), "{line}");
    }
}
