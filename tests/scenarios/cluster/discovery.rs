//! Servers by name: looked up again as their TTL says, and not lost when the name server is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use rustix::process::Signal;
use tests::dns::{Answer, NameServer};
use tests::eventually;
use tests::h2::{DATA, END_HEADERS, END_STREAM, HEADERS, frame, next_request};
use tests::log;
use tests::origin::{Conn, Origin};
use tests::proxy::{Builder, Proxy};
use tests::site::{Site, signal, spoken};
use tests::tls::Authority;
use tests::traffic::Traffic;

/// Answers with its name, at this address of the loopback network.
fn at(address: [u8; 4], port: u16, name: &'static str) -> Origin {
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    Origin::listening(SocketAddr::from((address, port)), move |conn| {
        while conn.request().is_some() && conn.send(&reply) {}
    })
}

const ONE: [u8; 4] = [127, 0, 0, 1];
const TWO: [u8; 4] = [127, 0, 0, 2];

/// Two servers at one port of two addresses.
fn two() -> (Origin, Origin, u16) {
    let one = at(ONE, 0, "one");
    let port = one.address().port();
    (one, at(TWO, port, "two"), port)
}

fn over(name: &str, port: u16, dns: &NameServer) -> Builder {
    Proxy::over_urls([format!("http://{name}:{port}")]).tables(&dns.config())
}

#[test]
fn a_name_is_looked_up_again_when_its_ttl_is_over() {
    let (_one, _two, port) = two();
    let dns = NameServer::new();
    dns.addresses("app.test", &[ONE]);
    let proxy = over("app.test", port, &dns).start();
    assert_eq!(proxy.names(3), "one one one");
    dns.addresses("app.test", &[TWO]);
    // Connections that were kept go to the old address: they end at the next sweep, though the old server keeps them.
    eventually("the new address", || (proxy.get("/").text() == "two").then_some(()));
    assert_eq!(proxy.names(3), "two two two");
    log::line(&["app.test", "addresses have changed: now 127.0.0.2"]);
}

/// A busy connection of HTTP/2 is never idle, and would stay with the old server for ever.
#[test]
fn shared_connections_leave_an_address_that_a_name_no_longer_has() {
    let answering = |conn: &mut Conn, body: &'static str| {
        while let Some(stream) = next_request(conn) {
            conn.send(frame(HEADERS, END_HEADERS, stream, &[0x88]));
            conn.send(frame(DATA, END_STREAM, stream, body.as_bytes()));
        }
    };
    let one = Origin::listening(SocketAddr::from((ONE, 0)), move |conn| answering(conn, "one"));
    let port = one.address().port();
    let _two = Origin::listening(SocketAddr::from((TWO, port)), move |conn| answering(conn, "two"));
    let dns = NameServer::new();
    dns.addresses("h2.test", &[ONE]);
    let proxy = over("h2.test", port, &dns).in_cluster("protocol = \"h2\"").start();
    assert_eq!(proxy.names(3), "one one one");
    dns.addresses("h2.test", &[TWO]);
    eventually("the new address", || (proxy.get("/").text() == "two").then_some(()));
    assert_eq!((proxy.names(3).as_str(), one.n_connections()), ("two two two", 1));
}

#[test]
fn a_name_is_left_alone_while_its_ttl_lasts() {
    let (_one, _two, port) = two();
    let dns = NameServer::new();
    dns.set("long.test", Answer::Addresses(vec![ONE.into()], 3600));
    dns.addresses("short.test", &[ONE]);
    let urls = ["long.test", "short.test"].map(|name| format!("http://{name}:{port}"));
    let proxy = Proxy::over_urls(urls).tables(&dns.config()).start();
    assert_eq!(proxy.names(2), "one one");
    dns.addresses("long.test", &[TWO]);
    dns.addresses("short.test", &[TWO]);
    log::line(&["short.test", "addresses have changed"]);
    let before = dns.n_queries();
    eventually("more look-ups of the other", || (dns.n_queries() > before + 20).then_some(()));
    assert_eq!(log::lines(&["long.test", "addresses have changed"]), [""; 0]);
}

