//! The listening sockets. The supervisor holds each for as long as the configuration has its address.
//!
//! The kernel spreads new connections over all sockets of an address, read or not. So the number of sockets of a listener is
//! fixed when it is bound, and a worker with more or fewer threads reads the same ones. A Unix socket is but one; its file is
//! removed when it is closed here.
//!
//! A listener that a reload removes is held a moment longer, while the generation before reads it: the next reload may have
//! it again, and then it is the same sockets. After that its address is still known to be this proxy's own until the
//! generation that reads it has ended, so that an address which overlaps can be bound beside it.
//!
//! ```text
//! named ── reload without it ─► leaving (0.5 s) ─► lent, closed here ─► its reader has ended
//!   ▲                              │
//!   └───── reload with it ─────────┘
//! ```

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use listenfd::ListenFd;

use crate::config::{Access, Admin, Config, Listener, Place};
use crate::net::address::Address;
use crate::process::sockets::{self, BindError, Bound, InTheWay};

/// A listener that was removed is held so much longer: whoever edits a file twice in a row is that quick.
const LEAVING: Duration = Duration::from_millis(500);

/// All listening sockets.
pub(super) struct HeldSockets {
    listeners: Vec<Socket>,
    admin: Option<(Address, Bound)>,
    /// Sockets of a service manager that no listener uses yet.
    inherited: Vec<(Address, OwnedFd)>,
    leaving: Vec<Leaving>,
    /// Readers of removed Unix sockets. Their files are gone, so they do not come back.
    last: Vec<ListenerReader>,
    /// Addresses that are closed here, with the generation that may still read them.
    lent: Vec<(SocketAddr, u64)>,
}

/// A listener that the configuration does not name any more.
struct Leaving {
    socket: Socket,
    /// Its reader.
    reader: ListenerReader,
    until: Instant,
}

/// A generation that reads a listener which was removed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListenerReader {
    pub(super) generation: u64,
    /// The listener's place in its configuration.
    pub(super) listener: usize,
}

struct Socket {
    key: ListenerKey,
    bound: Bound,
    /// A service manager has bound it: once closed, it does not come back.
    is_inherited: bool,
}

/// A listener is known by its address as configured; port 0, which is a port of its own each time, by its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ListenerKey {
    address: Address,
    turn: usize,
}

/// Sockets bound for a configuration that does not serve yet. They are closed if it never does.
pub(super) struct NewSockets {
    listeners: Vec<Socket>,
    /// Listeners that were about to be closed.
    back: Vec<Leaving>,
    admin: Option<(Address, Bound)>,
}

impl HeldSockets {
    /// Nothing but what a service manager hands over (systemd's LISTEN_FDS).
    pub(super) fn inherited() -> Self {
        let mut given = ListenFd::from_env();
        let sockets = (0..given.len()).filter_map(|i| {
            let tcp = given.take_tcp_listener(i).ok().flatten();
            let socket: OwnedFd = match tcp {
                Some(socket) => socket.into(),
                None => given.take_unix_listener(i).ok().flatten()?.into(),
            };
            rustix::io::ioctl_fionbio(&socket, true).ok()?;
            Some((sockets::address_of(&socket).ok()?, socket))
        });
        let inherited = sockets.collect();
        Self { inherited, ..Self::nothing() }
    }

    fn nothing() -> Self {
        let (listeners, inherited, leaving, last, lent) = Default::default();
        Self { listeners, admin: None, inherited, leaving, last, lent }
    }

    /// Binds what a configuration listens on and is not held yet.
    pub(super) fn bind(&mut self, config: &Config) -> Result<NewSockets, Vec<BindError>> {
        let mut new = NewSockets { listeners: Vec::new(), back: Vec::new(), admin: None };
        let mut failed = Vec::new();
        for (key, listener) in keys(config) {
            if self.listeners.iter().any(|held| held.key == key) {
                continue;
            }
            if let Some(idx) = self.leaving.iter().position(|leaving| leaving.socket.key == key) {
                new.back.push(self.leaving.remove(idx));
                continue;
            }
            match self.bind_listener(listener, config.threads, &new) {
                Ok((bound, is_inherited)) => new.listeners.push(Socket { key, bound, is_inherited }),
                Err(error) => failed.push(error),
            }
        }
        if let Some(admin) = &config.admin
            && self.admin.as_ref().is_none_or(|(address, _)| *address != admin.address)
        {
            match self.bind_admin(admin, &new) {
                Ok(bound) => new.admin = Some((admin.address.clone(), bound)),
                Err(error) => failed.push(error),
            }
        }
        if failed.is_empty() {
            return Ok(new);
        }
        self.give_back(new, None);
        Err(failed)
    }

