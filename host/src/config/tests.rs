//! The values of good files, and the exact line for every fault.

mod whole;
mod files;
mod listeners;
mod servers;
mod clusters;
mod health;
mod sessions;
mod routes;

use std::time::Duration;

use super::*;
use crate::http::headers::forwarded::{Forwarded, Source};
use crate::net::address::Peer;
use crate::net::proxy_protocol;

/// The lines printed for a TOML file.
fn errors(text: &str) -> Vec<String> {
    let errors = parse("t.toml", text, Syntax::Toml).expect_err("the file has mistakes in it");
    errors.to_string().lines().map(str::to_owned).collect()
}

/// A good file in three pieces.
const HEAD: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\nround_robin = \"a.so\"\n";

const CLUSTER: &str = "[[cluster]]\nname = \"app\"\nservers = [\"http://127.0.0.1:9001\"]\n";

const ROUTE: &str = "[[route]]\npath = \"/\"\ncluster = \"app\"\n";

/// A good file with something in place of its listener and module (lines 1 to 4), its cluster (5 to 7) or its route
/// (8 to 10).
fn with_head(head: &str) -> String {
    [head, CLUSTER, ROUTE].concat()
}

fn with_cluster(cluster: &str) -> String {
    [HEAD, cluster, ROUTE].concat()
}

fn with_route(route: &str) -> String {
    [HEAD, CLUSTER, route].concat()
}

/// A good file with more at its beginning, from line 1.
fn with_top(top: &str) -> String {
    [top, HEAD, CLUSTER, ROUTE].concat()
}

/// Asserts the line printed for each mistake.
fn assert_lines(cases: &[(String, &str)]) {
    for (text, line) in cases {
        assert_eq!(errors(text), [*line], "of\n{text}");
    }
}