#[test]
fn the_last_addresses_are_kept_while_the_name_server_fails() {
    let (_one, _two, port) = two();
    for (i, (answer, why)) in [
        (Answer::Failure, "answers"),
        (Answer::Silence, "no name server answers"),
        (Answer::NoSuchName, "there is no such name"),
        (Answer::Addresses(Vec::new(), 0), "the name has no address"),
    ]
    .into_iter()
    .enumerate()
    {
        let dns = NameServer::new();
        let name = format!("kept-{i}.test");
        dns.addresses(&name, &[ONE]);
        let proxy = over(&name, port, &dns).start();
        assert_eq!(proxy.get("/").text(), "one");
        dns.set(&name, answer.clone());
        let line = log::line(&[&name, "look-up failed, keeping the last addresses"]);
        assert!(line.contains("WARN") && line.contains(why), "{answer:?}: {line}");
        assert_eq!(proxy.names(2), "one one", "{answer:?}");
        dns.addresses(&name, &[TWO]);
        eventually("the new address", || (proxy.get("/").text() == "two").then_some(()));
        log::line(&[&name, "look-up succeeds again"]);
        assert_eq!(log::lines(&[&name, "keeping the last addresses"]).len(), 1, "{answer:?}: logged once");
    }
}

#[test]
fn a_name_that_comes_to_be_is_found() {
    let (_one, _two, port) = two();
    let dns = NameServer::new();
    let proxy = over("later.test", port, &dns).start();
    let reply = proxy.get("/");
    assert_eq!(reply.status(), 502);
    let line = log::line(&[&format!("cluster=\"{}\"", proxy.cluster()), "request failed"]);
    assert!(line.contains("look-up failed: there is no such name"), "{line}");
    dns.addresses("later.test", &[ONE]);
    eventually("the name", || (proxy.get("/").text() == "one").then_some(()));
}

#[test]
fn all_addresses_of_a_name_are_tried_in_turn() {
    let one = at(ONE, 0, "one");
    let dns = NameServer::new();
    // Nobody listens at the first.
    dns.addresses("both.test", &[TWO, ONE]);
    let proxy = over("both.test", one.address().port(), &dns).start();
    assert_eq!(proxy.names(3), "one one one");
}

#[test]
fn a_name_server_that_never_answers_costs_no_more_than_the_time_for_a_connection() {
    let alive = Origin::named("alive");
    let dns = NameServer::new();
    dns.set("silent.test", Answer::Silence);
    let proxy = Proxy::over_urls(["http://silent.test".into(), alive.url()])
        .in_cluster("connect_timeout = \"20ms\"")
        .tables(&dns.config())
        .start();
    assert_eq!(proxy.names(4), "alive alive alive alive");
    let series = "trylist_try_failures_total{cluster=\"%\",endpoint=\"http://silent.test\",kind=\"resolve\"}";
    assert_eq!(proxy.metric(series), 2.0);
}

const SIX: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

#[test]
fn ipv4_addresses_do_not_wait_for_an_answer_about_ipv6() {
    let one = at(ONE, 0, "one");
    let dns = NameServer::new();
    dns.addresses("half.test", &[ONE]).set_aaaa("half.test", Answer::Silence);
    let proxy = over("half.test", one.address().port(), &dns).start();
    assert_eq!(proxy.names(3), "one one one");
    eventually("the question for IPv6", || (dns.n_aaaa() > 0).then_some(()));
    assert_eq!(proxy.names(3), "one one one");
}

#[test]
fn a_family_whose_look_up_fails_keeps_its_addresses_beside_the_other() {
    for (i, answer) in [Answer::Failure, Answer::Silence].into_iter().enumerate() {
        let one = at(ONE, 0, "one");
        let dns = NameServer::new();
        let name = format!("split-{i}.test");
        // Nobody listens on IPv6.
        dns.addresses(&name, &[ONE]).set_aaaa(&name, Answer::Addresses(vec![SIX], 0));
        let proxy = over(&name, one.address().port(), &dns).in_cluster("keepalive = 0").start();
        assert_eq!(proxy.names(2), "one one");
        dns.set(&name, answer.clone());
        let line = log::line(&[&name, "look-up failed, keeping the last addresses"]);
        assert!(line.contains("IPv4"), "{line}");
        assert_eq!(proxy.names(2), "one one", "{answer:?}");
        assert_eq!(log::lines(&[&name, "addresses have changed"]), [""; 0]);
    }
}

#[test]
fn one_family_can_be_left_out() {
    let one = at(ONE, 0, "one");
    let dns = NameServer::new();
    dns.addresses("four.test", &[ONE]).set_aaaa("four.test", Answer::Addresses(vec![SIX], 0));
    let over = |family: &str| {
        let url = format!("http://four.test:{}", one.address().port());
        let keys = format!("timeout = \"300ms\"\nfamily = {family:?}");
        Proxy::over_urls([url]).tables(&dns.config_with(&keys)).start()
    };
    assert_eq!(over("ipv4").names(2), "one one");
    assert_eq!(dns.n_aaaa(), 0);
    // Of IPv6 there is the loopback address, where nobody listens.
    assert_eq!(over("ipv6").get("/").status(), 502);
    assert!(dns.n_aaaa() > 0);
}

