//! `trylist module inspect`: what a module is, needs and supports.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use lb_api::version::{ABI_MAJOR, ABI_MINOR};
use lb_api::wire;
use trylist::module::Module;
use trylist::module::balancer::{Balancer, BuildInput, EndpointInput, ModuleScope, Needs};
use trylist::module::guarded;
use trylist::module::load;
use trylist::process::control::Exit;

use crate::apart;
use crate::cli::Apart;
use crate::output::{CommandFailure, line, print};

/// Loads a module, in a process apart, and describes it.
pub(crate) fn run(file: &Path, apart: &Apart) -> Result<(), CommandFailure> {
    let Some(board) = apart.child else {
        return apart::run(apart::TIME_LIMIT, &[], |_| file.display().to_string());
    };
    apart::child(board, || {
        let refused = |error| CommandFailure { exit: Exit::Module, text: line(&error) };
        let copied = load::read_file(file).map_err(refused)?;
        apart::become_user(None, apart.as_root).map_err(CommandFailure::new)?;
        let copied = copied.runnable().map_err(CommandFailure::new)?;
        apart::confine();
        guarded::guard(&[copied.number()]);
        print(&describe(&load::open_any(copied).map_err(refused)?))
    })
}

/// One fact a line, its name first.
fn describe(module: &Arc<Module>) -> String {
    let (major, minor) = module.abi();
    let trylist = module.trylist();
    let place = if trylist.size <= wire::TRYLIST_IN_PLACE { "in place" } else { "an allocation a request" };
    let supports = module.supports();
    let calls = [("observe", supports.observe), ("save", supports.save), ("explain", supports.explain)];
    let optional = list(calls.into_iter().filter(|(_, has)| *has).map(|(name, _)| name.to_owned()));
    let needs = match needs_without_settings(module) {
        Ok(needs) => format!("{} (built without settings)", list(words(&needs))),
        Err(why) => format!("not known: without settings it does not build: {why}"),
    };
    format!(
        "module    {}\n\
         version   {}\n\
         summary   {}\n\
         file      {}\n\
         sha256    {}\n\
         abi       {major}.{minor} (this host provides {ABI_MAJOR}.{ABI_MINOR})\n\
         language  {}\n\
         trylist   {} bytes, aligned to {} ({place})\n\
         optional  {optional}\n\
         needs     {needs}\n",
        module.id(),
        module.version(),
        module.summary(),
        module.file().display(),
        hex(module.sha256()),
        module.language(),
        trylist.size,
        trylist.align,
    )
}

/// Needs are said by an instance, so one is built, of one server and no settings.
fn needs_without_settings(module: &Arc<Module>) -> Result<Needs, String> {
    // Modules may keep these for the life of the process, which is short here.
    let counters = Box::leak(Box::new(wire::Counters {
        size: size_of::<wire::Counters>() as u32,
        state: AtomicU32::new(wire::STATE_AVAILABLE),
        effective_weight: AtomicU32::new(1 << 16),
        in_flight: AtomicU32::new(0),
        in_flight_older: AtomicU32::new(0),
        max_in_flight: AtomicU32::new(0),
        latency_ns: AtomicU64::new(0),
    }));
    let state = Box::leak(Box::new(wire::ClusterState {
        size: size_of::<wire::ClusterState>() as u32,
        n_available: AtomicU32::new(1),
        epoch: AtomicU64::new(0),
    }));
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    let endpoint = EndpointInput {
        id: 1,
        url: "http://127.0.0.1:80",
        name: "127.0.0.1",
        port: 80,
        address: Some(address),
        weight: 1,
        metadata: &[],
        counters,
    };
    let endpoints = &[endpoint];
    let input = BuildInput { endpoints, state, settings: &[], previous: None, saved: None };
    let balancer =
        Balancer::build(&ModuleScope::new(module, "inspect", None, 0), input).map_err(|error| {
            error
                .problems
                .iter()
                .map(|problem| format!("{} {}", problem.path, problem.text).trim().to_owned())
                .collect::<Vec<_>>()
                .join("; ")
        })?;
    Ok(balancer.needs().clone())
}

fn words(needs: &Needs) -> Vec<String> {
    let mut words = Vec::new();
    if needs.key {
        words.push("the cluster's key".to_owned());
    }
    words.extend(needs.request_headers.iter().map(|name| format!("request header {name}")));
    words.extend(needs.response_headers.iter().map(|name| format!("response header {name}")));
    let events = [
        (wire::EVENT_CONNECTED, "connected"),
        (wire::EVENT_RESPONSE_HEADERS, "response headers"),
        (wire::EVENT_TRY_ENDED, "try ended"),
    ];
    let asked = events.into_iter().filter(|(event, _)| needs.events & (1 << event) != 0);
    words.extend(asked.map(|(_, name)| format!("event \"{name}\"")));
    words
}

fn list(words: impl IntoIterator<Item = String>) -> String {
    let words: Vec<_> = words.into_iter().collect();
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_needed_in_words() {
        assert_eq!(list(words(&Needs::default())), "nothing");
        let needs = Needs {
            key: true,
            events: 1 << wire::EVENT_TRY_ENDED,
            request_headers: ["x-user".into()].into(),
            response_headers: ["x-load".into()].into(),
        };
        let expected =
            "the cluster's key, request header x-user, response header x-load, event \"try ended\"";
        assert_eq!(list(words(&needs)), expected);
    }
}
