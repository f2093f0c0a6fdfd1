//! Very many changes without a rest: what they leave behind.

use std::path::Path;
use std::time::Instant;

use tests::client::Client;
use tests::site::proc_status;

use crate::changes::{Changes, Seen};
use crate::servers::Servers;
use crate::site::{Site as _, Trylist, builder};

const MEMBERS: usize = 100;
const FIRST: usize = 10_000;
const ALL: usize = 100_000;

/// Makes them, and prints the worker's memory, descriptors and series after the first and after all.
pub(crate) fn run(module: &Path) {
    let servers = Servers::start(2 * MEMBERS);
    let builder = builder("round_robin", module, &servers, MEMBERS).threads(2);
    let mut site = Trylist::start(&builder.in_cluster("settle = \"0s\""));
    let (mut changes, mut seen) = (Changes::new(MEMBERS), Seen::default());
    let begun = Instant::now();
    println!(
        "| changes | worker RSS | supervisor RSS | descriptors | series | changes/s |\n|---|---|---|---|---|---|"
    );
    for n in 1..=ALL {
        changes.make(&mut site, &servers, &mut seen);
        // Connections to servers come and go with requests.
        if n % 10 == 0 {
            assert_eq!(Client::connect(site.address).get("/").reply().status(), 200);
        }
        if n == 1 || n == FIRST || n == ALL {
            changes.settle(&servers, &mut seen);
            let worker = site.worker();
            println!(
                "| {n} | {:.1} MiB | {:.1} MiB | {} | {} | {:.0} |",
                proc_status(worker, "VmRSS") as f64 / 1024.0,
                proc_status(site.process(), "VmRSS") as f64 / 1024.0,
                std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count(),
                series(&site),
                n as f64 / begun.elapsed().as_secs_f64(),
            );
        }
    }
}

fn series(site: &Trylist) -> usize {
    let admin = site.status().unwrap().admin.unwrap();
    let get = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let metrics = Client::connect(admin.parse().unwrap()).send(get).reply().text();
    metrics.lines().filter(|line| !line.starts_with('#')).count()
}
