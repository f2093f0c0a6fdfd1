//! The contract's chapter on inputs that are rare: many endpoints, endpoints without an address, odd requests, weights of 0, and
//! endpoints that are full.

use super::{Contract, List, key_of, kinds, to_the_end};
use crate::testkit::cluster::{FakeCluster, FakeRequest};
use crate::trylist::Next;

/// Endpoints that are more than a byte counts.
const BEYOND_A_BYTE: usize = 300;

/// Endpoints that are as many as anybody has. Beyond 65,536 no host goes.
const VERY_MANY: usize = 10_000;

impl<B> Contract<B> {
    /// Indices are 32 bits wide.
    pub(super) fn reaches_every_endpoint_of_many(&self) {
        if self.takes(BEYOND_A_BYTE) {
            let cluster = self.equal(BEYOND_A_BYTE);
            let balancer = self.build(&cluster);
            self.expect_all(&balancer, BEYOND_A_BYTE, "a build of 300 endpoints");
        }
        if !self.takes(VERY_MANY) {
            return;
        }
        let cluster = self.equal(VERY_MANY);
        let balancer = self.build(&cluster);
        // All but a few were tried, so that those few have to be found.
        let left = [3, 255, 256, 4_095, 9_743, 9_999];
        for request in kinds(7) {
            let key = key_of(&request);
            let mut trylist = balancer.load_balance(request);
            (0..VERY_MANY).filter(|idx| !left.contains(idx)).for_each(|idx| trylist.mark_tried(idx));
            let (mut offered, _) = to_the_end(&mut trylist, &key);
            offered.sort_unstable();
            self.same(
                &offered,
                &left,
                format_args!("{key}, of {VERY_MANY} endpoints of which the host has tried all others"),
            );
        }
    }

    /// A name may have no address yet, and a Unix socket never has one.
    pub(super) fn takes_endpoints_without_an_address(&self) {
        let urls = [
            "http://app.internal:8080",
            "http://[2001:db8::1]:8080",
            "unix:/run/app.sock",
            "http://192.0.2.7:80",
            "http://[2001:db8::2]:8443",
            "unix:/run/other.sock",
            "https://b\u{fc}cher.example:443",
        ];
        if !self.takes(urls.len()) {
            return;
        }
        let cluster = FakeCluster::at(&urls);
        let balancer = self.build(&cluster);
        self.expect_all(&balancer, urls.len(), "a build of names, IPv6 addresses and Unix sockets");
    }

