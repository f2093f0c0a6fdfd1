//! The listening sockets, held for as long as the configuration names their address, whoever reads them.
//!
//! The kernel spreads new connections over all sockets of an address, read or not. So the number of sockets of a listener is
//! fixed when it is bound, and a worker with more or fewer threads reads the same ones. A Unix socket is but one; its file is
//! removed when it is closed here.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use listenfd::ListenFd;

use crate::address::Address;
use crate::config::{Access, Admin, Config, Listener, Place};
use crate::sockets::{self, BindError, Bound};

/// What is listened on.
pub(super) struct Held {
    listeners: Vec<Socket>,
    admin: Option<(Address, Bound)>,
    /// What a service manager has bound and nobody has asked for yet.
    inherited: Vec<(Address, OwnedFd)>,
}

struct Socket {
    key: Key,
    bound: Bound,
    /// A service manager has bound it: once closed, it does not come back.
    is_inherited: bool,
}

/// A listener is known by its address as configured; port 0, which is a port of its own each time, by its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    address: Address,
    turn: usize,
}

/// What was bound for a configuration that is not served yet; closed again if it never is.
pub(super) struct New {
    listeners: Vec<Socket>,
    admin: Option<(Address, Bound)>,
}

impl Held {
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
        Self { listeners: Vec::new(), admin: None, inherited }
    }

    /// Binds what a configuration listens on and is not held yet.
    pub(super) fn bind(&mut self, config: &Config) -> Result<New, Vec<BindError>> {
        let mut new = New { listeners: Vec::new(), admin: None };
        let mut failed = Vec::new();
        for (key, listener) in keys(config) {
            if self.listeners.iter().any(|held| held.key == key) {
                continue;
            }
            match self.bind_listener(listener, config.threads) {
                Ok((bound, is_inherited)) => new.listeners.push(Socket { key, bound, is_inherited }),
                Err(error) => failed.push(error),
            }
        }
        if let Some(admin) = &config.admin
            && self.admin.as_ref().is_none_or(|(address, _)| *address != admin.address)
        {
            match self.bind_admin(admin) {
                Ok(bound) => new.admin = Some((admin.address.clone(), bound)),
                Err(error) => failed.push(error),
            }
        }
        if failed.is_empty() {
            return Ok(new);
        }
        self.give_back(new);
        Err(failed)
    }

    /// Closes what was bound for a configuration that never came to be served.
    pub(super) fn give_back(&mut self, new: New) {
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
            tracing::warn!(
                "the service manager listens on {address}, which no listener of the configuration names"
            );
        }
    }

    fn bind_listener(&mut self, listener: &Listener, n_threads: usize) -> Result<(Bound, bool), BindError> {
        let inherited = self.take_inherited(&listener.address);
        if !inherited.is_empty() {
            tracing::info!("listener {} is the service manager's", listener.address);
            return Ok((Bound { address: listener.address.clone(), sockets: inherited, file: None }, true));
        }
        // As many as there may be threads after any reload, within reason.
        let n_cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok((sockets::bind(listener, n_threads.max(n_cpus))?, false))
    }

    fn bind_admin(&mut self, admin: &Admin) -> Result<Bound, BindError> {
        if let Some(socket) = self.take_inherited(&admin.address).pop() {
            return Ok(Bound { address: admin.address.clone(), sockets: vec![socket], file: None });
        }
        sockets::bind_admin(admin)
    }

    fn take_inherited(&mut self, address: &Address) -> Vec<OwnedFd> {
        self.inherited.extract_if(.., |(bound, _)| bound == address).map(|(_, socket)| socket).collect()
    }

    /// Takes what was bound for a configuration that is served from now on.
    pub(super) fn keep(&mut self, new: New) {
        self.listeners.extend(new.listeners);
        if new.admin.is_some() {
            self.admin = new.admin;
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
            Some(format!("{place}: the socket \"{}\" is for whom it was before: {error}", bound.address))
        };
        listeners.chain(admin).filter_map(refused).collect()
    }

    /// The sockets that a worker of this configuration needs: how many each listener has, whether there is an admin
    /// listener, and all of them in that order.
    pub(super) fn of<'a>(&'a self, new: &'a New, config: &Config) -> (Vec<usize>, bool, Vec<BorrowedFd<'a>>) {
        let (mut n_sockets, mut descriptors) = (Vec::new(), Vec::new());
        for (key, _) in keys(config) {
            let known = self.listeners.iter().chain(&new.listeners).find(|held| held.key == key);
            let sockets = known.map_or(&[][..], |held| &held.bound.sockets);
            n_sockets.push(sockets.len());
            descriptors.extend(sockets.iter().map(|socket| socket.as_fd()));
        }
        let admin = config.admin.as_ref().and_then(|_| new.admin.as_ref().or(self.admin.as_ref()));
        descriptors.extend(admin.iter().flat_map(|(_, bound)| &bound.sockets).map(|socket| socket.as_fd()));
        (n_sockets, admin.is_some(), descriptors)
    }

    /// Closes what this configuration does not name. Says which listeners of the one before those were, by their place in
    /// it: whoever reads them is the last.
    pub(super) fn let_go(&mut self, before: Option<&Config>, now: &Config) -> Vec<usize> {
        let named: Vec<Key> = keys(now).map(|(key, _)| key).collect();
        self.listeners.retain(|held| named.contains(&held.key));
        if now.admin.is_none() {
            self.admin = None;
        }
        let before = before.into_iter().flat_map(keys).enumerate();
        before.filter(|(_, (key, _))| !named.contains(key)).map(|(idx, _)| idx).collect()
    }

    /// Closes everything.
    pub(super) fn close(&mut self) {
        *self = Self { listeners: Vec::new(), admin: None, inherited: Vec::new() };
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

fn keys(config: &Config) -> impl Iterator<Item = (Key, &Listener)> {
    config.listeners.iter().enumerate().map(|(i, listener)| {
        let turn = config.listeners[..i].iter().filter(|other| other.address == listener.address).count();
        (Key { address: listener.address.clone(), turn }, listener)
    })
}