    /// Closes what was bound for a configuration that never came to be served, by the generation that may have it.
    pub(super) fn give_back(&mut self, new: NewSockets, generation: Option<u64>) {
        self.leaving.extend(new.back);
        if let Some(generation) = generation {
            self.lend(new.listeners.iter().map(|socket| &socket.bound), generation);
            self.lend(new.admin.iter().map(|(_, bound)| bound), generation);
        }
        let inherited = new.listeners.into_iter().filter(|socket| socket.is_inherited);
        self.inherited.extend(inherited.flat_map(
            |Socket { bound: Bound { address, sockets, .. }, .. }| {
                sockets.into_iter().map(move |socket| (address.clone(), socket))
            },
        ));
    }

    /// Says of sockets that a service manager has bound and no listener names that nobody reads them.
    pub(super) fn warn_of_unread(&self) {
        for (address, _) in &self.inherited {
            tracing::warn!("the service manager listens on {address}, which no listener uses");
        }
    }

    fn bind_listener(
        &mut self,
        listener: &Listener,
        n_threads: usize,
        new: &NewSockets,
    ) -> Result<(Bound, bool), BindError> {
        let inherited = self.take_inherited(&listener.address);
        if !inherited.is_empty() {
            tracing::info!("listener {} uses a socket from the service manager", listener.address);
            return Ok((Bound { address: listener.address.clone(), sockets: inherited, file: None }, true));
        }
        // As many as there may be threads after any reload, within reason.
        let n_cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let in_the_way = self.in_the_way(&listener.address, new);
        Ok((sockets::bind(listener, n_threads.max(n_cpus), in_the_way)?, false))
    }

    fn bind_admin(&mut self, admin: &Admin, new: &NewSockets) -> Result<Bound, BindError> {
        if let Some(socket) = self.take_inherited(&admin.address).pop() {
            return Ok(Bound { address: admin.address.clone(), sockets: vec![socket], file: None });
        }
        sockets::bind_admin(admin, self.in_the_way(&admin.address, new))
    }

    /// The owner of sockets that may block this address.
    fn in_the_way(&self, address: &Address, new: &NewSockets) -> InTheWay {
        let listeners = self.listeners.iter().chain(&new.listeners);
        let leaving = self.leaving.iter().chain(&new.back).map(|leaving| &leaving.socket);
        let admin = self.admin.iter().chain(&new.admin).map(|(_, bound)| bound);
        let bound = listeners.chain(leaving).map(|socket| &socket.bound).chain(admin);
        let mut own =
            bound.filter_map(|bound| bound.address.ip()).chain(self.lent.iter().map(|(own, _)| *own));
        let overlaps = address.ip().is_some_and(|address| own.any(|own| sockets::overlap(own, address)));
        if overlaps { InTheWay::Own } else { InTheWay::Others }
    }

