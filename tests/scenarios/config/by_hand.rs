//! Comforts of writing configurations: several files, variables, what `check` can print, completions and manuals.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use tests::client::Client;
use tests::command::{command, trylist};
use tests::eventually;
use tests::origin::Origin;
use tests::proxy::Proxy;
use tests::site::{Site, spoken};

#[test]
fn a_site_of_several_files_and_variables_runs_and_reloads() {
    let (origin, other) = (Origin::named("a"), Origin::named("b"));
    let text = Proxy::over([&origin]).top("include = [\"sites/*.toml\"]").route("path = \"/a\"").text();
    let site = Site::of(&format!("{text}[access_log]\npath = \"access.log\"\nformat = \"json\"\n"));
    // The file came after the start, so a pattern had nothing to match.
    assert_eq!(site.get("/b").status(), 404);
    fs::create_dir(site.folder().file("sites")).unwrap();
    let cluster = format!(
        "[[cluster]]\nname = \"b\"\nmodule = \"proxy_lb\"\nservers = [\"{}\"]\n\
         [[route]]\npath = \"${{NO_SUCH_NAME:-/b}}\"\ncluster = \"b\"\n",
        other.url()
    );
    fs::write(site.folder().file("sites/b.toml"), cluster).unwrap();
    site.reload();
    assert_eq!([site.get("/a").text(), site.get("/b").text()], ["a", "b"]);
}

#[test]
fn check_prints_json_with_file_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    let name = file.to_str().unwrap();
    let origin = Origin::named("a");
    let text = Proxy::over([&origin]).text();
    fs::write(&file, format!("{text}[limits]\nheaders = 0\n")).unwrap();
    let (code, stdout, stderr) = spoken(&trylist(&["check", "--json", name]));
    let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let error = &object["errors"][0];
    assert_eq!((code, stderr, &object["ok"]), (Some(3), String::new(), &false.into()));
    assert_eq!((error["file"].as_str(), &error["column"]), (Some(name), &11.into()), "{error}");
    assert!(error["message"].as_str().unwrap().starts_with("limits.headers: 0 is not"), "{error}");
    fs::write(&file, text).unwrap();
    let (code, stdout, _) = spoken(&trylist(&["check", "--json", "-c", name]));
    let object: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, &object["summary"]["servers"], &object["errors"]),
        (Some(0), &1.into(), &serde_json::json!([]))
    );
}

#[test]
fn check_reads_standard_input_and_the_named_variable() {
    let origin = Origin::named("a");
    let text = Proxy::over([&origin]).text();
    let mut check = command(&["check", "-c", "-"]);
    let mut child =
        check.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(format!("core_dumps = 0\n{text}").as_bytes()).unwrap();
    let (code, _, stderr) = spoken(&child.wait_with_output().unwrap());
    assert_eq!(
        (code, stderr.starts_with("<stdin>:1: core_dumps: expected a boolean")),
        (Some(3), true),
        "{stderr}"
    );
    let mut child = check.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let (code, stdout, stderr) = spoken(&child.wait_with_output().unwrap());
    assert_eq!((code, stdout.starts_with("-: ok: ")), (Some(0), true), "{stdout}{stderr}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site.toml");
    fs::write(&file, text).unwrap();
    let (code, stdout, stderr) = spoken(&command(&["check"]).env("TRYLIST_CONFIG", &file).output().unwrap());
    assert_eq!((code, stdout.contains("site.toml: ok: ")), (Some(0), true), "{stderr}");
}

