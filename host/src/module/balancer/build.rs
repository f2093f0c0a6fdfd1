//! Builds an instance: the module's view of its cluster, and its answer.

use std::ffi::c_void;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::Arc;

use lb_api::wire;

use super::Balancer;
use super::scope::{ModuleScope, panic_text, take_panic};
use crate::config::{Place, Setting, SettingValue};
use crate::module::OneLine;
use crate::module::board;
use crate::module::guarded;
use crate::module::mapped::can_be_read;
use crate::module::wire::{address, bytes, slice, text};

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

/// Input of a balancer's `build`.
#[derive(Clone, Copy, Debug)]
pub struct BuildInput<'a> {
    /// All endpoints, in configuration order; at least one.
    pub endpoints: &'a [EndpointInput<'a>],
    /// The cluster's live numbers.
    pub state: &'static wire::ClusterState,
    /// The module's own settings.
    pub settings: &'a [Setting],
    /// The balancer that the new one will replace. The module sees it only where it is of the same scope.
    pub previous: Option<&'a Balancer>,
    /// State saved by the cluster's balancer of an earlier generation.
    pub saved: Option<&'a [u8]>,
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
    /// The problem, on one line.
    pub text: Box<str>,
    /// Where the setting (or, where it is missing, its table) stands in the configuration.
    pub place: Option<Place>,
}

/// The data that a balancer asks for; the host gathers nothing else.
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
    /// Makes an instance of the module of this scope. If the module cannot use its saved state, it is built without, and the log says so. Costs
    /// one or two calls of the module's `build`, each with a pass over endpoints and settings.
    ///
    /// # Errors
    ///
    /// The module's reasons; also if it panicked, or asks for data that no host can give.
    pub fn build(scope: &Arc<ModuleScope>, input: BuildInput<'_>) -> Result<Self, BuildError> {
        let placed = |problems: Vec<UnplacedProblem>| -> Vec<BuildProblem> {
            problems.into_iter().map(|problem| BuildProblem::placed(problem, input.settings)).collect()
        };
        let mut built = Self::try_build(scope, input).map_err(placed);
        if let (Err(refused), Some(_)) = (&built, input.saved) {
            let without = Self::try_build(scope, BuildInput { saved: None, ..input }).map_err(placed);
            if let (Ok(_), Some(BuildProblem { text, .. })) = (&without, refused.first()) {
                let (cluster, module) = (&*scope.cluster, scope.module.id());
                tracing::warn!(
                    "cluster \"{cluster}\": module \"{module}\" cannot use its saved state and starts without it: {text}"
                );
            }
            built = without;
        }
        built.map_err(|problems| BuildError {
            cluster: scope.cluster.clone(),
            module: scope.module.id().into(),
            problems,
        })
    }

    /// One call of the module's `build`, and the checks of what it asks for.
    fn try_build(scope: &Arc<ModuleScope>, input: BuildInput<'_>) -> Result<Self, Vec<UnplacedProblem>> {
        let own = input.previous.filter(|previous| Arc::ptr_eq(&previous.scope, scope));
        let answer = call_build(scope, input, own.map_or(ptr::null(), |own| own.instance.cast_const()))?;
        let module = &scope.module;
        // From here on the instance is dropped with `balancer`, whatever else is found.
        let mut balancer = Self {
            calls: module.library.calls,
            instance: answer.instance,
            mark: scope.mark,
            events: answer.needs.events,
            needs: Needs::default(),
            scope: Arc::clone(scope),
            module: Arc::clone(module),
        };
        let mut problems = answer.problems;
        // SAFETY: the ABI keeps the names valid until the balancer is dropped.
        match unsafe { Needs::from_wire(&answer.needs) } {
            Ok(needs) => balancer.needs = needs,
            Err(why) => problems.push(UnplacedProblem::of_all(why)),
        }
        if balancer.events != 0 && balancer.calls.observe.is_none() {
            problems.push(UnplacedProblem::of_all("it asks for events, but has no call \"observe\""));
        }
        if problems.is_empty() { Ok(balancer) } else { Err(problems) }
    }
}

/// A module's answer to `build` with a status that says that there is an instance.
struct BuildAnswer {
    instance: *mut c_void,
    needs: wire::Needs,
    /// Errors that it reported all the same.
    problems: Vec<UnplacedProblem>,
}

