//! Listeners that come, go and move.

use super::*;

#[test]
fn a_listener_comes_and_goes_with_the_configuration() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let more = over([&origin]).tables("[[listener]]\naddress = \"127.0.0.1:0\"");
    site.reload_with(&more);
    let listeners: Vec<SocketAddr> =
        site.status().listeners.iter().map(|address| address.parse().unwrap()).collect();
    assert_eq!((listeners.len(), listeners[0]), (2, site.address()));
    let traffic = Traffic::start(site.address(), 1, 1);
    let mut kept = Client::connect(listeners[1]);
    assert_eq!(kept.get("/").reply().text(), "a");
    site.reload_with(&more);
    is_answered_and_closed(&mut kept);
    // Clients that have connected by now are served, accepted or not.
    let mut late: Vec<Client> = (0..20).map(|_| Client::connect(listeners[1])).collect();
    site.reload_with(&over([&origin]));
    for client in &mut late {
        is_answered_and_closed(client);
    }
    eventually("the listener is closed", || Client::try_connect(listeners[1]).err());
    assert_eq!(site.status().listeners, [site.address().to_string()]);
    traffic.ends_whole();
}

/// A port of this site's own, and its configuration with these further listeners.
fn with_port(site: &Site, origin: &Origin) -> (u16, impl Fn(&[String]) -> Builder) {
    let listener = |address: &str| format!("[[listener]]\naddress = \"{address}\"");
    site.reload_with(&over([origin]).tables(&listener("127.0.0.1:0")));
    let port = site.status().listeners[1].parse::<SocketAddr>().unwrap().port();
    let origin = origin.url();
    let with = move |addresses: &[String]| {
        let builder = Proxy::over_urls([&origin]).named("app").threads(2);
        addresses.iter().fold(builder, |builder, address| builder.tables(&listener(address)))
    };
    (port, with)
}

#[test]
fn a_listener_that_is_removed_can_come_back_at_once() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let (port, with) = with_port(&site, &origin);
    let address = format!("127.0.0.1:{port}");
    for _ in 0..3 {
        site.reload_with(&with(std::slice::from_ref(&address)));
        assert_eq!(Client::connect(address.parse().unwrap()).get("/").reply().text(), "a");
        site.reload_with(&with(&[]));
        assert_eq!(site.status().listeners, [site.address().to_string()]);
    }
    site.reload_with(&with(std::slice::from_ref(&address)));
    // The generations that read it before end, and the port stays.
    site.wait_for_only(9);
    assert_eq!(Client::connect(address.parse().unwrap()).get("/").reply().text(), "a");
}

#[test]
fn a_listener_can_move_between_one_address_and_all_of_a_port() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let (port, with) = with_port(&site, &origin);
    let [one, all] = ["127.0.0.1", "0.0.0.0"].map(|ip| format!("{ip}:{port}"));
    let traffic = Traffic::start(site.address(), 1, 1);
    for address in [&one, &all, &one, &one, &all] {
        site.reload_with(&with(std::slice::from_ref(address)));
        assert_eq!(Client::connect(one.parse().unwrap()).get("/").reply().text(), "a", "at {address}");
    }
    // The more exact one is asked first.
    site.reload_with(&with(&[all.clone(), one.clone()]));
    site.wait_for_only(8);
    for ip in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        assert_eq!(Client::connect((ip, port).into()).get("/").reply().text(), "a");
    }
    traffic.ends_whole();
}

#[test]
fn the_admin_listener_can_move_between_one_address_and_all_of_a_port() {
    let origin = Origin::named("a");
    let site = Site::run(&over([&origin]));
    let port = site.status().admin.unwrap().parse::<SocketAddr>().unwrap().port();
    for ip in ["127.0.0.1", "0.0.0.0", "127.0.0.1", "0.0.0.0"] {
        let admin = |ip: &str, port: u16| format!("[admin]\naddress = \"{ip}:{port}\"");
        let text = over([&origin]).text();
        site.folder().write(&text.replace(&admin("127.0.0.1", 0), &admin(ip, port)));
        site.reload();
        assert_eq!(site.status().admin, Some(format!("{ip}:{port}")));
        assert_eq!(site.admin("/healthz").status(), 200);
    }
}
