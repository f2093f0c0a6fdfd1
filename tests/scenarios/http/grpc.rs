//! gRPC through the proxy: streams both ways at once, trailers, and what a client hears where no server is left.

use tests::grpc::{Echo, call, message, rest, with_client};
use tests::origin::Origin;
use tests::proxy::Proxy;

fn over(url: String) -> Proxy {
    Proxy::over_urls([url]).listener("h2 = true").in_cluster("protocol = \"h2\"").start()
}

#[test]
fn a_call_ends_in_the_server_s_trailers() {
    let echo = Echo::start();
    let proxy = over(echo.url());
    with_client(proxy.address(), async |mut sender| {
        let mut call = call(&mut sender).await;
        call.send("hello", true);
        let (head, mut body, _send) = call.response().await;
        assert_eq!(
            (head.status.as_u16(), &head.headers["content-type"]),
            (200, &"application/grpc".parse().unwrap())
        );
        let (text, trailers) = rest(&mut body).await;
        assert_eq!(
            (text.as_str(), &trailers["grpc-status"], &trailers["x-bytes"]),
            ("hello", &"0".parse().unwrap(), &"5".parse().unwrap())
        );
    });
}

#[test]
fn messages_go_both_ways_while_both_sides_are_open() {
    let echo = Echo::start();
    let proxy = over(echo.url());
    with_client(proxy.address(), async |mut sender| {
        // The head of the response comes before there is anything of the request but its head.
        let (_, mut body, mut send) = call(&mut sender).await.response().await;
        for n in 0..20 {
            let text = format!("message {n}");
            send.send_data(text.clone().into(), false).unwrap();
            assert_eq!(message(&mut body).await, text);
        }
        send.send_data("end".into(), true).unwrap();
        let (text, trailers) = rest(&mut body).await;
        assert_eq!((text.as_str(), &trailers["grpc-status"]), ("end", &"0".parse().unwrap()));
    });
}

#[test]
fn calls_share_a_connection_and_do_not_wait_for_each_other() {
    let echo = Echo::start();
    let proxy = over(echo.url());
    with_client(proxy.address(), async |mut sender| {
        let mut open = Vec::new();
        for _ in 0..10 {
            open.push(call(&mut sender).await.response().await);
        }
        for (n, (_, body, send)) in open.iter_mut().enumerate().rev() {
            send.send_data(n.to_string().into(), true).unwrap();
            assert_eq!(rest(body).await.0, n.to_string());
        }
    });
}

#[test]
fn a_call_that_its_server_cannot_take_goes_to_the_next() {
    let (dead, echo) = (Origin::dead(), Echo::start());
    let proxy = Proxy::over_urls([dead.url(), echo.url()])
        .listener("h2 = true")
        .in_cluster("protocol = \"h2\"")
        .start();
    with_client(proxy.address(), async |mut sender| {
        // Each begins with another server, so that one of them finds the dead one.
        for _ in 0..2 {
            let mut call = call(&mut sender).await;
            call.send("hello", true);
            let (_, mut body, _send) = call.response().await;
            let (text, trailers) = rest(&mut body).await;
            assert_eq!((text.as_str(), &trailers["grpc-status"]), ("hello", &"0".parse().unwrap()));
        }
    });
    let failed = format!(
        "trylist_tries_total{{cluster=\"%\",endpoint=\"{}\",result=\"not_established\"}}",
        dead.url()
    );
    proxy.wait_for_metric(&failed, 1.0);
}

#[test]
fn a_client_hears_unavailable_where_no_server_is_left() {
    let dead = Origin::dead();
    let proxy = over(dead.url());
    with_client(proxy.address(), async |mut sender| {
        let mut call = call(&mut sender).await;
        call.send("hello", true);
        let (head, body, _send) = call.response().await;
        assert_eq!(head.status.as_u16(), 200);
        assert_eq!(head.headers["grpc-status"], "14");
        assert_eq!(head.headers["grpc-message"], "trylist: no server could be reached");
        assert!(body.is_end_stream(), "trailers only");
    });
}

#[test]
fn a_call_to_nowhere_is_unimplemented() {
    let echo = Echo::start();
    let proxy = Proxy::over_urls([echo.url()]).listener("h2 = true").in_cluster("protocol = \"h2\"");
    let proxy = proxy.route("path = \"/other\"").start();
    with_client(proxy.address(), async |mut sender| {
        let (head, ..) = call(&mut sender).await.response().await;
        assert_eq!(head.headers["grpc-status"], "12");
    });
}