/// It takes connections, and never answers a handshake: to be learned of it is that the other one does.
#[test]
fn a_first_address_that_is_dead_is_not_asked_for_each_connection() {
    let (ca, one) = (Authority::new("ca"), Origin::named("one"));
    let certificate = format!("tls = {{ certificates = [{}] }}", ca.issue(&["dead.test"]).toml());
    let living = Proxy::over([&one]).listener(&certificate).start();
    let port = living.address().port();
    let silent = Origin::listening(SocketAddr::from((TWO, port)), |conn| _ = conn.wait_for_end());
    let dns = NameServer::new();
    dns.addresses("dead.test", &[TWO, ONE]);
    let tls = format!("tls = {{ ca = {:?} }}", ca.path());
    let proxy = Proxy::over_urls([format!("https://dead.test:{port}")])
        .in_cluster(&format!("keepalive = 0\nconnect_timeout = \"2s\"\n{tls}"))
        .tables(&dns.config())
        .start();
    assert_eq!(proxy.names(5), "one one one one one");
    assert_eq!(silent.n_connections(), 1);
}

#[test]
fn a_name_of_one_server_keeps_its_address_over_reloads_and_crashes() {
    let one = at(ONE, 0, "one");
    let dns = NameServer::new();
    for (name, answer) in [("down.test", Answer::Failure), ("mute.test", Answer::Silence)] {
        dns.addresses(name, &[ONE]);
        // A request that waited for the name server would outlast this test.
        let resolver = dns.config_with("timeout = \"10m\"");
        let url = format!("http://{name}:{}", one.address().port());
        let site =
            Site::run(&Proxy::over_urls([url]).in_cluster("connect_timeout = \"10m\"").tables(&resolver));
        assert_eq!(site.names(2), "one one");
        dns.set(name, answer.clone());
        site.reload_wholly();
        assert_eq!(site.names(2), "one one", "{answer:?}");
        let before = site.worker();
        signal(before, Signal::KILL);
        eventually("another worker", || (site.worker() != before).then_some(()));
        assert_eq!(site.names(2), "one one", "{answer:?}");
    }
}

// ---- each address a server ---------------------------------------------------------------------------------------------

const THREE: [u8; 4] = [127, 0, 0, 3];

/// Servers at one port of three addresses, and the proxy over all that a name stands for.
struct Scaled {
    servers: [Origin; 3],
    dns: NameServer,
    url: String,
}

impl Scaled {
    fn new(name: &str, addresses: &[[u8; 4]]) -> Self {
        let one = at(ONE, 0, "one");
        let port = one.address().port();
        let servers = [one, at(TWO, port, "two"), at(THREE, port, "three")];
        let dns = NameServer::new();
        if !addresses.is_empty() {
            dns.addresses(name, addresses);
        }
        Self { servers, dns, url: format!("http://{name}:{port}") }
    }

    fn builder(&self) -> Builder {
        let builder = Proxy::over_urls([&self.url]).named("app").each_server("resolve = \"all\"");
        builder.tables(&self.dns.config())
    }

    fn run(&self) -> Site {
        Site::run(&self.builder())
    }

    fn tries(&self, address: &str) -> String {
        format!(
            "trylist_tries_total{{cluster=\"app\",endpoint=\"{}#{address}\",result=\"served\"}}",
            self.url
        )
    }
}

#[test]
fn servers_come_and_go_with_the_addresses_of_their_name_and_nothing_is_lost() {
    let scaled = Scaled::new("scaled.test", &[TWO, ONE]);
    let site = scaled.run();
    assert_eq!(site.names(4), "one two one two");
    let traffic = Traffic::start(site.address(), 3, 1);
    traffic.goes_on_for(50);
    scaled.dns.addresses("scaled.test", &[THREE, TWO]);
    eventually("the new server", || (!scaled.servers[2].requests().is_empty()).then_some(()));
    traffic.goes_on_for(50);
    site.running().logs("cluster \"app\": servers added: 1, removed: 1");
    assert_eq!((site.status().generations.len(), site.generation()), (1, 1));
    let before = scaled.servers[0].requests().len();
    traffic.goes_on_for(50);
    let n_sent = traffic.ends_whole();
    assert_eq!(scaled.servers[0].requests().len(), before, "a server that has gone is asked no more");
    let mut names: Vec<_> = site.names(2).split(' ').map(str::to_owned).collect();
    names.sort();
    assert_eq!(names, ["three", "two"]);
    let n = scaled.servers.iter().map(|server| server.requests().len()).sum::<usize>();
    assert_eq!(n, n_sent + 6, "each exactly once");
    let of_two = scaled.servers[1].requests().len() as f64;
    eventually("every try of it", || (site.metric(&scaled.tries("127.0.0.2")) == of_two).then_some(()));
}

