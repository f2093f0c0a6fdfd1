//! Every choice that nginx made, made again.

use lb_api::testkit::FakeRequest;
use mod_ip_hash::IpHash;
use recorded::{client, replay};

#[test]
fn chooses_what_nginx_chose() {
    let n_choices =
        replay::<IpHash>(include_str!("data/nginx.txt"), |i| FakeRequest::get("/").client(client(i)));
    assert!(n_choices > 200_000, "{n_choices} choices recorded");
}
