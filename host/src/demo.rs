//! `trylist demo`: three origins inside the process, and a proxy before them.
//!
//! The origins live on one thread and listen on loopback alone. Each says which one it is and what reached it, so that
//! the balancing can be watched with `curl`; a control listener stops and starts them.

use std::convert::Infallible;
use std::fmt::{self, Write};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use trylist::config::{self, Syntax};
use trylist::worker::{StartError, Worker};

use crate::foreground;
use crate::output::CommandFailure;

/// The demo finds ports that are free and lets the proxy bind them; somebody else may have taken one in between.
const ATTEMPTS: usize = 5;

/// How many origins there are.
const N_ORIGINS: usize = 3;

/// Where the proxy listens if nobody else does.
const USUAL_PORT: u16 = 8080;
/// How long `/slow` takes.
const SLOW: Duration = Duration::from_secs(2);
/// Before accepting is tried again after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Runs the origins and the proxy until signals end it.
pub(crate) fn run() -> Result<(), CommandFailure> {
    // Its servers run for as long as the proxy does.
    let mut running = None;
    foreground::run(|| {
        let mut attempts = 1..=ATTEMPTS;
        loop {
            attempts.next();
            let demo = Demo::start().map_err(|error| {
                CommandFailure::new(format_args!("demo: cannot start the servers: {error}"))
            })?;
            let (config, _) = config::parse("demo.toml", &demo.configuration(), Syntax::Toml)?;
            match Worker::start(Arc::new(config)) {
                Err(StartError::Bind(_)) if !attempts.is_empty() => {}
                started => {
                    let introduction = format!("{}\n", demo.introduction());
                    running = Some(demo);
                    return Ok((started?, introduction));
                }
            }
        }
    })
}

