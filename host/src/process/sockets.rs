//! Listening sockets: bound before anything else is started, a fixed number for each address.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::net::SocketAddrUnix;
use rustix::process::{Gid, Resource, Uid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::config::{Access, Admin, Listener, Place};
use crate::net::address::Address;
use crate::net::listening::defer_accept;
use crate::os::trusted_path::{self, LastName, SafePath};
use crate::process::privileges;

/// Connections that wait to be accepted, per socket; the kernel's own limit (`net.core.somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// The sockets of one listener.
#[derive(Debug)]
pub struct Bound {
    /// The address, with the port that the kernel chose where the configuration left it open.
    pub address: Address,
    /// One a thread. The kernel spreads new connections over all of them, so each has to be read. A Unix socket is but one,
    /// which all threads read.
    pub sockets: Vec<OwnedFd>,
    /// The file of a Unix socket that this process has bound.
    pub file: Option<SocketFile>,
}

/// The file of a Unix socket, which goes with whoever has bound it: removed when this is dropped, unless something else is in
/// its place by then. It is known by its descriptor, so that nobody who may write to its folder can have us change or remove
/// another file.
#[derive(Debug)]
pub struct SocketFile {
    way: SafePath,
    /// Opened for nothing but to say which file is meant.
    file: OwnedFd,
    metadata: Box<Stat>,
}

/// Why a listener could not be bound.
#[derive(Debug)]
pub struct BindError {
    /// "listener" or "admin listener".
    pub what: &'static str,
    /// The address.
    pub address: Address,
    /// Where it was configured.
    pub place: Place,
    /// The system's error.
    pub source: io::Error,
}

/// The owner of sockets that may block new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// Other processes' only.
    Others,
    /// This proxy's own, which a listener's new address overlaps with: `0.0.0.0:80` and `127.0.0.1:80`. They share the port.
    /// Whether another process does so too cannot be told then.
    Own,
}

/// Binds `n_sockets` sockets to a listener's address, or one where it is a Unix socket.
///
/// # Errors
/// The address cannot be bound; most often another process has it.
pub(crate) fn bind(listener: &Listener, n_sockets: usize, in_the_way: InTheWay) -> Result<Bound, BindError> {
    let bound = match &listener.address {
        Address::Ip(address) => bind_all(*address, n_sockets, in_the_way),
        Address::Unix(path) => bind_unix(path, &listener.access),
    };
    bound.map_err(|source| BindError {
        what: "listener",
        address: listener.address.clone(),
        place: listener.place.clone(),
        source,
    })
}

/// Binds the admin listener's address.
///
/// # Errors
/// As [`bind`].
pub(crate) fn bind_admin(admin: &Admin, in_the_way: InTheWay) -> Result<Bound, BindError> {
    let bound = match &admin.address {
        Address::Ip(address) => bind_all(*address, 1, in_the_way),
        Address::Unix(path) => bind_unix(path, &admin.access),
    };
    bound.map_err(|source| BindError {
        what: "admin listener",
        address: admin.address.clone(),
        place: admin.place.clone(),
        source,
    })
}

/// The address that a socket is bound to.
///
/// # Errors
/// It is neither an IP address nor a Unix socket with a path.
pub(crate) fn address_of(socket: impl AsFd) -> io::Result<Address> {
    let address = rustix::net::getsockname(socket)?;
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Ok(Address::Ip(address));
    }
    let unix = SocketAddrUnix::try_from(address)?;
    let path = unix.path_bytes().ok_or_else(|| io::Error::other("a Unix socket without a path"))?;
    Ok(Address::Unix(Path::new(OsStr::from_bytes(path)).into()))
}

/// Raises the limit of open descriptors as far as it goes: a connection through the proxy takes two.
pub fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open descriptors cannot be raised: {e}");
    }
}

