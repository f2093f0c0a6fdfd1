//! Making an instance: what a module gets to see of its cluster, and what it says to that.

use std::ffi::c_void;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::Arc;

use lb_api::wire;

use super::Balancer;
use super::scope::{Scope, panic_text, take_panic};
use crate::config::{Place, Setting, SettingValue};
use crate::module::board;
use crate::module::mapped::can_be_read;
use crate::module::wire::{address, bytes, slice, text};
use crate::module::{Module, OneLine};

/// One endpoint as a balancer gets to know it. Its index in [`BuildInput::endpoints`] is its name in every call.
#[derive(Clone, Copy, Debug)]
pub struct EndpointInput<'a> {
    /// Stable over reloads: made of cluster, URL as written, occurrence of that URL, and address.
    pub id: u64,
    /// The URL as written.
    pub url: &'a str,
    /// Host name or address as written, without brackets.
    pub name: &'a str,
    /// Port as written or the scheme's default.
    pub port: u16,
    /// The resolved address, where it is known.
    pub address: Option<IpAddr>,
    /// 1 to 65,535.
    pub weight: u16,
    /// Pairs in the order of the file.
    pub metadata: &'a [(Arc<str>, Arc<str>)],
    /// The live numbers: the module may keep this reference for the life of the process.
    pub counters: &'static wire::Counters,
}

/// What a balancer is built from.
#[derive(Clone, Copy, Debug)]
pub struct BuildInput<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Its index in the configuration, where a supervisor is to know what a thread is inside of.
    pub cluster_idx: Option<usize>,
    /// All endpoints, in configuration order; at least one.
    pub endpoints: &'a [EndpointInput<'a>],
    /// The cluster's live numbers.
    pub state: &'static wire::ClusterState,
    /// The module's own settings.
    pub settings: &'a [Setting],
    /// The cluster's balancer that the new one will replace. The module sees it only where it is its own, of the same load.
    pub previous: Option<&'a Balancer>,
    /// What the cluster's balancer of an earlier generation saved.
    pub saved: Option<&'a [u8]>,
    /// So many faults within a minute put the balancer in quarantine; 0 is never.
    pub fault_limit: u32,
}

/// Why a module refused to build: every reason that it gave, at least one.
#[derive(Debug)]
pub struct BuildError {
    /// Name of the cluster.
    pub cluster: Box<str>,
    /// ID of the module.
    pub module: Box<str>,
    /// The reasons.
    pub problems: Vec<BuildProblem>,
}

/// One reason why a module refused to build.
#[derive(Debug)]
pub struct BuildProblem {
    /// The setting at fault in the form of [`wire::Setting::path`], or empty.
    pub path: Box<str>,
    /// What is wrong, on one line.
    pub text: Box<str>,
    /// Where the setting (or, where it is missing, its table) stands in the configuration.
    pub place: Option<Place>,
}

/// What a balancer wants gathered for it; the host gathers nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The cluster's key of each request.
    pub key: bool,
    /// `1 << EVENT_X` for every event to be observed.
    pub events: u32,
    /// Names of request headers, lower case, in the module's order.
    pub request_headers: Box<[Box<str>]>,
    /// Names of response headers, lower case, in the module's order.
    pub response_headers: Box<[Box<str>]>,
}

impl Balancer {
    /// Makes an instance of `module`. Costs what the module makes of it, and one pass over endpoints and settings; twice
    /// that where the module cannot use what was saved: it then starts without, and the log says so.
    ///
    /// # Errors
    ///
    /// What the module said against it; also where it panicked, or asks for what no host can give.
    pub fn build(module: &Arc<Module>, input: BuildInput<'_>) -> Result<Self, BuildError> {
        let placed = |said: Vec<UnplacedProblem>| -> Vec<BuildProblem> {
            said.into_iter().map(|said| BuildProblem::placed(said, input.settings)).collect()
        };
        let mut built = Self::build_or_say_why(module, input).map_err(placed);
        if let (Err(refused), Some(_)) = (&built, input.saved) {
            let without = Self::build_or_say_why(module, BuildInput { saved: None, ..input }).map_err(placed);
            if let (Ok(_), Some(BuildProblem { text, .. })) = (&without, refused.first()) {
                let (cluster, module) = (input.cluster, module.id());
                tracing::warn!(
                    "cluster \"{cluster}\": module \"{module}\" cannot use what it saved, and starts without: {text}"
                );
            }
            built = without;
        }
        built.map_err(|problems| BuildError {
            cluster: input.cluster.into(),
            module: module.id().into(),
            problems,
        })
    }

