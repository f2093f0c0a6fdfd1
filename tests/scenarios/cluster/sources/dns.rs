//! Records of a name.

use std::net::SocketAddr;

use tests::dns::{Answer, NameServer};
use tests::traffic::Traffic;

use super::*;

/// Answers with its name, at this address of the loopback network.
pub(super) fn at(address: [u8; 4], port: u16, name: &'static str) -> Origin {
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    Origin::listening(SocketAddr::from((address, port)), move |conn| {
        while conn.request().is_some() && conn.send(&reply) {}
    })
}

pub(super) const ONE: [u8; 4] = [127, 0, 0, 1];
pub(super) const TWO: [u8; 4] = [127, 0, 0, 2];

#[test]
fn each_address_of_a_name_is_a_server_whatever_the_name_server_says_for_a_while() {
    let one = at(ONE, 0, "one");
    let port = one.address().port();
    let _two = at(TWO, port, "two");
    let dns = NameServer::new();
    dns.addresses("app.test", &[ONE]);
    let site =
        Site::run(&from(&format!("type = \"dns\", url = \"http://App.test:{port}\"")).tables(&dns.config()));
    answered_by(&site, "one one");
    let traffic = Traffic::start(site.address(), 1, 1);
    dns.addresses("app.test", &[TWO, ONE]);
    answered_by(&site, "one two one two");
    // Another order is no change, and a failure keeps the last addresses.
    let n = source(&site).answers;
    dns.addresses("app.test", &[ONE, TWO]);
    for (answer, why) in
        [(Answer::Failure, "app.test: "), (Answer::Silence, "app.test: no name server answers")]
    {
        dns.set("app.test", answer);
        source_fails(&site, why);
        answered_by(&site, "one two one two");
        dns.addresses("app.test", &[ONE, TWO]);
        source_is(&site, "well again", |source| source.error.is_none());
    }
    assert_eq!(source(&site).answers, n);
    // A name that is gone names no server, which is not believed at once.
    dns.set("app.test", Answer::NoSuchName);
    source_is(&site, "held", |source| source.held);
    answered_by(&site, "one two one two");
    dns.addresses("app.test", &[TWO]);
    answered_by(&site, "two two");
    traffic.ends_whole();
}

#[test]
fn services_have_their_own_ports_weights_and_tiers() {
    let (one, two) = (at(ONE, 0, "one"), at(TWO, 0, "two"));
    let (port_1, port_2) = (one.address().port(), two.address().port());
    let dns = NameServer::new();
    dns.addresses("one.test", &[ONE]).addresses("two.test", &[TWO]);
    let service = "_http._tcp.app.test";
    dns.set(service, Answer::Services(vec![(10, 3, port_1, "one.test"), (10, 0, port_2, "two.test")], 0));
    let keys = format!("type = \"dns\", url = \"http://{service}\", record = \"srv\"");
    let site = Site::run(&from(&keys).tables(&dns.config()));
    answered_by(&site, "one one one two");
    dns.set(service, Answer::Services(vec![(20, 1, port_1, "one.test"), (10, 1, port_2, "two.test")], 0));
    answered_by(&site, "two two");
    // A name that resolves to nothing is tried in vain; the next server answers.
    dns.set(service, Answer::Services(vec![(1, 1, port_1, "gone.test"), (2, 1, port_1, "one.test")], 0));
    answered_by(&site, "one one");
    dns.set(service, Answer::Services(vec![(0, 0, 0, ".")], 0));
    source_is(&site, "held", |source| source.held);
}