    /// Whatever HTTP allows arrives.
    pub(super) fn takes_every_request(&self) {
        const N: usize = 5;
        if !self.takes(N) {
            return;
        }
        let cluster = self.equal(N);
        let balancer = self.build(&cluster);
        let get = || FakeRequest::get("/");
        let long = "x".repeat(60_000);
        let requests = [
            ("without a client's address", get().without_client()),
            ("without a client's address, with a key", get().without_client().key("key")),
            ("from an IPv6 client", get().client(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 40_000).into())),
            ("with bytes above 0x7f in its path", get().path(b"/\xff\xfe\x80")),
            ("with bytes above 0x7f in its query", get().query(Some(b"q=\xc3\x28"))),
            ("with bytes above 0x7f in its key", get().key(b"\xff\x00\xf0")),
            ("with an empty key", get().key("")),
            ("with a key of 60,000 bytes", get().key(&long)),
            ("with a path of 60,000 bytes", FakeRequest::get(&format!("/{long}"))),
            ("with an empty query", get().query(Some(b""))),
            ("without an authority", get().authority(None)),
            ("for *", get().method("OPTIONS").path("*")),
            ("with an unknown method", get().method("BREW")),
            ("with bytes above 0x7f in every header asked for", self.with_every_header(get(), b"\xff\xe9")),
            ("with an empty value in every header asked for", self.with_every_header(get(), b"")),
        ];
        for (what, request) in requests {
            let mut trylist = balancer.load_balance(request);
            let (mut offered, _) = to_the_end(&mut trylist, what);
            let _ = trylist.explain();
            offered.sort_unstable();
            self.same(&offered, &(0..N).collect::<Vec<_>>(), format_args!("for a request {what}"));
        }
    }

    /// Slow start may begin at 0. A draining server has it, too, before its state arrives.
    pub(super) fn ends_when_weights_are_zero(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        (0..n).filter(|idx| idx % 2 == 0).for_each(|idx| cluster.set_effective_weight(idx, 0));
        let weighted: Vec<_> = (0..n).filter(|idx| idx % 2 == 1).collect();
        for request in (0..3).flat_map(kinds) {
            let key = key_of(&request);
            let mut trylist = balancer.load_balance(request);
            let (mut offered, _) = to_the_end(&mut trylist, &key);
            offered.retain(|idx| idx % 2 == 1);
            offered.sort_unstable();
            self.same(
                &offered,
                &weighted,
                format_args!("of those with a weight, {key}, where every other one has weight 0"),
            );
        }
        (0..n).for_each(|idx| cluster.set_effective_weight(idx, 0));
        for request in kinds(3) {
            let mut trylist = balancer.load_balance(request);
            let (offered, _) = to_the_end(&mut trylist, "where all weights are 0");
            assert!(offered.len() <= n, "contract: a trylist ends when all weights are 0");
        }
        (0..n).for_each(|idx| cluster.set_effective_weight(idx, 1 << 16));
        self.expect_all(&balancer, n, "weights of 0");
    }

    /// BUSY means that every endpoint that is left is full.
    pub(super) fn waits_only_while_all_are_full(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        for idx in 0..n {
            cluster.set_max_in_flight(idx, 1);
            cluster.set_in_flight(idx, u32::from(idx % 2 == 0));
        }
        let free: Vec<_> = (0..n).filter(|idx| idx % 2 == 1).collect();
        for request in (0..3).flat_map(kinds) {
            let key = key_of(&request);
            let mut trylist = balancer.load_balance(request);
            // As a host does: what is full is declined, and `next` is asked again.
            let mut served = Vec::new();
            let end = loop {
                match trylist.next() {
                    Next::Endpoint(idx) if idx % 2 == 0 => {}
                    Next::Endpoint(idx) => {
                        served.push(idx);
                        trylist.fail();
                    }
                    end => break end,
                }
            };
            served.sort_unstable();
            self.same(
                &served,
                &free,
                format_args!("of those that are not full, {key}; it ended with {end:?}"),
            );
        }
        (0..n).for_each(|idx| cluster.set_in_flight(idx, 1));
        for (freed, request) in [0, n / 2, n - 1].into_iter().zip((0..2).flat_map(kinds)) {
            let key = key_of(&request);
            let mut trylist = balancer.load_balance(request);
            let answers = (0..=n).map(|_| trylist.next()).find(|answer| !matches!(answer, Next::Endpoint(_)));
            let end =
                answers.unwrap_or_else(|| panic!("contract: a trylist ends when all endpoints are full"));
            if end != Next::Busy {
                continue;
            }
            trylist.wait();
            cluster.set_in_flight(freed, 0);
            // It may not know which one that is.
            let is_end =
                |answer: &Next| *answer == Next::Endpoint(freed) || !matches!(answer, Next::Endpoint(_));
            let end = (0..=n).map(|_| trylist.next()).find(is_end);
            assert!(
                end == Some(Next::Endpoint(freed)) || (self.may_end_early && end == Some(Next::Exhausted)),
                "contract: answered Busy, and {end:?} when endpoint {freed} of {n} was free again, {key}"
            );
            cluster.set_in_flight(freed, 1);
        }
        (0..n).for_each(|idx| {
            cluster.set_in_flight(idx, 0);
            cluster.set_max_in_flight(idx, 0);
        });
        self.expect_all(&balancer, n, "all were full");
    }

    /// Texts belong to the host once their call returns. Two instances get the same calls, and the texts of one are overwritten
    /// behind each.
    pub(super) fn keeps_no_text(&self) {
        const N: usize = 7;
        if !self.takes(N) {
            return;
        }
        let told = |spoils: bool| {
            // The same chance for each.
            let cluster = self.equal(N).metadata(2, "zone", "a").metadata(5, "zone", "b");
            let builder = self.builder(&cluster);
            let built = if spoils { builder.spoils_texts().build() } else { builder.build() };
            let balancer =
                built.unwrap_or_else(|why| panic!("contract: refused to build with {N} endpoints: {why}"));
            let requests = (0..100).flat_map(kinds).map(|request| {
                let mut trylist = balancer.load_balance(request);
                let first = trylist.next();
                trylist.fail();
                let second = trylist.next();
                let said = trylist.explain();
                trylist.serve();
                (first, second, said)
            });
            requests.collect::<Vec<_>>()
        };
        let (kept, again, spoiled) = (told(false), told(false), told(true));
        if kept != again {
            // It chooses by something else than what it is told, so that nothing can be compared.
            return;
        }
        for (n, (kept, spoiled)) in kept.iter().zip(&spoiled).enumerate() {
            assert!(
                kept == spoiled,
                "contract: request {n} is answered {spoiled:?} where the texts of earlier calls were overwritten, and {kept:?} where they \
                 were not: a text is the host's once its call has returned, and a module that needs it later copies it"
            );
        }
    }

    fn with_every_header(&self, request: FakeRequest, value: &[u8]) -> FakeRequest {
        // Names that balancers here and there ask for.
        let asked = self.settings.iter().filter_map(|(_, value)| match value {
            super::SettingValue::String(name) => Some(name.clone()),
            _ => None,
        });
        let usual = ["cookie", "host", "user-agent", "x-user", "x-forwarded-for"].map(str::to_owned);
        usual.into_iter().chain(asked).fold(request, |request, name| request.header(&name, value))
    }

    /// Endpoints, as messages list them.
    #[track_caller]
    pub(super) fn same(&self, offered: &[usize], expected: &[usize], when: std::fmt::Arguments<'_>) {
        let is_part = self.may_end_early && offered.iter().all(|idx| expected.contains(idx));
        assert!(
            offered == expected || is_part,
            "contract: offered {}, expected {}; {when}",
            List(offered),
            List(expected)
        );
    }
}