/// Calls `build` with the wire form of `input`. `previous` is null or an instance of this very library.
fn call_build(
    scope: &ModuleScope,
    input: BuildInput<'_>,
    previous: *const c_void,
) -> Result<BuildAnswer, Vec<UnplacedProblem>> {
    let metadata: Vec<Box<[wire::Pair]>> = input.endpoints.iter().map(|e| pairs(e.metadata)).collect();
    let endpoints: Vec<wire::Endpoint> =
        input.endpoints.iter().zip(&metadata).map(|(endpoint, pairs)| endpoint.to_wire(pairs)).collect();
    let settings: Vec<wire::Setting> = input.settings.iter().map(setting).collect();
    let mut problems: Vec<UnplacedProblem> = Vec::new();
    let errors = wire::ErrorSink {
        size: size_of::<wire::ErrorSink>() as u32,
        reserved: 0,
        ctx: (&raw mut problems).cast(),
        error: push_problem,
    };
    let mut needs = NO_NEEDS;
    let cx = wire::BuildCx {
        size: size_of::<wire::BuildCx>() as u32,
        reserved: 0,
        cluster: text(&scope.cluster),
        endpoints: endpoints.as_ptr(),
        n_endpoints: endpoints.len(),
        endpoint_stride: size_of::<wire::Endpoint>(),
        settings: settings.as_ptr(),
        n_settings: settings.len(),
        setting_stride: size_of::<wire::Setting>(),
        state: input.state,
        previous,
        saved: input.saved.map_or(ABSENT, bytes),
        host: &raw const scope.api,
        errors: &raw const errors,
        needs: &raw mut needs,
    };
    let build = scope.module.library.calls.build;
    let mut instance = ptr::null_mut();
    // SAFETY: `cx` and all that it points to live until after the call, `scope` until after the balancer, and `previous` is
    // as promised. The module keeps to the ABI, as `load` checked by its version.
    let build = || unsafe { build(&raw const cx, &raw mut instance) };
    let status = board::inside(scope.mark.long(), || guarded::around(build));
    let problems = judge(status, problems)?;
    Ok(BuildAnswer { instance, needs, problems })
}

/// The errors that the module reported, if its status says that there is an instance; otherwise the reasons why there is none.
fn judge(
    status: u32,
    mut problems: Vec<UnplacedProblem>,
) -> Result<Vec<UnplacedProblem>, Vec<UnplacedProblem>> {
    let panic = take_panic();
    match status {
        wire::STATUS_OK => return Ok(problems),
        wire::STATUS_PANICKED => {
            let text = problems.pop().map(|problem| problem.text).or(panic);
            problems = vec![UnplacedProblem::of_all(panic_text("build", text))];
        }
        _ if problems.is_empty() => problems.push(UnplacedProblem::of_all("build refused without a reason")),
        _ => {}
    }
    Err(problems)
}

/// One error as the module wrote it: path and text.
struct UnplacedProblem {
    path: String,
    text: String,
}

impl UnplacedProblem {
    fn of_all(text: impl Into<String>) -> Self {
        Self { path: String::new(), text: text.into() }
    }
}

/// The host's values before the call, which hold if the module sets nothing.
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
    /// Finds the place of the setting at fault in the configuration, or of the nearest table or array around it.
    fn placed(problem: UnplacedProblem, settings: &[Setting]) -> Self {
        let around = |setting: &&Setting| {
            problem.path.strip_prefix(&*setting.path).is_some_and(|rest| {
                rest.is_empty() || rest.starts_with(['.', '[']) || setting.path.is_empty()
            })
        };
        let nearest = settings.iter().filter(around).max_by_key(|setting| setting.path.len());
        Self {
            place: nearest.map(|setting| setting.place.clone()),
            path: problem.path.into(),
            text: problem.text.into(),
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
        return Err(format!("it asks for {n} {what} headers, expected at most {MAX_HEADERS}"));
    }
    if !first.is_aligned() || !can_be_read(first.addr(), n * size_of::<wire::Str>()) {
        return Err(format!("its list of {what} headers points to memory that cannot be read"));
    }
    // SAFETY: the caller's promise; `n` is small, and `first` aligned and readable.
    let names = unsafe { std::slice::from_raw_parts(first, n) };
    names
        .iter()
        .map(|name| {
            if name.len > MAX_HEADER_BYTES || !can_be_read(name.ptr.addr(), name.len) {
                return Err(format!("it asks for a {what} header whose name cannot be read"));
            }
            // SAFETY: the caller's promise, and readable.
            let name = unsafe { slice(name) };
            match std::str::from_utf8(name) {
                Ok(text) if !text.is_empty() && text.bytes().all(is_token) => {
                    Ok(text.to_ascii_lowercase().into_boxed_str())
                }
                _ => Err(format!(
                    "it asks for {what} header \"{}\", which is not a header name",
                    OneLine(name)
                )),
            }
        })
        .collect()
}

/// Characters of a header name (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Problems beyond these say nothing new.
const MAX_PROBLEMS: usize = 100;

/// [`wire::ErrorSink::error`].
unsafe extern "C" fn push_problem(ctx: *mut c_void, path: wire::Str, text: wire::Str) {
    // SAFETY: `build` made `ctx` from its `Vec`, which nobody else touches during the call.
    let problems = unsafe { &mut *ctx.cast::<Vec<UnplacedProblem>>() };
    if problems.len() < MAX_PROBLEMS {
        // SAFETY: the ABI promises valid text for the time of the call.
        let (path, text) = unsafe { (slice(&path), slice(&text)) };
        problems.push(UnplacedProblem { path: OneLine(path).to_string(), text: OneLine(text).to_string() });
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