#[test]
fn what_check_dumps_is_a_configuration_with_its_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let (file, dumped) = (folder.path().join("site.toml"), folder.path().join("dumped.toml"));
    let origin = Origin::named("a");
    let sticky = "sticky = { cookie = \"s\", secret = \"not to be seen anywhere\" }";
    fs::write(&file, Proxy::over([&origin]).in_cluster(sticky).text()).unwrap();
    let (code, stdout, stderr) = spoken(&trylist(&["check", "--dump", file.to_str().unwrap()]));
    assert_eq!((code, stderr), (Some(0), String::new()));
    assert!(stdout.contains("connect_timeout = \"5s\"") && !stdout.contains("not to be seen"), "{stdout}");
    fs::write(&dumped, stdout.replace("(hidden)", "sixteen bytes at least")).unwrap();
    let (code, _, stderr) = spoken(&trylist(&["check", dumped.to_str().unwrap()]));
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn shells_and_manuals_know_every_command() {
    let (_, script, _) = spoken(&trylist(&["completions", "bash"]));
    let (_, page, _) = spoken(&trylist(&["man"]));
    for command in ["reload", "reopen", "check"] {
        assert!(script.contains(command) && page.contains(command), "{command}");
    }
    let folder = tempfile::tempdir().unwrap();
    let (code, _, stderr) = spoken(&trylist(&["man", folder.path().to_str().unwrap()]));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(folder.path().join("trylist-reload.1").exists());
    let (_, version, _) = spoken(&trylist(&["-V"]));
    assert!(version.contains("(commit ") && version.contains("module ABI 1."), "{version}");
}

#[test]
fn a_json_log_has_the_request_and_reopens_by_command() {
    let origin = Origin::named("a");
    let log = "[access_log]\npath = \"access.log\"\nformat = \"json\"\n";
    let site = Site::run(&Proxy::over([&origin]).top("request_id = \"X-Request-Id\"").tables(log));
    let mut client = Client::connect(site.address());
    let reply = client.send("GET /x?y HTTP/1.1\r\nHost: Site.test:1\r\nUser-Agent: \"q\"\r\n\r\n").reply();
    assert_eq!(reply.text(), "a");
    let (path, rotated) = (site.folder().file("access.log"), site.folder().file("access.log.1"));
    fs::rename(&path, &rotated).unwrap();
    let (code, stdout, _) = spoken(&site.folder().command("reopen", &[]));
    assert_eq!((code, &*stdout), (Some(0), "access log reopened\n"));
    // A line under way when it was renamed is in one of the two.
    let written = || [&rotated, &path].map(|file| fs::read_to_string(file).unwrap_or_default()).concat();
    let lines = eventually("the line", || Some(written()).filter(|lines| lines.ends_with('\n')));
    let object: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&object["target"], &object["host"], &object["scheme"]),
        (&"/x?y".into(), &"Site.test:1".into(), &"http".into())
    );
    assert_eq!(
        (&object["status"], &object["user_agent"], &object["tls_version"]),
        (&200.into(), &"\"q\"".into(), &serde_json::Value::Null)
    );
    assert_eq!(
        (&object["tries"][0]["endpoint"], &object["tries"][0]["status"]),
        (&origin.url().into(), &200.into())
    );
    assert_eq!(object["request_id"].as_str().unwrap().len(), 32);
}

#[test]
fn a_json_log_has_the_reason_of_each_failed_try() {
    let (gone, poor, good) = (
        Origin::named("gone"),
        Origin::replying("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
        Origin::named("good"),
    );
    gone.stop();
    let builder = Proxy::over([&gone, &poor, &good]).module("proxy_lb");
    let builder = builder.route("path = \"/\"\nretry = { on = [\"503\"] }");
    let site = Site::run(&builder.tables("[access_log]\npath = \"access.log\"\nformat = \"json\"\n"));
    assert_eq!(site.get("/").text(), "good");
    let path = site.folder().file("access.log");
    let line = eventually("the line", || fs::read_to_string(&path).ok().filter(|line| line.ends_with('\n')));
    let object: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    let tries = object["tries"].as_array().unwrap();
    let told = |idx: usize| (tries[idx]["result"].as_str().unwrap(), tries[idx]["reason"].as_str());
    assert_eq!(tries.len(), 3, "{line}");
    assert!(matches!(told(0), ("connect", Some(why)) if why.contains("refused")), "{line}");
    assert_eq!(told(1), ("served", Some("answered 503")));
    assert_eq!(told(2), ("served", None));
}