/// Has no process that this one starts inherit what this one did: whoever started it may have left anything open, and a
/// service manager leaves its sockets. Descriptors that are opened later close on exec from the beginning.
///
/// # Errors
/// `/proc` is not there.
pub(crate) fn keep_descriptors() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let descriptor = name.to_str().and_then(|name| name.parse::<RawFd>().ok());
        if let Some(descriptor) = descriptor.filter(|descriptor| *descriptor > 2) {
            close_on_exec(descriptor);
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "nobody in this process owns what it has inherited")]
fn close_on_exec(descriptor: RawFd) {
    // SAFETY: changes no memory. One that is not open any more, as that of the folder that was read, is an error.
    unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// The system allows fewer open descriptors than the connections that are configured need. As it is said to operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shortage {
    descriptors: usize,
    allowed: usize,
    configured: usize,
    enough: usize,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { descriptors, allowed, configured, enough } = self;
        write!(
            f,
            "{descriptors} open descriptors are allowed (RLIMIT_NOFILE), so at most {allowed} connections of the \
             {configured} configured; raise it to {enough}"
        )
    }
}

/// How many connections each listener may have, so that there is a descriptor for the server's side of each: what the
/// configuration says, or all of it scaled down to what the limit of open descriptors allows, which is a shortage to be told.
/// Without this, clients could take every descriptor and no request be forwarded at all.
pub(crate) fn connection_limits(listeners: &[Listener], n_threads: usize) -> (Vec<usize>, Option<Shortage>) {
    let wanted: Vec<usize> = listeners.iter().map(|listener| listener.max_connections).collect();
    let Some(descriptors) = rustix::process::getrlimit(Resource::Nofile).current else {
        return (wanted, None);
    };
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let open = open_descriptors();
    let limits = scale_down(&wanted, descriptors, n_threads, open);
    let (allowed, configured) = (limits.iter().sum(), wanted.iter().sum());
    let enough = descriptors_for(configured, n_threads, open);
    let shortage = (limits != wanted).then_some(Shortage { descriptors, allowed, configured, enough });
    (limits, shortage)
}

/// Descriptors that connections cannot have: those open before the first one (modules, logs, listening sockets, the
/// supervisor's channel) with some to spare, and those that each thread holds for itself (its reactor, pipes).
fn descriptors_for(connections: usize, n_threads: usize, open: usize) -> usize {
    (open + 12).max(32) + n_threads * 8 + connections.saturating_mul(2)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn scale_down(wanted: &[usize], descriptors: usize, n_threads: usize, open: usize) -> Vec<usize> {
    let sum = wanted.iter().fold(0_usize, |sum, n| sum.saturating_add(*n));
    let allowed = descriptors.saturating_sub(descriptors_for(0, n_threads, open)) / 2;
    if sum <= allowed {
        return wanted.to_vec();
    }
    let share = |n: &usize| (*n as u128 * allowed as u128 / sum as u128) as usize;
    wanted.iter().map(|n| share(n).max(1)).collect()
}

fn bind_all(address: SocketAddr, n_sockets: usize, in_the_way: InTheWay) -> io::Result<Bound> {
    // With SO_REUSEPORT another proxy of the same user would share the address without a word. A socket without it
    // cannot: binding one first tells.
    if address.port() != 0 {
        match bind_one(address, false) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && in_the_way == InTheWay::Own => {}
            tried => drop(tried?),
        }
    }
    let mut sockets = vec![bind_one(address, true)?];
    let bound = address_of(&sockets[0])?;
    let address = bound.ip().unwrap_or(address);
    while sockets.len() < n_sockets {
        sockets.push(bind_one(address, true)?);
    }
    for socket in &sockets {
        rustix::net::listen(socket, BACKLOG)?;
    }
    Ok(Bound { address: bound, sockets, file: None })
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners, whatever the system's default is.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    // All readers share this flag, so it is never changed later.
    socket.set_nonblocking(true)?;
    // Where the kernel does not know it, connections are handed out as they are made.
    let _ = defer_accept(&socket, true);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Whether sockets of these two addresses are in each other's way.
pub(crate) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    // One of `[::]` is for IPv6 alone.
    a.port() == b.port() && a.port() != 0 && a.is_ipv4() == b.is_ipv4() && same
}

