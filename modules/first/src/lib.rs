//! `first`: fill up the first server before the next one gets anything.
//!
//! Each request goes to the first endpoint in the order of the file that is available and has room: fewer requests in flight
//! than its `max_requests`. So as few servers as possible are in use, and those at the end of the list can be switched off
//! at night. Nothing is remembered, and no random number is drawn.
//!
//! By hand, for servers a, b, c with room for 2 each and requests that take long:
//!
//! | | in flight (a, b, c) | chosen |
//! |---|---|---|
//! | request 1 | 0, 0, 0 | a |
//! | request 2 | 1, 0, 0 | a |
//! | request 3 | 2, 0, 0 | b |
//! | request 1 ends; request 4 | 1, 1, 0 | a |
//! | requests 5, 6, 7 | 2, 1, 0 | b, c, c |
//! | request 8 | 2, 2, 2 | none has room: the host queues it |
//! | b stops; request 9 | 2, -, 2 | none has room |
//!
//! A request whose try failed goes on to the next endpoint with room. An endpoint without a limit has room for everything, so
//! that those behind it get requests only while it is unavailable; the log says so when the balancer is built. The order of
//! the file is the only order: weights are not looked at, but one of effective weight 0 comes last.
//!
//! Counting is the host's and follows the choice, so that requests on several threads at the same moment may choose the last
//! free place together; the host declines those that come too late and asks again. Requests that an older generation of the
//! process still has in flight take places too.
//!
//! **When**: servers that cost money while they run, long-lived sessions, licences by server. **When not**: short response
//! times matter (the first servers are always as full as they may be), or the servers have no known limit.
//!
//! **Settings**: none; the limit is `max_requests` of each server. **Cost**: a look at each endpoint up to the one that is
//! chosen. **Source**: HAProxy's `balance first`.
#![forbid(unsafe_code)]

use lb_api::{Balancer, BuildCx, BuildError, Live, Next, NextCx, Request, export_balancer};

/// The instance for one cluster.
#[derive(Debug)]
pub struct First {
    endpoints: Box<[Live]>,
}

/// What a request remembers, to explain it: its last answer, with how many requests that endpoint had then.
#[derive(Debug, Default)]
pub struct Chosen(Option<(u32, u32)>);

impl Balancer for First {
    const ID: &'static str = "first";
    const SUMMARY: &'static str = "the first server in the order of the file that has room";
    type Settings = ();
    type Trylist = Chosen;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let behind = endpoints.len() - 1;
        if let Some(endpoint) = endpoints.iter().take(behind).find(|e| e.live().max_in_flight().is_none()) {
            cx.log().warn(format_args!(
                "server {} has no max_requests: those behind it get requests only while it is unavailable",
                endpoint.url()
            ));
        }
        Ok(Self { endpoints: endpoints.live() })
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) -> Chosen {
        Chosen::default()
    }

    #[inline]
    fn next(&self, chosen: &mut Chosen, cx: &NextCx<'_>) -> Next {
        let mut rest = Next::Exhausted;
        for (idx, live) in self.endpoints.iter().enumerate() {
            if !live.is_available() || cx.tried(idx) {
                continue;
            }
            match (live.is_full(), live.effective_weight()) {
                (false, 1..) => {
                    chosen.0 = Some((idx as u32, live.in_flight_of_all()));
                    return Next::Endpoint(idx);
                }
                // One of weight 0 that has room is better than to wait for one that has none.
                (false, 0) if !matches!(rest, Next::Endpoint(_)) => rest = Next::Endpoint(idx),
                (true, _) if rest == Next::Exhausted => rest = Next::Busy,
                _ => {}
            }
        }
        chosen.0 = match rest {
            Next::Endpoint(idx) => Some((idx as u32, self.endpoints[idx].in_flight_of_all())),
            Next::Busy | Next::Exhausted => None,
        };
        rest
    }

    fn explain(&self, chosen: &Chosen) -> Option<String> {
        let (endpoint, in_flight) = chosen.0?;
        let max = self.endpoints.get(endpoint as usize)?.max_in_flight();
        let of = max.map_or_else(|| "without a limit".to_owned(), |max| format!("of {max}"));
        Some(format!("the first with room is endpoint {endpoint}, with {in_flight} in flight {of}"))
    }
}

export_balancer!(First);

