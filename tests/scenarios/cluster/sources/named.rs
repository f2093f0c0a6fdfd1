//! Records of real name servers.

use std::net::{Ipv6Addr, UdpSocket};

use tests::named::{Bind, Dnsmasq};
use tests::traffic::Traffic;

use super::dns::{ONE, TWO, at};
use super::*;

#[test]
fn addresses_that_bind_is_told_come_into_use_and_no_mistake_of_it_takes_one_out() {
    let Some(bind) = Bind::start() else { return };
    let one = at(ONE, 0, "one");
    let port = one.address().port();
    let _two = at(TWO, port, "two");
    bind.update(&["add www.app.test 0 A 127.0.0.1"]);
    let site = Site::run(
        &from(&format!("type = \"dns\", url = \"http://www.app.test:{port}\"")).tables(&bind.config()),
    );
    answered_by(&site, "one one");
    let traffic = Traffic::start(site.address(), 2, 1);
    bind.update(&["add www.app.test 0 A 127.0.0.2"]);
    answered_by(&site, "one two one two");
    // BIND gives them in another order each time, which is no change. A TTL of 0 has them asked for all the time.
    let n = source(&site).answers;
    traffic.goes_on_for(50);
    bind.fails(true);
    source_fails(&site, "www.app.test: ");
    traffic.goes_on_for(20);
    bind.fails(false);
    source_is(&site, "well again", |source| source.error.is_none());
    assert_eq!(source(&site).answers, n);
    answered_by(&site, "one two one two");
    bind.update(&["delete www.app.test 0 A 127.0.0.1"]);
    answered_by(&site, "two two");
    // NXDOMAIN names no server, which is not believed at once.
    bind.update(&["delete www.app.test"]);
    source_is(&site, "held", |source| source.held);
    traffic.goes_on_for(20);
    answered_by(&site, "two two");
    // The name is there, but has no address: the same.
    bind.update(&["add www.app.test 0 TXT here"]);
    traffic.goes_on_for(20);
    assert!(source(&site).held);
    bind.update(&["add www.app.test 3600 A 127.0.0.1"]);
    answered_by(&site, "one one");
    traffic.ends_whole();
}

#[test]
fn addresses_of_both_families_that_bind_is_told_are_servers() {
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return eprintln!("skipped: there is no IPv6 here");
    }
    let Some(bind) = Bind::start() else { return };
    let one = at(ONE, 0, "one");
    let port = one.address().port();
    let _six = Origin::listening((Ipv6Addr::LOCALHOST, port).into(), |conn| {
        while conn.request().is_some() && conn.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nsix") {}
    });
    bind.update(&["add www.app.test 0 AAAA ::1"]);
    let url = format!("http://www.app.test:{port}");
    let site = Site::run(&from(&format!("type = \"dns\", url = {url:?}")).tables(&bind.config()));
    answered_by(&site, "six six");
    let traffic = Traffic::start(site.address(), 1, 1);
    bind.update(&["add www.app.test 0 A 127.0.0.1"]);
    answered_by(&site, "one six one six");
    bind.update(&["delete www.app.test 0 AAAA ::1"]);
    answered_by(&site, "one one");
    bind.update(&["add www.app.test 0 AAAA ::1", "delete www.app.test 0 A 127.0.0.1"]);
    answered_by(&site, "six six");
    traffic.ends_whole();
}

#[test]
fn services_that_bind_is_told_change_while_requests_run() {
    let Some(bind) = Bind::start() else { return };
    let (one, two) = (at(ONE, 0, "one"), at(TWO, 0, "two"));
    let (port_1, port_2) = (one.address().port(), two.address().port());
    let service = "_http._tcp.app.test";
    let srv = |priority, weight, port, target| {
        format!("add {service} 0 SRV {priority} {weight} {port} {target}.app.test.")
    };
    bind.update(&["add one.app.test 0 A 127.0.0.1", "add two.app.test 0 A 127.0.0.2"]);
    bind.update(&[&srv(10, 3, port_1, "one"), &srv(10, 0, port_2, "two")]);
    let keys = format!("type = \"dns\", url = \"http://{service}\", record = \"srv\"");
    let site = Site::run(&from(&keys).tables(&bind.config()));
    answered_by(&site, "one one one two");
    let traffic = Traffic::start(site.address(), 2, 1);
    let gone = format!("delete {service} SRV");
    // An update is one step: nobody sees the name without records.
    bind.update(&[&gone, &srv(10, 1, port_1, "one"), &srv(10, 1, port_2, "two")]);
    answered_by(&site, "one two one two");
    bind.update(&[&gone, &srv(20, 1, port_1, "one"), &srv(10, 1, port_2, "two")]);
    answered_by(&site, "two two");
    bind.fails(true);
    source_fails(&site, service);
    traffic.goes_on_for(20);
    bind.fails(false);
    bind.update(&[&gone, &srv(1, 1, port_1, "one")]);
    answered_by(&site, "one one");
    // The address of a target changes, too.
    let other = at(TWO, port_1, "other");
    bind.update(&["delete one.app.test A", "add one.app.test 0 A 127.0.0.2"]);
    answered_by(&site, "other other");
    bind.update(&[&gone]);
    source_is(&site, "held", |source| source.held);
    traffic.ends_whole();
    drop(other);
}

#[test]
fn names_and_services_of_dnsmasq_are_servers() {
    let one = at(ONE, 0, "one");
    let port = one.address().port();
    let _two = at(TWO, port, "two");
    let both = [("one.test", ONE), ("two.test", TWO)];
    let services = [("one.test", port), ("two.test", port)];
    let Some(dnsmasq) = Dnsmasq::start(&both, &services) else { return };
    let srv = from("type = \"dns\", url = \"http://_http._tcp.app.test\", record = \"srv\"")
        .tables(&dnsmasq.config());
    let site = Site::run(&srv);
    answered_by(&site, "one two one two");
    let traffic = Traffic::start(site.address(), 1, 1);
    dnsmasq.hosts(&[("one.test", TWO), ("two.test", TWO)]);
    answered_by(&site, "two two two two");
    let name = from(&format!("type = \"dns\", url = \"http://one.test:{port}\"")).tables(&dnsmasq.config());
    site.reload_with(&name);
    answered_by(&site, "two two");
    dnsmasq.hosts(&[("one.test", TWO), ("one.test", ONE)]);
    answered_by(&site, "one two one two");
    dnsmasq.hosts(&[("two.test", TWO)]);
    source_is(&site, "held", |source| source.held);
    dnsmasq.hosts(&both);
    answered_by(&site, "one one");
    traffic.ends_whole();
}
