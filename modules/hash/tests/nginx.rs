//! Every choice that nginx made, made again.

use lb_api::testkit::FakeRequest;
use mod_hash::Hash;
use recorded::{key, replay};

#[test]
fn chooses_what_nginx_chose() {
    let n_choices = replay::<Hash>(include_str!("data/nginx.txt"), |i| FakeRequest::get("/").key(key(i)));
    assert!(n_choices > 200_000, "{n_choices} choices recorded");
}
