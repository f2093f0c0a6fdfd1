//! The control socket: who may ask for something, and that nobody who asks keeps the supervisor from its work.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};
use rustix::event::PollFlags;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat};
use rustix::net::sockopt::socket_peercred;

use crate::config::Access;
use crate::os::trusted_path::{self, LastName, SafePath};
use crate::process::control::{Command, ControlReply, Exit, MAX_COMMAND_BYTES};
use crate::process::sockets::SocketFile;

/// For a client to say what it wants, and to take what it is told.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients at once; people and scripts are few. A script may change a server in each of many clusters at the same time.
const MAX_CLIENTS: usize = 64;

/// Names a client for as long as the supervisor runs.
pub(super) type ClientId = u64;

/// The socket and whoever is connected to it.
pub(super) struct Commands {
    /// Absent where the configuration wants none.
    socket: Option<CommandSocket>,
    clients: BTreeMap<ClientId, CommandClient>,
    n_clients: ClientId,
    /// Name of the user that the supervisor runs as; beside root, few others can connect.
    own_name: Option<String>,
}

struct CommandSocket {
    listener: UnixListener,
    path: PathBuf,
    access: Access,
    // In this order: the next one's socket is not to be removed.
    _file: SocketFile,
    /// Held for as long as the socket is this process's.
    _lock: Lock,
}

struct CommandClient {
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Outbox,
    /// When it is given up: it has said nothing whole, or does not take what it is told.
    until: Option<Instant>,
    has_asked: bool,
    /// It says no more; it may listen still.
    is_silent: bool,
    is_ending: bool,
}