/// The running origins, and the addresses of everything. Dropping it stops them.
#[derive(Debug)]
struct Demo {
    proxy: SocketAddr,
    admin: SocketAddr,
    control: SocketAddr,
    origins: [SocketAddr; N_ORIGINS],
    end: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Demo {
    /// Starts the origins and looks for free ports for the proxy: 8080, or any.
    ///
    /// # Errors
    /// No port, no thread or no runtime is to be had.
    fn start() -> io::Result<Self> {
        let mut origins = Vec::new();
        for _ in 0..N_ORIGINS {
            origins.push(bind(0)?);
        }
        let control = bind(0)?;
        // Held until both are known, so that they differ. Closed then: the proxy binds them by its configuration.
        let free = [bind(USUAL_PORT).or_else(|_| bind(0))?, bind(0)?];
        let [proxy, admin] = [free[0].local_addr()?, free[1].local_addr()?];

        let addresses = origins.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let addresses: [SocketAddr; N_ORIGINS] =
            addresses.try_into().expect("as many as there are listeners");
        let control_address = control.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = watch::channel(());
        let thread = thread::Builder::new()
            .name("demo".into())
            .spawn(move || runtime.block_on(run_origins(origins, control, ended)))?;
        Ok(Self {
            proxy,
            admin,
            control: control_address,
            origins: addresses,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// The proxy's configuration, in TOML.
    fn configuration(&self) -> String {
        let [a, b, c] = self.origins;
        let Self { proxy, admin, .. } = self;
        format!(
            r#"[[listener]]
address = "{proxy}"
max_connections = 100

[admin]
address = "{admin}"

[load_module]
round_robin = "libmod_round_robin.so"

[[cluster]]
name = "origins"
module = "round_robin"
servers = ["http://{a}", "http://{b}", "http://{c}"]

[[route]]
path = "/"
cluster = "origins"

[access_log]
path = "stdout"

[explain]
allow = ["127.0.0.1"]
"#
        )
    }

    /// The text for the terminal: addresses, configuration, and commands to try.
    fn introduction(&self) -> impl fmt::Display + '_ {
        Introduction(self)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Introduction<'a>(&'a Demo);

impl fmt::Display for Introduction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Demo { proxy, admin, control, origins, .. } = self.0;
        writeln!(f, "Three origins behind a proxy, balanced by the module round_robin.\n")?;
        writeln!(f, "  proxy     http://{proxy}/")?;
        for (idx, origin) in origins.iter().enumerate() {
            writeln!(f, "  origin {}  http://{origin}/", idx + 1)?;
        }
        writeln!(f, "  metrics   http://{admin}/metrics\n")?;
        writeln!(f, "The proxy's configuration; saved to a file, `trylist run -c FILE` takes it:\n")?;
        for line in self.0.configuration().lines() {
            writeln!(f, "{}{line}", if line.is_empty() { "" } else { "    " })?;
        }
        writeln!(f, "\nTo try in another terminal:\n")?;
        let steps = [
            ("each origin answers in turn", format!("curl http://{proxy}/")),
            ("stop one: the next answers, no request fails", format!("curl -X POST http://{control}/stop/2")),
            ("and start it again", format!("curl -X POST http://{control}/start/2")),
            ("why it went where it went", format!("curl -i -H 'X-Trylist-Explain: 1' http://{proxy}/")),
            ("an error status is passed on, not retried", format!("curl -i http://{proxy}/status/404")),
            ("2 s; others do not wait for it", format!("curl http://{proxy}/slow")),
            ("tries by origin and result", format!("curl -s http://{admin}/metrics | grep ^trylist_tries")),
        ];
        let width = steps.iter().map(|(_, command)| command.len()).max().unwrap_or(0);
        for (what, command) in steps {
            writeln!(f, "  {command:width$}  # {what}")?;
        }
        write!(f, "\nBelow, each request is a line of the access log, with its tries. Ctrl-C ends it all.\n")
    }
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

// ---- on the demo's thread -------------------------------------------------------------------------------------------

/// Runs everything until the sender of `ended` is gone.
async fn run_origins(origins: Vec<TcpListener>, control: TcpListener, mut ended: watch::Receiver<()>) {
    let mut tasks = JoinSet::new();
    let mut switches = Vec::new();
    for (idx, listener) in origins.into_iter().enumerate() {
        let (switch, is_on) = watch::channel(true);
        switches.push(switch);
        tasks.spawn(origin(idx + 1, listener, is_on));
    }
    let switches: Arc<[watch::Sender<bool>]> = switches.into();
    tasks.spawn(async move {
        let service = move |request: Request<Incoming>| std::future::ready(operate(&request, &switches));
        let _ = serve(control, service).await;
    });
    // The sender never sends; it only goes.
    let _ = ended.changed().await;
}

/// One origin: listens while it is on, and while it is off lets go of its port and of all connections, as a server that
/// was stopped does.
async fn origin(number: usize, mut listener: TcpListener, mut is_on: watch::Receiver<bool>) {
    let Ok(address) = listener.local_addr() else { return };
    loop {
        tokio::select! {
            _ = serve(listener, move |request| answer(number, address, request)) => return,
            off = is_on.wait_for(|on| !on) => if off.is_err() { return },
        }
        if is_on.wait_for(|on| *on).await.is_err() {
            return;
        }
        listener = loop {
            match bind(address.port()) {
                Ok(listener) => break listener,
                // Somebody else took the port meanwhile, or is about to let go of it.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        };
    }
}

/// Serves connections until it is dropped, and they with it.
async fn serve<F>(
    listener: TcpListener,
    service: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) -> io::Result<()>
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = service.clone();
        let service = service_fn(move |request| {
            let response = service(request);
            async move { Ok::<_, Infallible>(response.await) }
        });
        let connection =
            http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
        connections.spawn(async { drop(connection.await) });
        while connections.try_join_next().is_some() {}
    }
}

/// The name of the origin, and the request that reached it.
async fn answer(number: usize, address: SocketAddr, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let status = match path.strip_prefix("/status/") {
        Some(status) => status.parse().ok().filter(|status| (200..600).contains(status)).unwrap_or(404),
        None => 200,
    };
    if path == "/slow" {
        sleep(SLOW).await;
    }
    let mut body = format!(
        "origin {number} on {address}\n\n{} {} {:?}\n",
        request.method(),
        request.uri(),
        request.version()
    );
    for (name, value) in request.headers() {
        if is_shown(name) {
            let _ = writeln!(body, "{name}: {}", String::from_utf8_lossy(value.as_bytes()));
        }
    }
    let mut response = plain(StatusCode::from_u16(status).expect("200 to 599 are statuses"), body);
    response.headers_mut().insert("x-origin", HeaderValue::from(number));
    response
}

/// Headers that the proxy writes itself.
fn is_shown(name: &HeaderName) -> bool {
    matches!(name.as_str(), "host" | "via" | "forwarded") || name.as_str().starts_with("x-forwarded-")
}

/// `POST /stop/2`, `POST /start/2`.
fn operate(request: &Request<Incoming>, switches: &[watch::Sender<bool>]) -> Response<Full<Bytes>> {
    let (verb, number) = request.uri().path().trim_start_matches('/').split_once('/').unwrap_or_default();
    let idx = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let Some((switch, on)) = idx.and_then(|idx| switches.get(idx)).zip(match verb {
        "stop" => Some(false),
        "start" => Some(true),
        _ => None,
    }) else {
        return plain(
            StatusCode::NOT_FOUND,
            format!("not found; there are /stop/N and /start/N, N of 1 to {N_ORIGINS}\n"),
        );
    };
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "use POST: curl -X POST …\n");
    }
    switch.send_replace(on);
    plain(StatusCode::OK, format!("origin {number} {}\n", if on { "is started" } else { "is stopped" }))
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    #[test]
    fn each_origin_says_which_it_is_and_what_reached_it() {
        let demo = Demo::start().expect("it starts");
        for (idx, address) in demo.origins.iter().enumerate() {
            let response = ask(*address, "GET", "/path?x=1");
            let number = idx + 1;
            assert!(
                response.starts_with("HTTP/1.1 200 ") && response.contains(&format!("x-origin: {number}"))
            );
            assert!(
                response.contains(&format!("origin {number} on {address}\n\nGET /path?x=1 HTTP/1.1\n")),
                "{response}"
            );
            assert!(response.contains("x-forwarded-for: 192.0.2.1\n"), "{response}");
            assert!(!response.contains("cookie"), "{response}");
        }
    }

    #[test]
    fn answers_with_the_status_asked_for() {
        let demo = Demo::start().expect("it starts");
        for (path, status) in
            [("/status/503", 503), ("/status/204", 204), ("/status/100", 404), ("/status/x", 404)]
        {
            let response = ask(demo.origins[0], "GET", path);
            assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {response}");
        }
    }

    #[test]
    fn a_stopped_origin_is_gone_until_it_is_started() {
        let demo = Demo::start().expect("it starts");
        let mut kept = TcpStream::connect(demo.origins[1]).expect("it listens");
        assert!(ask(demo.control, "POST", "/stop/2").ends_with("origin 2 is stopped\n"));
        assert_eq!(kept.read(&mut [0]).expect("an orderly end"), 0, "its connections end");
        wait_until(|| TcpStream::connect(demo.origins[1]).is_err());
        assert!(ask(demo.origins[0], "GET", "/").contains("origin 1"), "the others go on");
        assert!(ask(demo.control, "POST", "/start/2").ends_with("origin 2 is started\n"));
        wait_until(|| TcpStream::connect(demo.origins[1]).is_ok());
        assert!(ask(demo.origins[1], "GET", "/").contains("origin 2"));
    }

    #[test]
    fn the_control_takes_nothing_else() {
        let demo = Demo::start().expect("it starts");
        for path in ["/", "/stop", "/stop/0", "/stop/4", "/stop/x", "/halt/1"] {
            assert!(ask(demo.control, "POST", path).starts_with("HTTP/1.1 404 "), "{path}");
        }
        assert!(ask(demo.control, "GET", "/stop/1").starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn everything_ends_with_it() {
        let demo = Demo::start().expect("it starts");
        let (origins, control) = (demo.origins, demo.control);
        drop(demo);
        for address in origins.into_iter().chain([control]) {
            TcpStream::connect(address).expect_err("it listens no more");
        }
    }

    #[test]
    fn the_introduction_tells_every_address() {
        let demo = Demo::start().expect("it starts");
        let text = demo.introduction().to_string();
        for address in demo.origins.iter().chain([&demo.proxy, &demo.admin, &demo.control]) {
            assert!(text.contains(&address.to_string()), "{text}");
        }
    }

    fn ask(address: SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let headers = "Host: demo\r\nX-Forwarded-For: 192.0.2.1\r\nCookie: secret\r\nConnection: close\r\n";
        io::Write::write_all(&mut stream, format!("{method} {path} HTTP/1.1\r\n{headers}\r\n").as_bytes())
            .expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("received");
        response
    }

    fn wait_until(happened: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !happened() {
            assert!(Instant::now() < deadline, "it never happened");
            thread::yield_now();
        }
    }
}