#[cfg(test)]
mod tests {
    use lb_api::State;
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};

    use super::*;

    fn cluster(room: &[u32]) -> FakeCluster {
        let cluster = FakeCluster::equal(room.len());
        room.iter().enumerate().for_each(|(endpoint, room)| cluster.set_max_in_flight(endpoint, *room));
        cluster
    }

    fn answer(balancer: &TestBalancer<First>) -> Next {
        balancer.load_balance(FakeRequest::get("/")).next()
    }

    #[test]
    fn keeps_the_contract() {
        Contract::<First>::new().skips_unavailable().check();
    }

    #[test]
    fn the_example_of_the_docs_comes_out() {
        let cluster = cluster(&[2, 2, 2]);
        let balancer = cluster.balancer::<First>().build().unwrap();
        let mut in_flight = [0; 3];
        let mut request = || {
            let answer = answer(&balancer);
            if let Next::Endpoint(endpoint) = answer {
                in_flight[endpoint] += 1;
                // The first request ends after the third came.
                if in_flight == [2, 1, 0] && endpoint == 1 {
                    in_flight[0] -= 1;
                }
                (0..3).for_each(|endpoint| cluster.set_in_flight(endpoint, in_flight[endpoint]));
            }
            answer
        };
        let answers: Vec<_> = (1..=8).map(|_| request()).collect();
        let expected = [0, 0, 1, 0, 1, 2, 2].map(Next::Endpoint);
        assert_eq!(answers[..7], expected);
        assert_eq!(answers[7], Next::Busy);
        cluster.set_state(1, State::Down);
        assert_eq!(request(), Next::Busy);
    }

    #[test]
    fn fills_up_in_the_order_of_the_file_whatever_the_weights() {
        let cluster = FakeCluster::weighted(&[1, 100, 7]);
        [3, 1, 5].iter().enumerate().for_each(|(endpoint, room)| cluster.set_max_in_flight(endpoint, *room));
        let balancer = cluster.balancer::<First>().build().unwrap();
        let mut in_flight = [0; 3];
        // A simulation of nothing but arrivals: every place is taken, the lower ones first.
        while let Next::Endpoint(endpoint) = answer(&balancer) {
            in_flight[endpoint] += 1;
            cluster.set_in_flight(endpoint, in_flight[endpoint]);
            let full_before = [3, 1, 5].iter().zip(in_flight).take(endpoint).all(|(room, n)| n == *room);
            assert!(full_before, "{in_flight:?}");
        }
        assert_eq!(in_flight, [3, 1, 5]);
    }

    #[test]
    fn all_full_is_busy_and_none_left_is_exhausted() {
        let cluster = cluster(&[1, 1]);
        let balancer = cluster.balancer::<First>().build().unwrap();
        cluster.set_in_flight(0, 1);
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        assert_eq!(trylist.next(), Next::Endpoint(1));
        trylist.fail();
        // The full one may still serve this request, once it has room.
        assert_eq!([trylist.next(), trylist.next()], [Next::Busy, Next::Busy]);
        cluster.set_in_flight(0, 0);
        assert_eq!(trylist.next(), Next::Endpoint(0));
        trylist.fail();
        assert_eq!(trylist.next(), Next::Exhausted);
        cluster.set_in_flight(1, 1);
        cluster.set_state(0, State::Ejected);
        assert_eq!(answer(&balancer), Next::Busy);
        cluster.set_state(1, State::Draining);
        assert_eq!(answer(&balancer), Next::Exhausted);
    }

    #[test]
    fn one_of_weight_0_comes_last_but_before_waiting() {
        let cluster = cluster(&[1, 1, 1]);
        cluster.set_effective_weight(0, 0);
        let balancer = cluster.balancer::<First>().build().unwrap();
        assert_eq!(balancer.load_balance(FakeRequest::get("/")).all(), [1, 2, 0]);
        cluster.set_in_flight(1, 1);
        cluster.set_in_flight(2, 1);
        assert_eq!(answer(&balancer), Next::Endpoint(0));
        cluster.set_in_flight(0, 1);
        assert_eq!(answer(&balancer), Next::Busy);
    }

    #[test]
    fn warns_of_a_server_without_a_limit_that_hides_others() {
        let logged = |room: &[u32]| cluster(room).balancer::<First>().build().unwrap().logged();
        assert_eq!(
            logged(&[5, 0, 0]),
            [
                "warn: server http://10.0.0.2:8080 has no max_requests: those behind it get requests only while it is \
              unavailable"
            ]
        );
        // The last one may be open-ended: there is nobody behind it.
        assert_eq!(logged(&[5, 5, 0]), [""; 0]);
        assert_eq!(logged(&[0]), [""; 0]);
    }

    #[test]
    fn says_why() {
        let cluster = cluster(&[2, 0]);
        cluster.set_in_flight(0, 1);
        let balancer = cluster.balancer::<First>().build().unwrap();
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        assert_eq!(trylist.next(), Next::Endpoint(0));
        assert_eq!(trylist.explain(), "the first with room is endpoint 0, with 1 in flight of 2");
        assert_eq!(trylist.next(), Next::Endpoint(1));
        assert_eq!(trylist.explain(), "the first with room is endpoint 1, with 0 in flight without a limit");
        assert_eq!(trylist.next(), Next::Exhausted);
        assert_eq!(trylist.explain(), "");
    }

    #[test]
    fn takes_no_settings() {
        let refused = FakeCluster::equal(1).balancer::<First>().setting("room", 5).build().err().unwrap();
        assert_eq!(refused.to_string(), "room: unknown setting, this module has none");
    }
}