impl Commands {
    /// Listens where the configuration wants it, unless another supervisor does.
    pub(super) fn listen(at: Option<(PathBuf, Access)>) -> Result<Self, String> {
        let own = User::from_uid(geteuid()).ok().flatten();
        Ok(Self {
            socket: at.map(|(path, access)| CommandSocket::listen(&path, access)).transpose()?,
            clients: BTreeMap::new(),
            n_clients: 0,
            own_name: own.map(|user| user.name),
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> Option<&Path> {
        self.socket.as_ref().map(|socket| &*socket.path)
    }

    /// Whether it is where a configuration wants it, for those whom it names.
    pub(super) fn is_at(&self, wanted: Option<&(PathBuf, Access)>) -> bool {
        fn terms<'a>(path: &'a Path, access: &'a Access) -> (&'a Path, u32, Option<&'a str>) {
            (path, access.mode, access.owner.group.as_ref().map(|(name, _)| &**name))
        }
        let socket = self.socket.as_ref().map(|socket| terms(&socket.path, &socket.access));
        socket == wanted.map(|(path, access)| terms(path, access))
    }

    /// Descriptors to poll.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        // One that says no more, and is told nothing now, would wake the supervisor for ever.
        let of = |client: &CommandClient| match (client.is_silent, client.outbox.is_empty()) {
            (false, true) => Some(PollFlags::IN),
            (false, false) => Some(PollFlags::IN | PollFlags::OUT),
            (true, false) => Some(PollFlags::OUT),
            (true, true) => None,
        };
        let clients =
            self.clients.values().filter_map(move |client| Some((client.stream.as_fd(), of(client)?)));
        let listener = self.socket.iter().map(|socket| (socket.listener.as_fd(), PollFlags::IN));
        listener.chain(clients)
    }

    /// When the next client is to be given up.
    pub(super) fn due(&self) -> Option<Instant> {
        self.clients.values().filter_map(|client| client.until).min()
    }

    /// New commands, one from each client. Removes clients that are gone, silent for too long or do not read.
    pub(super) fn take(&mut self) -> Vec<(ClientId, Command)> {
        self.accept();
        let (now, mut asked) = (Instant::now(), Vec::new());
        self.clients.retain(|id, client| {
            let is_alive = client.read() && client.write() && client.until.is_none_or(|until| now < until);
            if is_alive
                && !client.has_asked
                && let Some(end) = memchr::memchr(b'\n', &client.inbox)
            {
                client.has_asked = true;
                client.until = None;
                match serde_json::from_slice(&client.inbox[..end]) {
                    Ok(command) => asked.push((*id, command)),
                    Err(error) => {
                        client.say(&ControlReply::Line(format!("invalid command: {error}")));
                        client.say(&ControlReply::End(Exit::Failed));
                        client.is_ending = true;
                    }
                }
                return client.write();
            }
            is_alive
        });
        asked
    }

    /// Name or number of the user who asks. Nothing is looked up: that could take long.
    pub(super) fn user_of(&self, client: ClientId) -> String {
        let client = self.clients.get(&client);
        let user = client.and_then(|client| Some(socket_peercred(&client.stream).ok()?.uid));
        match (user, &self.own_name) {
            (Some(user), _) if user.is_root() => "root".to_owned(),
            (Some(user), Some(own)) if user == rustix::process::geteuid() => own.clone(),
            (Some(user), _) => user.as_raw().to_string(),
            (None, _) => "unknown".to_owned(),
        }
    }

    /// Tells a client something, if it is still there.
    pub(super) fn say(&mut self, client: ClientId, reply: &ControlReply) {
        let Some(known) = self.clients.get_mut(&client) else { return };
        known.say(reply);
        known.is_ending |= matches!(reply, ControlReply::End(_));
        // The rest is sent when the client reads.
        if !known.write() {
            self.clients.remove(&client);
        }
    }

    /// The same of a whole line, which others may be told too.
    pub(super) fn say_line(&mut self, client: ClientId, line: Arc<[u8]>) {
        let Some(known) = self.clients.get_mut(&client) else { return };
        known.say_line(line);
        if !known.write() {
            self.clients.remove(&client);
        }
    }

    fn accept(&mut self) {
        while let Some(Ok((stream, _))) = self.socket.as_ref().map(|socket| socket.listener.accept()) {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let until = Some(Instant::now() + CLIENT_TIMEOUT);
            let (inbox, outbox) = (Vec::new(), Outbox::default());
            let mut client = CommandClient {
                stream,
                inbox,
                outbox,
                until,
                has_asked: false,
                is_silent: false,
                is_ending: false,
            };
            if self.clients.len() >= MAX_CLIENTS && !self.makes_room() {
                client.say(&ControlReply::Problem(format!(
                    "{MAX_CLIENTS} other clients wait for an answer already"
                )));
                client.say(&ControlReply::End(Exit::Failed));
                // Its command is read, so that closing is no reset; the answer fits into a new socket.
                client.read();
                client.write();
                continue;
            }
            self.n_clients += 1;
            self.clients.insert(self.n_clients, client);
        }
    }

    /// Closes the oldest connection that has not asked for anything; false if all have asked. So a silent client keeps
    /// nobody out.
    fn makes_room(&mut self) -> bool {
        let has_said =
            |client: &mut CommandClient| client.has_asked || client.read() && client.inbox.contains(&b'\n');
        let silent = self.clients.iter_mut().find_map(|(id, client)| (!has_said(client)).then_some(*id));
        silent.is_some_and(|id| self.clients.remove(&id).is_some())
    }
}

impl CommandSocket {
    fn listen(path: &Path, access: Access) -> Result<Self, String> {
        let name = path.display();
        let cannot = |error: &dyn Display| format!("control socket \"{name}\": {error}");
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let mode = Mode::from_raw_mode(0o755);
            trusted_path::make_folders(folder, mode).map_err(|error| cannot(&error))?;
        }
        let way = SafePath::find(path, LastName::Itself).map_err(|error| cannot(&error))?;
        // A user who can replace our socket would receive the commands.
        if let Some(by) = way.distrust() {
            return Err(cannot(by));
        }
        // The socket's own file cannot be locked, and to connect to it would not tell who comes first of two.
        let lock = way.sibling(".lock").and_then(Lock::take).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => format!(
                "control socket \"{name}\": another supervisor of this configuration runs; stop it, or name another \
                 socket by the key control"
            ),
            _ => cannot(&error),
        })?;
        // The socket of a killed supervisor is removed; anything else is left alone.
        match way.stat() {
            Ok(metadata) if FileType::from_raw_mode(metadata.st_mode) == FileType::Socket => {
                way.remove().map_err(|error| cannot(&error))?;
            }
            Ok(_) => return Err(cannot(&"the path exists and is not a socket")),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(cannot(&error)),
        }
        // Nobody else may connect, not even before a mode could be set.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener.map_err(|error| cannot(&error))?;
        listener.set_nonblocking(true).map_err(|error| cannot(&error))?;
        let file = SocketFile::of(way).map_err(|error| cannot(&error))?;
        file.allow(&access).map_err(|error| cannot(&error))?;
        Ok(Self { listener, path: path.to_owned(), access, _file: file, _lock: lock })
    }
}

/// The lines that a client has still to take.
#[derive(Default)]
struct Outbox {
    lines: VecDeque<Arc<[u8]>>,
    /// Of the first.
    n_sent: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn next(&self) -> &[u8] {
        self.lines.front().map_or(&[], |line| &line[self.n_sent..])
    }

    fn sent(&mut self, n: usize) {
        self.n_sent += n;
        if self.next().is_empty() {
            self.lines.pop_front();
            self.n_sent = 0;
        }
    }
}

/// A lock by a file that exists only while the lock is held.
struct Lock {
    way: SafePath,
    _file: File,
}

