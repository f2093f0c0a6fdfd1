//! Files that include others, and variables of the environment.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;

/// Files of a folder; the first is the configuration.
struct Folder(TempDir);

impl Folder {
    fn with(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = folder.path(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The lines about `site.toml`, without the folder's name.
    fn errors(&self) -> Vec<String> {
        let errors = load(&self.path("site.toml")).expect_err("there are mistakes").to_string();
        errors.replace(&format!("{}/", self.0.path().display()), "").lines().map(str::to_owned).collect()
    }
}

#[test]
fn what_is_included_counts_as_if_it_were_written_there() {
    let folder = Folder::with(&[
        (
            "site.toml",
            &format!("include = [\"conf.d/*.toml\", \"more.toml\"]\n{HEAD}[limits]\nheaders = 7\n"),
        ),
        ("conf.d/a.toml", CLUSTER),
        ("conf.d/b.toml", &format!("include = [\"../deep.toml\"]\n{ROUTE}")),
        ("conf.d/.hidden.toml", "what = 1"),
        ("deep.toml", "[limits]\nhead_bytes = 10000\n"),
        ("more.toml", "[[listener]]\naddress = \"127.0.0.1:1\"\n[timeouts]\nkeepalive = \"9s\"\n"),
    ]);
    let (config, _) = load(&folder.path("site.toml")).unwrap();
    assert_eq!((config.listeners.len(), config.modules.len(), config.routes.len()), (2, 1, 1));
    assert_eq!((config.limits.headers, config.limits.head_bytes), (7, 10_000));
    assert!(config.routes[0].place.to_string().ends_with("/conf.d/b.toml:2"), "{}", config.routes[0].place);
}

#[test]
fn a_worker_needs_no_file_and_no_variable() {
    let folder = Folder::with(&[
        ("site.toml", &format!("include = [\"*.d/x.toml\"]\n{HEAD}{CLUSTER}")),
        ("conf.d/x.toml", &format!("{ROUTE}host = \"${{PATH:-x}}.${{NO_SUCH_NAME:-example}}\"\n")),
    ]);
    let mut files = Files::on_disk();
    // The value of PATH is no host.
    load_from(&folder.path("site.toml"), &mut files).unwrap_err();
    assert!(files.variables().any(|(name, value)| name == "PATH" && value.contains('/')));
    drop(fs::remove_file(folder.path("conf.d/x.toml")));
    let errors = load_from(&folder.path("site.toml"), &mut files.sealed()).unwrap_err();
    assert!(errors.to_string().contains(".example"), "{errors}");
}

#[test]
fn refuses_bad_includes_in_one_line_each() {
    let site = |include: &str, more: &[(&'static str, &str)]| {
        let text = format!("include = {include}\n{HEAD}{CLUSTER}{ROUTE}");
        let mut files = vec![("site.toml", &*text)];
        files.extend_from_slice(more);
        Folder::with(&files).errors()
    };
    assert_eq!(
        site("[\"none.toml\"]", &[]),
        ["site.toml:1: include \"none.toml\": cannot be read: file not found"]
    );
    assert_eq!(
        site("[\"a.toml\"]", &[("a.toml", "\ninclude = [\"site.toml\"]\n")]),
        ["a.toml:2: include \"site.toml\": includes itself"]
    );
    assert_eq!(
        site("[\"a.toml\", \"*.toml\"]", &[("a.toml", "")])[0],
        "site.toml:1: include \"*.toml\": a.toml is already included at site.toml:1"
    );
    assert_eq!(
        site("[\"a.toml\"]", &[("a.toml", "[load_module]\nround_robin = \"x.so\"\n")]),
        ["a.toml:2: load_module.round_robin: already set at site.toml:5"]
    );
    assert_eq!(
        site("[\"a.toml\"]", &[("a.toml", &format!("# One more.\n{CLUSTER}"))]),
        ["a.toml:3: cluster \"app\": the name is already used at site.toml:6"]
    );
    assert_eq!(
        site("[\"a.toml\"]", &[("a.toml", "threads = \"x\"\n[[route]\n")]).len(),
        1,
        "what is no TOML is said once"
    );
    assert_eq!(
        site("[\"a.toml\"]", &[("a.toml", "include = \"b.toml\"\n")]),
        ["a.toml:1: include: expected an array of strings (write include = [\"conf.d/*.toml\"])"]
    );
    assert_eq!(
        site("\"a.toml\"", &[]),
        ["site.toml:1: include: expected an array, found the string \"a.toml\""]
    );
    // A folder may be empty.
    let text = format!("include = [\"conf.d/*.toml\"]\n{HEAD}{CLUSTER}{ROUTE}");
    let (_, warnings) = load(&Folder::with(&[("site.toml", &text)]).path("site.toml")).unwrap();
    assert!(warnings[0].to_string().ends_with("site.toml:1: include \"conf.d/*.toml\": matches no file"));
}

#[test]
fn a_missing_file_that_an_included_one_names_is_said_with_its_place() {
    let text = format!("include = [\"conf.d/x.toml\"]\n{HEAD}{CLUSTER}{ROUTE}");
    let folder = Folder::with(&[("site.toml", &text), ("conf.d/x.toml", "[errors]\n503 = \"sorry.html\"\n")]);
    let why = "conf.d/x.toml:2: errors.503: file \"sorry.html\" cannot be read: file not found; it is looked for as \
               \"sorry.html\", from the main file";
    assert_eq!(folder.errors(), [why]);
}

#[test]
fn variables_of_the_environment_stand_for_text_numbers_and_booleans() {
    let text = "threads = \"${NO_SUCH_NAME:-3}\"\ncore_dumps = \"${NO_SUCH_NAME:-true}\"\n";
    let route = "request_headers = { set = { A = \"${host} $${NAME} ${NO_SUCH_NAME:-x}\" } }\n";
    let text = [text, HEAD, CLUSTER, ROUTE, route, "host = \"a.${NO_SUCH_NAME:-example}\"\n"].concat();
    let (config, _) = parse("t.toml", &text, Syntax::Toml).unwrap();
    assert_eq!((config.threads, config.core_dumps), (3, true));
    assert_eq!(*config.routes[0].hosts, [HostPattern::Exact("a.example".into())]);
    assert_lines(&[
        (
            with_top("threads = \"${NO_SUCH_NAME}\"\n"),
            "t.toml:1: environment variable NO_SUCH_NAME is not set (set it, or write ${NO_SUCH_NAME:-default})",
        ),
        (
            with_head(&HEAD.replace("127.0.0.1:0", "${NO_SUCH_NAME}:1")),
            "t.toml:2: environment variable NO_SUCH_NAME is not set (set it, or write ${NO_SUCH_NAME:-default})",
        ),
        (
            with_top("threads = \"${NO_SUCH_NAME:-many}\"\n"),
            "t.toml:1: threads: expected an integer, found the string \"many\"",
        ),
    ]);
}

#[test]
fn problems_carry_the_line_that_they_are_in() {
    let errors = parse("t.toml", &with_route("[[route]]\npath = \"/\"\ncluster = \"ap\"\n"), Syntax::Toml);
    let excerpt = errors.unwrap_err().problems[0].excerpt.clone().unwrap();
    assert_eq!((&*excerpt.line, excerpt.column), ("cluster = \"ap\"", 11));
}

#[test]
fn warns_of_what_was_hardly_meant() {
    let warnings = |text: &str| {
        let (_, warnings) = parse("t.toml", text, Syntax::Toml).unwrap();
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        warnings(&with_route(&format!("{}{ROUTE}", CLUSTER.replace("app", "idle")))),
        ["t.toml:8: cluster \"idle\": no route is for it"]
    );
    let own = with_head(&HEAD.replace("127.0.0.1:0", "0.0.0.0:9001"));
    assert_eq!(
        warnings(&own),
        [
            "t.toml:7: cluster \"app\": server \"http://127.0.0.1:9001\" is this proxy's own listener \"0.0.0.0:9001\" at \
             t.toml:2, so that its requests come in again"
        ]
    );
    assert_eq!(
        warnings(&with_cluster(&format!(
            "{CLUSTER}health_check = {{ interval = \"1s\", timeout = \"3s\" }}\n"
        ))),
        [
            "t.toml:8: cluster \"app\": health_check.timeout: 3s is longer than the interval of 1s, so that a silent server is \
             noticed late"
        ]
    );
    // A default is never longer than the interval.
    let often = with_cluster(&format!("{CLUSTER}health_check = {{ interval = \"1s\" }}\n"));
    assert_eq!(warnings(&often), [""; 0]);
}
