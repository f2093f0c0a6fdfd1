//! `first`: fill up the first server before the next one gets anything.
//!
//! Sends each request to the first server that has room. Use it to keep as few servers busy as possible, for example
//! to switch the others off. A choice looks at servers in order until one has room.
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

/// A request's last answer, with the requests in flight of that endpoint then, for `explain`.
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
mod tests;
