//! Requests that a route answers without a server.

use std::time::Instant;

use super::report::{RequestReport, conclude_without_server, end, write_whole};
use super::request::{AfterRequest, Memory, keeps, values};
use crate::config::Answer;
use crate::http::h1::head::{Framing, RequestHead};
use crate::serve::downstream::Downstream;
use crate::serve::plan::Plan;
use crate::serve::respond::{self, Written};
use crate::serve::thread::Thread;

/// Answers as the route says. An unread body ends the connection, as after an error.
pub(super) async fn answer(
    thread: &Thread,
    down: &mut Downstream,
    memory: &mut Memory,
    (plan, head): (&Plan<'_>, &RequestHead),
    answer: &Answer,
    started: Instant,
) -> AfterRequest {
    let keep = head.framing == Framing::None && keeps(thread, down, head);
    let mut out = std::mem::take(&mut memory.response);
    out.clear();
    let date = (&thread.date, started);
    let Written { status, body_bytes, rest } = match answer {
        Answer::Respond(fixed) => respond::write_fixed(date, fixed, head, keep, &mut out),
        Answer::Redirect(redirect) => {
            match respond::write_redirect(date, redirect, (plan, head), keep, &mut out) {
                Ok(written) => written,
                Err(error) => {
                    memory.response = out;
                    return super::refuse_routed(thread, down, memory, (plan, head), error).await;
                }
            }
        }
    };
    if let Some(rules) = plan.route.response_headers.as_deref() {
        respond::apply_rules(rules, &values((plan, head), down, ("", ""), status), &mut out);
    }
    let sent = write_whole(thread, down, &out, rest).await;
    let bytes = (out.len() + rest.len()) as u64;
    memory.response = out;
    let report = RequestReport {
        status,
        received_bytes: head.len() as u64,
        sent_bytes: if sent { bytes } else { 0 },
        body_bytes: if sent { body_bytes } else { 0 },
        ..RequestReport::default()
    };
    conclude_without_server(thread, down, Some(head), Some(plan), report, started);
    down.served_at = Instant::now();
    end(sent, keep)
}
