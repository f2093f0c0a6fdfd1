//! What good files become, and the exact line for every way of being wrong.

use super::*;

/// The lines printed for a TOML file.
fn errors(text: &str) -> Vec<String> {
    let errors = parse("t.toml", text, Syntax::Toml).expect_err("the file has mistakes in it");
    errors.to_string().lines().map(str::to_owned).collect()
}

/// A good file as three pieces: two lines to break, a cluster, and the rest.
const REST: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\nround_robin = \"a.so\"\n";
const CLUSTER: &str = "[[cluster]]\nname = \"app\"\nservers = [\"http://127.0.0.1:9001\"]\n";
const ROUTE: &str = "[[route]]\npath = \"/\"\ncluster = \"app\"\n";

#[test]
fn the_shortest_file_gets_all_defaults() {
    let (config, warnings) = parse("t.toml", &[REST, CLUSTER, ROUTE].concat(), Syntax::Toml).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.listeners[0].address.to_string(), "127.0.0.1:0");
    assert_eq!(config.clusters[0].place.to_string(), "t.toml:5");
    assert_eq!(&*config.clusters[0].module, "round_robin");
}

#[test]
fn reports_everything_in_one_run() {
    let text = r#"
threads = "two"
lisener = 5
[[listener]]
adress = "127.0.0.1:80"
[load_module]
Round-Robin = 5
least_request = { path = "a.so", sha = "a" }
[[cluster]]
name = "api"
module = "least_requst"
servers = ["https://a", { url = "http://b", weight = "3" }, { url = "http://b:x", wait = 3 }]
connect_timeout = 10
settings = { a = 1 }
[[route]]
path = "a"
cluster = "apo"
[limits]
head_bytes = "4k"
"#;
    let expected = r#"
t.toml:2: threads: expected an integer, found the string "two"
t.toml:3: unknown key "lisener" (did you mean "listener"?)
t.toml:5: listener: unknown key "adress" (did you mean "address"?)
t.toml:7: load_module.Round-Robin: expected a module's file, or a table such as { path = "libmod_x.so", sha256 = "…" }, found the integer 5
t.toml:8: load_module.least_request: unknown key "sha" (known here: path, sha256)
t.toml:11: cluster "api": no module "least_requst" is loaded (did you mean "least_request"?)
t.toml:12: cluster "api": server "https://a": servers are reached by plain HTTP only so far, not by https (write http://host or http://host:port)
t.toml:12: cluster "api": servers.weight: expected an integer, found the string "3"
t.toml:12: cluster "api": server "http://b:x": port "x" is not a number from 1 to 65535
t.toml:12: cluster "api": servers: unknown key "wait" (known here: url, weight, metadata)
t.toml:13: cluster "api": connect_timeout: expected a duration such as "250ms", "10s", "5m" or "1h", found the integer 10
t.toml:16: route "a": path "a" does not begin with "/" (write "/a")
t.toml:17: route "a": no cluster "apo" (did you mean "api"?)
t.toml:19: limits.head_bytes: expected a size such as 4096, "64KiB" or "1MiB", found the string "4k""#;
    assert_eq!(errors(text).join("\n"), expected.trim());
}