    fn build_or_say_why(module: &Arc<Module>, input: BuildInput<'_>) -> Result<Self, Vec<UnplacedProblem>> {
        let previous = input.previous.filter(|previous| previous.is_replaceable_by(module, input.cluster));
        let scope = match previous {
            Some(previous) => Arc::clone(&previous.scope),
            None => Scope::new(Arc::clone(module), input.cluster, input.fault_limit),
        };
        let metadata: Vec<Box<[wire::Pair]>> = input.endpoints.iter().map(|e| pairs(e.metadata)).collect();
        let endpoints: Vec<wire::Endpoint> =
            input.endpoints.iter().zip(&metadata).map(|(endpoint, pairs)| endpoint.to_wire(pairs)).collect();
        let settings: Vec<wire::Setting> = input.settings.iter().map(setting).collect();
        let mut said: Vec<UnplacedProblem> = Vec::new();
        let errors = wire::ErrorSink {
            size: size_of::<wire::ErrorSink>() as u32,
            reserved: 0,
            ctx: (&raw mut said).cast(),
            error: push_said,
        };
        let mut needs = NO_NEEDS;
        let cx = wire::BuildCx {
            size: size_of::<wire::BuildCx>() as u32,
            reserved: 0,
            cluster: text(input.cluster),
            endpoints: endpoints.as_ptr(),
            n_endpoints: endpoints.len(),
            endpoint_stride: size_of::<wire::Endpoint>(),
            settings: settings.as_ptr(),
            n_settings: settings.len(),
            setting_stride: size_of::<wire::Setting>(),
            state: input.state,
            previous: previous.map_or(ptr::null(), |previous| previous.instance.cast_const()),
            saved: input.saved.map_or(ABSENT, bytes),
            host: &raw const scope.api,
            errors: &raw const errors,
            needs: &raw mut needs,
        };
        let calls = module.library.calls;
        let mark = input.cluster_idx.map_or(module.mark, |idx| module.mark.in_cluster(idx));
        let mut instance = ptr::null_mut();
        // SAFETY: `cx` and all that it points to live until after the call, `scope` until after the balancer, and
        // `previous` is an instance of this very library. The module keeps to the ABI, as `load` checked by its version.
        let status =
            board::inside(mark.long(), || unsafe { (calls.build)(&raw const cx, &raw mut instance) });
        said = judge(status, said)?;
        // From here on the instance is dropped with `balancer`, whatever else is found.
        let mut balancer = Self {
            calls,
            instance,
            mark,
            events: needs.events,
            needs: Needs::default(),
            scope,
            module: Arc::clone(module),
        };
        // SAFETY: the ABI keeps the names valid until the balancer is dropped.
        match unsafe { Needs::from_wire(&needs) } {
            Ok(needs) => balancer.needs = needs,
            Err(why) => said.push(UnplacedProblem::of_all(why)),
        }
        if balancer.events != 0 && calls.observe.is_none() {
            said.push(UnplacedProblem::of_all("it asks for events, but has no call \"observe\""));
        }
        if said.is_empty() { Ok(balancer) } else { Err(said) }
    }

    /// Whether `module` may see this balancer's instance as the one to be replaced: its own, and of the same cluster.
    fn is_replaceable_by(&self, module: &Module, cluster: &str) -> bool {
        ptr::eq(self.module.library, module.library) && *self.scope.cluster == *cluster
    }
}

/// What the module said to its error sink, when it says by its status that there is an instance; else why there is none.
fn judge(status: u32, mut said: Vec<UnplacedProblem>) -> Result<Vec<UnplacedProblem>, Vec<UnplacedProblem>> {
    let panic = take_panic();
    match status {
        wire::STATUS_OK => return Ok(said),
        wire::STATUS_PANICKED => {
            let text = said.pop().map(|said| said.text).or(panic);
            said = vec![UnplacedProblem::of_all(panic_text("build", text))];
        }
        _ if said.is_empty() => {
            said.push(UnplacedProblem::of_all("it refused to build, and did not say why"))
        }
        _ => {}
    }
    Err(said)
}

/// One error as it came: path and text.
struct UnplacedProblem {
    path: String,
    text: String,
}

impl UnplacedProblem {
    fn of_all(text: impl Into<String>) -> Self {
        Self { path: String::new(), text: text.into() }
    }
}

/// What the host sets before the call, and what holds if the module sets nothing.
const NO_NEEDS: wire::Needs = wire::Needs {
    size: size_of::<wire::Needs>() as u32,
    flags: 0,
    events: 0,
    reserved: 0,
    request_headers: ptr::null(),
    n_request_headers: 0,
    response_headers: ptr::null(),
    n_response_headers: 0,
};

impl BuildProblem {
    /// Finds where the setting at fault stands: itself, else the nearest table or array around it.
    fn placed(said: UnplacedProblem, settings: &[Setting]) -> Self {
        let around = |setting: &&Setting| {
            said.path.strip_prefix(&*setting.path).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with(['.', '[']) || setting.path.is_empty()
            })
        };
        let nearest = settings.iter().filter(around).max_by_key(|setting| setting.path.len());
        Self {
            place: nearest.map(|setting| setting.place.clone()),
            path: said.path.into(),
            text: said.text.into(),
        }
    }
}

impl BuildError {
    /// One line for each problem.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|problem| {
            let place = problem.place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
            let path =
                if problem.path.is_empty() { String::new() } else { format!("settings.{}: ", problem.path) };
            let Self { cluster, module, .. } = self;
            format!("{place}cluster \"{cluster}\": module \"{module}\": {path}{}", problem.text)
        })
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines()
            .enumerate()
            .try_for_each(|(i, line)| write!(f, "{}{line}", if i == 0 { "" } else { "; " }))
    }
}