/// They have one name, which is what some hashes know servers by.
#[test]
fn each_address_has_keys_of_its_own() {
    for module in ["hash", "ring_hash", "maglev", "rendezvous"] {
        let scaled = Scaled::new("keyed.test", &[ONE, TWO]);
        let site = Site::run(&scaled.builder().module(module).in_cluster("key = \"path\""));
        let mut client = site.connect();
        let mut ask =
            || -> Vec<String> { (0..40).map(|key| client.get(&format!("/{key}")).reply().text()).collect() };
        let first = ask();
        assert_eq!(first, ask(), "{module}");
        let n = first.iter().filter(|name| *name == "one").count();
        assert!((8..=32).contains(&n), "{module}: {n} of 40 keys are the first's");
    }
}

#[test]
fn a_change_of_a_name_is_one_of_each_of_its_addresses_and_one_address_can_be_changed() {
    let scaled = Scaled::new("marked.test", &[ONE, TWO]);
    let site = scaled.run();
    let change = |url: &str, what| spoken(&site.folder().command("server", &["app", url, what])).0;
    assert_eq!(change(&scaled.url, "drain"), Some(0));
    eventually("no server", || (site.get("/").status() == 503).then_some(()));
    assert_eq!(change(&scaled.url, "ready"), Some(0));
    eventually("servers", || (site.get("/").status() == 200).then_some(()));
    for what in ["maint", "remove"] {
        assert_eq!(change(&format!("{}#127.0.0.1", scaled.url), what), Some(0));
        assert_eq!(site.names(4), "two two two two", "{what}");
    }
    assert_eq!(site.generation(), 1);
}

#[test]
fn a_generation_that_finds_no_name_server_keeps_the_last_addresses() {
    let scaled = Scaled::new("stays.test", &[ONE, TWO]);
    let site = scaled.run();
    assert_eq!(site.names(2), "one two");
    scaled.dns.set("stays.test", Answer::Failure);
    site.reload_wholly();
    site.running().logs("look-up failed, keeping the last addresses");
    assert_eq!(site.names(4), "one two one two");
    scaled.dns.addresses("stays.test", &[THREE]);
    eventually("the new address", || (site.get("/").text() == "three").then_some(()));
}

#[test]
fn a_name_that_is_not_known_yet_has_its_servers_once_it_is() {
    let scaled = Scaled::new("early.test", &[]);
    let site = scaled.run();
    assert_eq!(site.get("/").status(), 502);
    site.running().logs("look-up failed, so it is one server until it is found: there is no such name");
    scaled.dns.addresses("early.test", &[ONE, TWO]);
    eventually("both servers", || {
        let names = site.names(4);
        (names.contains("one") && names.contains("two")).then_some(())
    });
    assert_eq!(site.generation(), 1);
}

/// Neither the start nor a reload nor the worker after a crash waits for a name server that says nothing, though it may have
/// as long as this test: other clusters do not know of names, and a name has its last addresses.
#[test]
fn a_name_server_that_is_silent_holds_up_nobody() {
    let scaled = Scaled::new("slow.test", &[]);
    scaled.dns.set("slow.test", Answer::Silence);
    let builder = |url: &str| {
        let cluster = "[[cluster]]\nname = \"plain\"\nservers = [";
        let builder = Proxy::over_urls([&scaled.url]).named("app").each_server("resolve = \"all\"");
        builder
            .tables(&scaled.dns.config_with("timeout = \"10m\""))
            .tables(&format!("{cluster}{url:?}]\nmodule = \"proxy_lb\""))
            .route("path = \"/app\"")
            .tables("[[route]]\npath = \"/\"\ncluster = \"plain\"")
    };
    let plain = Origin::named("plain");
    let site = Site::run(&builder(&plain.url()));
    assert_eq!(site.get("/").text(), "plain");
    scaled.dns.addresses("slow.test", &[TWO, ONE]);
    site.reload_wholly();
    eventually("the servers", || (site.get("/app").text() == "two").then_some(()));
    scaled.dns.set("slow.test", Answer::Silence);
    site.reload_wholly();
    let before = site.worker();
    signal(before, Signal::KILL);
    eventually("another worker", || (site.worker() != before).then_some(()));
    assert_eq!(site.get("/").text(), "plain");
    let mut names = [(); 2].map(|()| site.get("/app").text());
    names.sort();
    assert_eq!(names, ["one", "two"]);
}