impl Lock {
    /// Takes it, unless somebody else has it ([`ErrorKind::WouldBlock`]).
    fn take(way: SafePath) -> io::Result<Self> {
        loop {
            let file = way.open(OFlags::WRONLY | OFlags::CREATE, Mode::from_raw_mode(0o600))?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // The previous holder may have removed the file between the two calls. A lock on a file without a name
            // keeps nobody out.
            if way.is(&fstat(&file)?) {
                return Ok(Self { way, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is held, so that the name that goes is that of this very file.
        let _ = self.way.remove();
    }
}

impl CommandClient {
    /// False where it has gone, or says more than anybody asks for.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.is_silent = true;
                    return self.has_asked || self.inbox.contains(&b'\n');
                }
                Ok(n) if !self.has_asked => self.inbox.extend_from_slice(&buffer[..n]),
                // A client sends one command, and no more.
                Ok(_) => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            if self.inbox.len() > MAX_COMMAND_BYTES {
                return false;
            }
        }
    }

    fn say(&mut self, reply: &ControlReply) {
        if let Ok(mut line) = serde_json::to_vec(reply) {
            line.push(b'\n');
            self.say_line(line.into());
        }
    }

    fn say_line(&mut self, line: Arc<[u8]>) {
        self.outbox.lines.push_back(line);
        self.until = Some(Instant::now() + CLIENT_TIMEOUT);
    }

    /// False where there is nobody to be told more.
    fn write(&mut self) -> bool {
        while !self.outbox.is_empty() {
            match self.stream.write(self.outbox.next()) {
                Ok(n) => self.outbox.sent(n),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        if self.has_asked {
            self.until = None;
        }
        !self.is_ending
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::Shutdown;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::RunAs;

    fn own(path: &Path) -> (PathBuf, Access) {
        (path.to_owned(), Access { mode: 0o600, owner: RunAs::default() })
    }

    fn path(commands: &Commands) -> &Path {
        commands.path().unwrap()
    }

    fn listening() -> (tempfile::TempDir, Commands) {
        let folder = tempfile::tempdir().unwrap();
        let commands = Commands::listen(Some(own(&folder.path().join("t.sock")))).unwrap();
        (folder, commands)
    }

    fn client(commands: &Commands, says: &str) -> UnixStream {
        let mut client = UnixStream::connect(path(commands)).unwrap();
        client.write_all(says.as_bytes()).unwrap();
        client
    }

    fn n_interests(commands: &Commands) -> usize {
        commands.interests().count()
    }

    #[test]
    fn nothing_is_left_behind_and_one_at_a_time_has_the_lock() {
        let (folder, commands) = listening();
        let path = path(&commands).to_owned();
        let error = Commands::listen(Some(own(&path))).err().expect("another has it");
        assert!(error.contains("another supervisor"), "{error}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "the socket and its lock");
        drop(commands);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        // A refused start leaves nothing either.
        fs::write(&path, "no socket").unwrap();
        Commands::listen(Some(own(&path))).err().expect("something else is there");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_lock_is_held_by_one_however_many_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (n_inside, n_taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while n_taken.load(Ordering::SeqCst) < 2_000 {
                        let Ok(lock) = Lock::take(SafePath::find(&path, LastName::Itself).unwrap()) else {
                            continue;
                        };
                        assert_eq!(n_inside.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        n_taken.fetch_add(1, Ordering::SeqCst);
                        n_inside.fetch_sub(1, Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert!(!path.exists());
    }

    #[test]
    fn a_client_that_has_asked_and_says_no_more_is_answered_and_wakes_nobody() {
        let (_folder, mut commands) = listening();
        let mut client = client(&commands, "\"reload\"\n");
        client.shutdown(Shutdown::Write).unwrap();
        let asked = commands.take();
        assert!(matches!(asked[..], [(1, Command::Reload)]), "{asked:?}");
        assert_eq!((n_interests(&commands), commands.due()), (1, None), "the listener alone");
        commands.say(1, &ControlReply::End(Exit::Done));
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "{\"end\":\"Done\"}\n");
        assert!(commands.clients.is_empty());
    }

    #[test]
    fn a_client_that_has_asked_and_is_gone_wakes_nobody_and_is_forgotten_when_it_is_told() {
        let (_folder, mut commands) = listening();
        drop(client(&commands, "\"reload\"\n"));
        assert_eq!(commands.take().len(), 1);
        assert_eq!(n_interests(&commands), 1);
        commands.say(1, &ControlReply::Line("still at it".into()));
        assert!(commands.clients.is_empty());
    }

    #[test]
    fn clients_that_say_nothing_keep_nobody_out_and_those_that_wait_are_not_given_up() {
        let (_folder, mut commands) = listening();
        let mut silent: Vec<_> = (0..MAX_CLIENTS - 1).map(|_| client(&commands, "")).collect();
        // It has asked, but was not looked at yet.
        let _early = client(&commands, "\"reload\"\n");
        let late: Vec<_> = (1..MAX_CLIENTS).map(|_| client(&commands, "\"reload\"\n")).collect();
        assert_eq!(commands.take().len(), MAX_CLIENTS, "each of those who ask");
        for stream in &mut silent {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "given up");
        }
        let mut text = String::new();
        let mut one_too_many = client(&commands, "\"status\"\n");
        assert_eq!(commands.take().len(), 0);
        one_too_many.read_to_string(&mut text).unwrap();
        assert_eq!(
            text,
            "{\"problem\":\"64 other clients wait for an answer already\"}\n{\"end\":\"Failed\"}\n"
        );
        drop(late);
    }

    #[test]
    fn a_client_that_goes_before_it_has_asked_asks_nothing() {
        let (_folder, mut commands) = listening();
        drop(client(&commands, "\"rel"));
        assert!(commands.take().is_empty() && commands.clients.is_empty());
    }
}
