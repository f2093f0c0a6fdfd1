//! Service managers: readiness, signs of life, sockets.

use super::*;

/// The end of systemd's notify protocol at which systemd is.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, folder }
    }

    fn run(&self, folder: &Folder) -> Command {
        let mut command = folder.run();
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command
    }

    /// The next order.
    #[track_caller]
    fn hears(&self) -> String {
        let mut bytes = [0; 4096];
        let n = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    }

    #[track_caller]
    fn hears_of_a_reload(&self) {
        let said = self.hears();
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("RELOADING=1"), "{said}");
        let time = lines.next().and_then(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
        assert!(time.parse::<u64>().unwrap() > 0, "{said}");
    }
}

#[test]
fn a_service_manager_hears_of_start_reload_and_stop() {
    let origin = Origin::named("a");
    let manager = Manager::new();
    let folder = Folder::with(&over([&origin]).text());
    let command = manager.run(&folder);
    let site = Site::start(folder, command);
    assert_eq!(manager.hears().trim_end(), "READY=1\nSTATUS=generation 1 serves");
    let environment = fs::read(format!("/proc/{}/environ", site.worker())).unwrap();
    assert!(
        !String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"),
        "workers have nothing to tell it"
    );
    site.reload();
    manager.hears_of_a_reload();
    assert_eq!(manager.hears().trim_end(), "READY=1\nSTATUS=generation 2 serves");
    site.folder().write("rubbish");
    assert_eq!(site.fails_to_reload().0, Some(3));
    manager.hears_of_a_reload();
    assert_eq!(
        manager.hears().trim_end(),
        "READY=1\nSTATUS=the last new generation failed; unchanged: generation 2 keeps serving"
    );
    site.running().signal(Signal::TERM);
    assert_eq!(manager.hears().trim_end(), "STOPPING=1");
    assert_eq!(site.end().0, Some(0));
}

#[test]
fn a_service_manager_that_wants_signs_of_life_gets_them() {
    let origin = Origin::named("a");
    let manager = Manager::new();
    let folder = Folder::with(&over([&origin]).text());
    let mut command = manager.run(&folder);
    command.env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
    let _site = Site::start(folder, command);
    let mut n = 0;
    while n < 3 {
        n += usize::from(manager.hears().trim_end() == "WATCHDOG=1");
    }
}

#[test]
fn a_socket_of_the_service_manager_is_listened_on() {
    let origin = Origin::named("a");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let text = over([&origin]).threads(2).text().replacen("127.0.0.1:0", &address.to_string(), 1);
    let folder = Folder::with(&text);
    let mut shell = Command::new("sh");
    shell.args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\" 3<&0 0</dev/null", "sh"]);
    shell.arg(folder.run().get_program()).args(folder.run().get_args());
    shell.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    // Clients that come before it runs wait.
    let mut early = Client::connect(address);
    early.get("/");
    let site = Site::start(folder, shell);
    assert_eq!(site.address(), address);
    site.running().logs(&format!("listener {address} uses a socket from the service manager"));
    assert_eq!(early.reply().text(), "a");
    drop(early);
    site.reload_wholly();
    assert_eq!(site.names(2), "a a");
    site.running().signal(Signal::TERM);
    assert_eq!(site.end().0, Some(0));
    Client::try_connect(address).expect("it is still the service manager's");
}