fn bind_unix(path: &Arc<Path>, access: &Access) -> io::Result<Bound> {
    let way = SafePath::find(path, LastName::Itself)?;
    let address = SockAddr::unix(way.path(path))?;
    clear_away(&way, &address)?;
    let socket = unix_socket()?;
    socket.bind(&address)?;
    let file = SocketFile::of(way)?;
    // Until it listens, nobody can connect, whatever the mode is by then.
    file.allow(access)?;
    socket.listen(BACKLOG)?;
    Ok(Bound { address: Address::Unix(Arc::clone(path)), sockets: vec![socket.into()], file: Some(file) })
}

/// Removes the file of a socket on which nobody listens any more: a process that was killed has left it. Nothing else goes.
fn clear_away(way: &SafePath, address: &SockAddr) -> io::Result<()> {
    match way.stat() {
        Ok(metadata) if is_socket(&metadata) => {}
        Ok(_) => {
            return Err(io::Error::other(
                "the path exists and is not a socket; remove it, or choose another path",
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    match unix_socket()?.connect(address) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => way.remove(),
        // Its queue is full: something listens there.
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::AddrInUse.into()),
        Err(e) => Err(e),
    }
}

fn is_socket(metadata: &Stat) -> bool {
    FileType::from_raw_mode(metadata.st_mode) == FileType::Socket
}

fn unix_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl SocketFile {
    /// The file of a socket that this process has just bound.
    pub(crate) fn of(way: SafePath) -> io::Result<Self> {
        let file = OwnedFd::from(way.open(OFlags::PATH, Mode::empty())?);
        let metadata = rustix::fs::fstat(&file)?;
        let is_own = is_socket(&metadata) && metadata.st_uid == rustix::process::geteuid().as_raw();
        if !is_own || metadata.st_nlink != 1 {
            return Err(io::Error::other("somebody has put another file in the socket's place"));
        }
        Ok(Self { way, file, metadata: Box::new(metadata) })
    }

    /// Sets owner, group and mode: who may connect.
    ///
    /// # Errors
    /// There is no such account, or the system does not let it be given away.
    pub(crate) fn allow(&self, access: &Access) -> io::Result<()> {
        let (user, group) = privileges::ids(&access.owner).map_err(io::Error::other)?;
        if user.is_some() || group.is_some() {
            let (user, group) = (user.map(Uid::from_raw), group.map(Gid::from_raw));
            rustix::fs::chownat(&self.file, "", user, group, AtFlags::EMPTY_PATH).map_err(|e| {
                io::Error::other(format!("cannot be given to its owner and group: {e}; only root can"))
            })?;
        }
        // By descriptor: the name may be another file's by now.
        fs::set_permissions(trusted_path::path_of(&self.file), fs::Permissions::from_mode(access.mode))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Where it fails, the next to listen there finds that nobody does.
        if self.way.is(&self.metadata)
            && let Err(e) = self.way.remove()
        {
            tracing::debug!("the file of a socket cannot be removed: {e}");
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} \"{}\": ", self.place, self.what, self.address)?;
        let is_unix = matches!(self.address, Address::Unix(_));
        match self.source.kind() {
            io::ErrorKind::AddrInUse if is_unix => {
                f.write_str("another process listens there; stop it, or choose another path")
            }
            io::ErrorKind::PermissionDenied if is_unix => f.write_str(
                "permission denied; the user that starts the proxy must be allowed to write to its folder",
            ),
            io::ErrorKind::NotFound if is_unix => f.write_str("its folder does not exist; create it first"),
            io::ErrorKind::AddrInUse => {
                f.write_str("address in use; stop the process that uses it, or choose another port")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str("permission denied; ports below 1024 need CAP_NET_BIND_SERVICE")
            }
            io::ErrorKind::AddrNotAvailable => f.write_str("this machine has no such address"),
            _ => self.source.fmt(f),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn listener(address: impl Into<Address>) -> Listener {
        let place = Place { file: "site.toml".into(), line: 3 };
        Listener {
            address: address.into(),
            access: Access::default(),
            max_connections: 1,
            max_connections_per_client: None,
            proxy_protocol: None,
            tls: None,
            h2: false,
            place,
        }
    }

    fn any_port() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    #[test]
    fn all_sockets_share_the_chosen_port() {
        let bound = bind(&listener(any_port()), 3, InTheWay::Others).expect("a free port");
        assert_ne!(bound.address.ip().map(|address| address.port()), Some(0));
        for socket in &bound.sockets {
            assert_eq!(address_of(socket).expect("bound"), bound.address);
        }
    }

    #[test]
    fn leaves_a_descriptor_for_each_connection_s_server() {
        assert_eq!(scale_down(&[100, 300], 10_000, 2, 9), [100, 300]);
        assert_eq!(scale_down(&[100, 300], 48 + 2 * 200, 2, 9), [50, 150]);
        assert_eq!(scale_down(&[100, 300], 0, 2, 9), [1, 1]);
        assert_eq!(descriptors_for(400, 2, 9), 48 + 800);
        assert_eq!(descriptors_for(400, 2, 100), 128 + 800);
    }

    #[test]
    fn does_not_share_an_address_with_another_proxy() {
        let first = bind(&listener(any_port()), 1, InTheWay::Others).expect("a free port");
        let error = bind(&listener(first.address.clone()), 1, InTheWay::Others).expect_err("taken");
        assert_eq!(
            error.to_string(),
            format!(
                "site.toml:3: listener \"{}\": address in use; stop the process that uses it, or choose another port",
                first.address
            )
        );
    }

    #[test]
    fn shares_a_port_with_an_address_of_its_own_that_overlaps() {
        let first = bind(&listener(any_port()), 2, InTheWay::Others).expect("a free port");
        let own = first.address.ip().expect("an IP address");
        let all = SocketAddr::from(([0, 0, 0, 0], own.port()));
        assert!(overlap(own, all) && overlap(all, own));
        assert!(!overlap(own, ([127, 0, 0, 2], own.port()).into()));
        assert!(!overlap(all, (std::net::Ipv6Addr::UNSPECIFIED, own.port()).into()));
        bind(&listener(all), 2, InTheWay::Others).expect_err("it may be anybody's");
        bind(&listener(all), 2, InTheWay::Own).expect("both are its own");
    }

    fn unix(folder: &tempfile::TempDir) -> (std::path::PathBuf, Listener) {
        let path = folder.path().join("front.sock");
        let listener = listener(Address::Unix(path.as_path().into()));
        (path, listener)
    }

    #[test]
    fn a_unix_socket_is_one_for_all_and_its_file_goes_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, mut listener) = unix(&folder);
        listener.access.mode = 0o640;
        let bound = bind(&listener, 3, InTheWay::Others).expect("nothing is there");
        assert_eq!(bound.sockets.len(), 1);
        assert_eq!(address_of(&bound.sockets[0]).expect("bound"), listener.address);
        assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o777, 0o640);
        std::os::unix::net::UnixStream::connect(&path).expect("it listens");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_what_a_living_one_has_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, listener) = unix(&folder);
        // Without a file of its own to remove, as where the process was killed.
        // It never listened: a process that another test forks at this moment may hold it for a while.
        let dead = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        dead.bind(&SockAddr::unix(&path).expect("a short path")).expect("nothing is there");
        drop(dead);
        let first = bind(&listener, 1, InTheWay::Others).expect("nobody listens there");
        let error = bind(&listener, 1, InTheWay::Others).expect_err("taken").to_string();
        let right = "another process listens there; stop it, or choose another path";
        assert_eq!(error, format!("site.toml:3: listener \"unix:{}\": {right}", path.display()));
        drop(first);
        fs::write(&path, "text").expect("a file");
        let error = bind(&listener, 1, InTheWay::Others).expect_err("no socket").to_string();
        assert!(
            error.ends_with("the path exists and is not a socket; remove it, or choose another path"),
            "{error}"
        );
        assert!(path.exists());
    }

    #[test]
    fn a_file_that_another_has_put_there_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, listener) = unix(&folder);
        let bound = bind(&listener, 1, InTheWay::Others).expect("nothing is there");
        fs::rename(&path, folder.path().join("moved")).expect("moved");
        let _other = std::os::unix::net::UnixListener::bind(&path).expect("nothing is there");
        drop(bound);
        assert!(path.exists());
    }
}