impl std::error::Error for BuildError {}

impl Needs {
    /// # Safety
    ///
    /// The names that `needs` points to are valid.
    unsafe fn from_wire(needs: &wire::Needs) -> Result<Self, String> {
        // SAFETY: the caller's promise.
        let names = |what, first, n| unsafe { header_names(what, first, n) };
        Ok(Self {
            key: needs.flags & wire::NEEDS_KEY != 0,
            events: needs.events,
            request_headers: names("request", needs.request_headers, needs.n_request_headers)?,
            response_headers: names("response", needs.response_headers, needs.n_response_headers)?,
        })
    }
}

/// Most headers that a balancer may ask for; each is looked for in every request.
const MAX_HEADERS: usize = 64;

/// Longest name of a header that a balancer may ask for.
const MAX_HEADER_BYTES: usize = 256;

/// # Safety
///
/// `first` points to `n` names, unless `n` is absurd.
unsafe fn header_names(what: &str, first: *const wire::Str, n: usize) -> Result<Box<[Box<str>]>, String> {
    if n == 0 {
        return Ok(Box::default());
    }
    if n > MAX_HEADERS || first.is_null() {
        return Err(format!("it asks for {n} {what} headers, {MAX_HEADERS} at most can be given"));
    }
    if !first.is_aligned() || !can_be_read(first.addr(), n * size_of::<wire::Str>()) {
        return Err(format!("its list of {what} headers is not where it says"));
    }
    // SAFETY: the caller's promise; `n` is small, and `first` aligned and readable.
    let names = unsafe { std::slice::from_raw_parts(first, n) };
    names
        .iter()
        .map(|name| {
            if name.len > MAX_HEADER_BYTES || !can_be_read(name.ptr.addr(), name.len) {
                return Err(format!("it asks for a {what} header whose name is no text"));
            }
            // SAFETY: the caller's promise, and readable.
            let name = unsafe { slice(name) };
            match std::str::from_utf8(name) {
                Ok(text) if !text.is_empty() && text.bytes().all(is_token) => {
                    Ok(text.to_ascii_lowercase().into_boxed_str())
                }
                _ => Err(format!("it asks for {what} header \"{}\", which is no header name", OneLine(name))),
            }
        })
        .collect()
}

/// What RFC 9110 section 5.6.2 allows in a header name.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Problems beyond these say nothing new.
const MAX_PROBLEMS: usize = 100;

/// [`wire::ErrorSink::error`].
unsafe extern "C" fn push_said(ctx: *mut c_void, path: wire::Str, text: wire::Str) {
    // SAFETY: `build` made `ctx` from its `Vec`, which nobody else touches during the call.
    let said = unsafe { &mut *ctx.cast::<Vec<UnplacedProblem>>() };
    if said.len() < MAX_PROBLEMS {
        // SAFETY: the ABI promises valid text for the time of the call.
        let (path, text) = unsafe { (slice(&path), slice(&text)) };
        said.push(UnplacedProblem { path: OneLine(path).to_string(), text: OneLine(text).to_string() });
    }
}

const ABSENT: wire::Str = wire::Str { ptr: ptr::null(), len: 0 };

fn pairs(pairs: &[(Arc<str>, Arc<str>)]) -> Box<[wire::Pair]> {
    pairs.iter().map(|(name, value)| wire::Pair { name: text(name), value: text(value) }).collect()
}

impl EndpointInput<'_> {
    fn to_wire(self, metadata: &[wire::Pair]) -> wire::Endpoint {
        wire::Endpoint {
            size: size_of::<wire::Endpoint>() as u32,
            weight: u32::from(self.weight),
            id: self.id,
            url: text(self.url),
            name: text(self.name),
            address: address(self.address.map(|ip| SocketAddr::new(ip, self.port))),
            port: u32::from(self.port),
            reserved: 0,
            metadata: metadata.as_ptr(),
            n_metadata: metadata.len(),
            counters: self.counters,
        }
    }
}

fn setting(setting: &Setting) -> wire::Setting {
    let mut wire = wire::Setting {
        size: size_of::<wire::Setting>() as u32,
        kind: 0,
        path: text(&setting.path),
        text: ABSENT,
        integer: 0,
        real: 0.0,
    };
    wire.kind = match &setting.value {
        SettingValue::Table(n) => {
            wire.integer = *n as i64;
            wire::SETTING_TABLE
        }
        SettingValue::Array(n) => {
            wire.integer = *n as i64;
            wire::SETTING_ARRAY
        }
        SettingValue::String(string) => {
            wire.text = text(string);
            wire::SETTING_STRING
        }
        SettingValue::Integer(integer) => {
            wire.integer = *integer;
            wire::SETTING_INTEGER
        }
        SettingValue::Float(float) => {
            wire.real = *float;
            wire::SETTING_FLOAT
        }
        SettingValue::Boolean(boolean) => {
            wire.integer = i64::from(*boolean);
            wire::SETTING_BOOLEAN
        }
    };
    wire
}
