//! Modules at their work, on real traffic: whom requests go to, and that none is lost.

use tests::Gate;
use tests::artifacts;
use tests::log;
use tests::origin::Origin;
use tests::proxy::Proxy;

/// The names of so many servers' answers under this module.
fn names(module: &str, n: usize) -> String {
    let origins = ["a", "b", "c"].map(Origin::named);
    Proxy::over(&origins).module(module).start().names(n)
}

#[test]
fn proxy_lb_goes_through_the_servers_in_the_order_of_the_file() {
    assert_eq!(names("proxy_lb", 7), "a b c a b c a");
}

#[test]
fn round_robin_without_weights_is_the_same() {
    assert_eq!(names("round_robin", 7), "a b c a b c a");
}

#[test]
fn random_gets_to_all() {
    let names = names("random", 200);
    for name in ["a", "b", "c"] {
        // Fewer than 20 of 200 at a third: once in 10^13 runs.
        assert!(names.matches(name).count() > 20, "{names}");
    }
}

#[test]
fn the_order_is_one_for_all_threads() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let proxy = Proxy::over(&origins).threads(4).start();
    let names: Vec<_> = (0..30).map(|_| proxy.get("/").text()).collect();
    assert_eq!(names, ["a", "b", "c"].repeat(10));
}

#[test]
fn a_server_that_comes_back_is_used_again() {
    let origins = ["a", "b"].map(Origin::named);
    let proxy = Proxy::over(&origins).start();
    assert_eq!(proxy.names(4), "a b a b");
    origins[1].stop();
    assert_eq!(proxy.names(4), "a a a a");
}

/// Requests of several clients at once, while one of three servers dies: each gets a whole response. All connections to
/// the servers are kept-alive ones by then: a request that was sent on a fresh one is not sent again.
#[test]
fn a_server_that_dies_under_load_loses_no_request() {
    const N_CLIENTS: usize = 4;
    const N_REQUESTS: usize = 200;
    let warm = Gate::default();
    let origins = [(); 3].map(|()| {
        let warm = warm.clone();
        Origin::serving(move |conn| {
            while conn.request().is_some() {
                warm.wait();
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            }
        })
    });
    let proxy = Proxy::over(&origins).module("round_robin").start();
    let mut clients: Vec<_> = (0..3 * N_CLIENTS).map(|_| proxy.connect()).collect();
    for client in &mut clients {
        client.get("/warm");
    }
    for origin in &origins {
        origin.wait_for_requests(N_CLIENTS);
    }
    warm.open();
    for client in &mut clients {
        assert_eq!(client.reply().text(), "ok");
    }
    std::thread::scope(|scope| {
        for client in &mut clients[..N_CLIENTS] {
            scope.spawn(|| {
                for _ in 0..N_REQUESTS {
                    let reply = client.get("/").reply();
                    assert_eq!((reply.status(), reply.cut, reply.text().as_str()), (200, None, "ok"));
                }
            });
        }
        scope.spawn(|| {
            origins[1].wait_for_requests(N_CLIENTS + N_REQUESTS / 2);
            origins[1].stop();
        });
    });
    let n = N_CLIENTS * (N_REQUESTS + 3);
    proxy.wait_for_metric("trylist_requests_total{cluster=\"%\",code=\"200\"}", n as f64);
}

#[test]
fn a_strangers_module_is_loaded_by_one_line() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let proxy = Proxy::over(&origins).module_file("least_used", &artifacts::third_party()).start();
    let names = proxy.names(9);
    for name in ["a", "b", "c"] {
        assert_eq!(names.matches(name).count(), 3, "{names}");
    }
}

#[test]
fn a_module_in_c_is_loaded_by_the_same_line() {
    let origins = ["a", "b", "c"].map(Origin::named);
    let proxy = Proxy::over(&origins).module_file("c_example", &artifacts::c_module()).start();
    assert_eq!(proxy.names(6), "a b c a b c");
    origins[0].stop();
    assert_eq!(proxy.names(4).matches('a').count(), 0);
}

#[test]
fn several_modules_serve_side_by_side() {
    let origins = ["a", "b"].map(Origin::named);
    let other = format!(
        "random = {:?}\n[[cluster]]\nname = \"other\"\nmodule = \"random\"\nservers = [\"{}\"]\n\
         [[route]]\npath = \"/other\"\ncluster = \"other\"\n",
        artifacts::module("random"),
        origins[0].url()
    );
    let text = Proxy::over(&origins).text();
    let (head, rest) = text.split_once("[[cluster]]").unwrap();
    let (own, rest) = (format!("{head}{other}"), format!("[[cluster]]{rest}"));
    let proxy = Proxy::of("test.toml", &(own + &rest)).unwrap();
    assert_eq!(proxy.names(2), "a b");
    assert_eq!(proxy.get("/other").text(), "a");
}

#[test]
fn report_headers_full_of_rubbish_change_no_choice_and_fill_no_log() {
    let rubbish = [
        "".to_owned(),
        "TEXT cpu_utilization=-1,rps_fractional=nan".to_owned(),
        "TEXT \u{80}=1e999".to_owned(),
        "BIN CZqZmZmZmbk/".to_owned(),
        format!("JSON {{\"named_metrics\":{}", "[".repeat(8000)),
        "JSON {\"rps_fractional\": 1e300, \"cpu_utilization\": 1e-300}".to_owned(),
    ];
    let origin = |name: &str| {
        let (name, rubbish) = (name.to_owned(), rubbish.clone());
        Origin::serving(move |conn| {
            for header in rubbish.iter().cycle() {
                let reply = format!(
                    "HTTP/1.1 200 OK\r\nendpoint-load-metrics: {header}\r\nContent-Length: 1\r\n\r\n{name}"
                );
                if conn.request().is_none() || !conn.send(reply) {
                    break;
                }
            }
        })
    };
    let origins = ["a", "b", "c"].map(origin);
    let proxy = Proxy::over(&origins).module("backend_load").start();
    let names = proxy.names(300);
    let count = |name: &str| names.split(' ').filter(|other| *other == name).count();
    assert_eq!([count("a"), count("b"), count("c")], [100, 100, 100]);
    let lines = log::lines(&["endpoint-load-metrics", proxy.cluster()]);
    assert!(lines.len() == 1 && lines[0].contains("is ignored: it begins with neither"), "{lines:#?}");
}