    fn lend<'a>(&mut self, bound: impl Iterator<Item = &'a Bound>, generation: u64) {
        self.lent.extend(bound.filter_map(|bound| Some((bound.address.ip()?, generation))));
    }

    fn take_inherited(&mut self, address: &Address) -> Vec<OwnedFd> {
        self.inherited.extract_if(.., |(bound, _)| bound == address).map(|(_, socket)| socket).collect()
    }

    /// Takes what was bound for a configuration that is served from now on, and was not by the generation before. Returns who
    /// else reads some of it.
    pub(super) fn keep(&mut self, new: NewSockets, before: Option<u64>) -> Vec<ListenerReader> {
        let readers = new.back.iter().map(|leaving| leaving.reader).collect();
        self.listeners.extend(new.listeners);
        self.listeners.extend(new.back.into_iter().map(|leaving| leaving.socket));
        if new.admin.is_some() {
            self.close_admin(before);
            self.admin = new.admin;
        }
        readers
    }

    fn close_admin(&mut self, reader: Option<u64>) {
        if let (Some((_, bound)), Some(reader)) = (self.admin.take(), reader) {
            self.lend(std::iter::once(&bound), reader);
        }
    }

    /// Has Unix sockets that were bound before be for whom this configuration says. Where that fails they stay as they are,
    /// with a line for each.
    pub(super) fn allow(&self, config: &Config) -> Vec<String> {
        let listeners = keys(config).filter_map(|(key, listener)| {
            let held = self.listeners.iter().find(|held| held.key == key)?;
            Some((&held.bound, &listener.access, &listener.place))
        });
        let admin = config.admin.as_ref().zip(self.admin.as_ref());
        let admin = admin.map(|(admin, (_, bound))| (bound, &admin.access, &admin.place));
        let refused = |(bound, access, place): (&Bound, &Access, &Place)| {
            let error = bound.file.as_ref()?.allow(access).err()?;
            Some(format!("{place}: the socket \"{}\" keeps its owner and mode: {error}", bound.address))
        };
        listeners.chain(admin).filter_map(refused).collect()
    }

    /// The sockets that a worker of this configuration needs: how many each listener has, whether there is an admin
    /// listener, and all of them in that order.
    pub(super) fn of<'a>(
        &'a self,
        new: &'a NewSockets,
        config: &Config,
    ) -> (Vec<usize>, bool, Vec<BorrowedFd<'a>>) {
        let (mut n_sockets, mut descriptors) = (Vec::new(), Vec::new());
        for (key, _) in keys(config) {
            let back = new.back.iter().map(|leaving| &leaving.socket);
            let known = self.listeners.iter().chain(&new.listeners).chain(back).find(|held| held.key == key);
            let sockets = known.map_or(&[][..], |held| &held.bound.sockets);
            n_sockets.push(sockets.len());
            descriptors.extend(sockets.iter().map(|socket| socket.as_fd()));
        }
        let admin = config.admin.as_ref().and_then(|_| new.admin.as_ref().or(self.admin.as_ref()));
        descriptors.extend(admin.iter().flat_map(|(_, bound)| &bound.sockets).map(|socket| socket.as_fd()));
        (n_sockets, admin.is_some(), descriptors)
    }

    /// Lets go of what this configuration does not name. Returns which listeners of the one before those were, by their place
    /// in it: its generation reads them on.
    pub(super) fn let_go(&mut self, before: Option<(u64, &Config)>, now: &Config) -> Vec<usize> {
        let named: Vec<ListenerKey> = keys(now).map(|(key, _)| key).collect();
        if now.admin.is_none() {
            self.close_admin(before.map(|(generation, _)| generation));
        }
        // Nobody would read it after the drain.
        let drain = before.map_or(Duration::ZERO, |(_, before)| before.timeouts.drain);
        let (mut removed, until) = (Vec::new(), Instant::now() + LEAVING.min(drain / 2));
        for socket in self.listeners.extract_if(.., |held| !named.contains(&held.key)) {
            let Some((generation, before)) = before else { continue };
            let Some(listener) = keys(before).position(|(key, _)| key == socket.key) else { continue };
            removed.push(listener);
            let reader = ListenerReader { generation, listener };
            match socket.bound.address {
                Address::Ip(_) => self.leaving.push(Leaving { socket, reader, until }),
                // A new one takes the place of its file, whoever reads this one.
                Address::Unix(_) => self.last.push(reader),
            }
        }
        removed
    }

    /// When there is one to be closed for good.
    pub(super) fn due(&self) -> Option<Instant> {
        let due = self.leaving.iter().map(|leaving| leaving.until).min();
        if self.last.is_empty() { due } else { Some(Instant::now()) }
    }

    /// Closes those that were removed and have not come back. Returns who reads them last.
    pub(super) fn close_leaving(&mut self, now: Instant) -> Vec<ListenerReader> {
        let gone: Vec<Leaving> = self.leaving.extract_if(.., |leaving| now >= leaving.until).collect();
        for Leaving { socket, reader, .. } in &gone {
            self.lend(std::iter::once(&socket.bound), reader.generation);
        }
        let last = std::mem::take(&mut self.last);
        gone.iter().map(|leaving| leaving.reader).chain(last).collect()
    }

    /// A generation has ended, and reads nothing any more.
    pub(super) fn ended(&mut self, generation: u64) {
        self.lent.retain(|(_, reader)| *reader != generation);
        self.leaving.retain(|leaving| leaving.reader.generation != generation);
    }

    /// Closes everything.
    pub(super) fn close(&mut self) {
        *self = Self::nothing();
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.listeners.iter().map(|held| &held.bound.address)
    }

    /// Where the admin listener is.
    pub(super) fn admin_address(&self) -> Option<&Address> {
        self.admin.as_ref().map(|(_, bound)| &bound.address)
    }
}

fn keys(config: &Config) -> impl Iterator<Item = (ListenerKey, &Listener)> {
    config.listeners.iter().enumerate().map(|(i, listener)| {
        let turn = config.listeners[..i].iter().filter(|other| other.address == listener.address).count();
        (ListenerKey { address: listener.address.clone(), turn }, listener)
    })
}
