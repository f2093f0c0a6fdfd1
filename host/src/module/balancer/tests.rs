//! Against modules made here: tables of functions that do one thing each.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::config::{Place, Setting, SettingValue};
use crate::module::code::CodeRanges;
use crate::module::{Language, Library, TrylistLayout};

// ---- a module that does nothing, of which a test replaces what it is about ------------------------------------------

unsafe extern "C" fn build_ok(_: *const wire::BuildCx, _: *mut *mut c_void) -> u32 {
    wire::STATUS_OK
}

unsafe extern "C" fn load_balance_ok(_: *const c_void, _: *const wire::Request, _: *mut c_void) -> u32 {
    wire::STATUS_OK
}

unsafe extern "C" fn next_ok(
    _: *const c_void,
    _: *mut c_void,
    _: *const wire::NextCx,
    _: *mut wire::Answer,
) -> u32 {
    wire::STATUS_OK
}

unsafe extern "C" fn report_failure_ok(_: *const c_void, _: *mut c_void, _: *const wire::Failure) -> u32 {
    wire::STATUS_OK
}

unsafe extern "C" fn finish_ok(_: *const c_void, _: *mut c_void, _: *const wire::Outcome) -> u32 {
    wire::STATUS_OK
}

unsafe extern "C" fn drop_trylist_ok(_: *const c_void, _: *mut c_void) -> u32 {
    wire::STATUS_OK
}

unsafe extern "C" fn drop_balancer_ok(_: *mut c_void) -> u32 {
    wire::STATUS_OK
}

pub(in crate::module) const NOTHING: Calls = Calls {
    load_balance: load_balance_ok,
    next: next_ok,
    report_failure: report_failure_ok,
    observe: None,
    finish: finish_ok,
    drop_trylist: drop_trylist_ok,
    build: build_ok,
    save: None,
    explain: None,
    drop_balancer: drop_balancer_ok,
};

fn module(calls: Calls) -> Arc<ModuleScope> {
    let library = Box::leak(Box::new(Library {
        id: "fake".into(),
        version: "1".into(),
        summary: "does nothing".into(),
        abi: (1, 0),
        language: Language::C,
        trylist: TrylistLayout { size: 0, align: 1 },
        sha256: [0; 32],
        calls,
        code: CodeRanges::default(),
    }));
    in_cluster(&Arc::new(Module { library, file: "fake.so".into(), mark: ModuleMark::NONE }), "api")
}

fn in_cluster(module: &Arc<Module>, cluster: &str) -> Arc<ModuleScope> {
    ModuleScope::new(module, cluster, None, 0)
}

static STATE: wire::ClusterState = wire::ClusterState {
    size: size_of::<wire::ClusterState>() as u32,
    n_available: AtomicU32::new(1),
    epoch: std::sync::atomic::AtomicU64::new(0),
};

static COUNTERS: wire::Counters = wire::Counters {
    size: size_of::<wire::Counters>() as u32,
    state: AtomicU32::new(wire::STATE_AVAILABLE),
    effective_weight: AtomicU32::new(65536),
    in_flight: AtomicU32::new(0),
    in_flight_older: AtomicU32::new(0),
    max_in_flight: AtomicU32::new(0),
    latency_ns: std::sync::atomic::AtomicU64::new(0),
};

fn input() -> BuildInput<'static> {
    BuildInput { endpoints: &[], state: &STATE, settings: &[], previous: None, saved: None }
}

/// The lines of the log, at `debug` and above, while `f` runs.
fn logged(f: impl FnOnce()) -> String {
    struct LogLines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for LogLines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::clone(&lines);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        .with_writer(move || LogLines(Arc::clone(&writer)))
        .finish();
    tracing::subscriber::with_default(subscriber, f);
    String::from_utf8(std::mem::take(&mut lines.lock().unwrap())).unwrap()
}

fn str_of(text: &'static str) -> wire::Str {
    wire::Str { ptr: text.as_ptr(), len: text.len() }
}

// ---- build ---------------------------------------------------------------------------------------------------------

#[test]
fn a_module_sees_the_cluster_as_it_was_given() {
    unsafe extern "C" fn build(cx: *const wire::BuildCx, _: *mut *mut c_void) -> u32 {
        // SAFETY: the host's promises, which this test is about.
        let (cx, endpoints, settings, state) = unsafe {
            let cx = &*cx;
            assert_eq!(cx.endpoint_stride, size_of::<wire::Endpoint>());
            assert_eq!(cx.setting_stride, size_of::<wire::Setting>());
            (
                cx,
                std::slice::from_raw_parts(cx.endpoints, cx.n_endpoints),
                std::slice::from_raw_parts(cx.settings, cx.n_settings),
                &*cx.state,
            )
        };
        assert_eq!(cx.size as usize, size_of::<wire::BuildCx>());
        // SAFETY: as above.
        let text = |text: &wire::Str| unsafe { str::from_utf8(slice(text)).unwrap().to_owned() };
        assert_eq!((text(&cx.cluster), text(&cx.saved)), ("api".into(), "learned".into()));
        assert!(cx.previous.is_null());
        assert!(std::ptr::eq(state, &raw const STATE));
        let [v4, v6, named] = endpoints else { panic!("{} endpoints", endpoints.len()) };
        assert_eq!((v4.id, v4.weight, v4.port, text(&v4.name)), (7, 3, 81, "10.0.0.1".into()));
        assert_eq!((v4.address.family, v4.address.port, &v4.address.bytes[..4]), (4, 81, &[10, 0, 0, 1][..]));
        assert_eq!((v6.address.family, v6.address.bytes[15]), (wire::ADDRESS_V6, 1));
        assert_eq!((named.address.family, named.n_metadata), (wire::ADDRESS_NONE, 0));
        assert!(std::ptr::eq(v4.counters, &raw const COUNTERS));
        // SAFETY: as above.
        let pairs = unsafe { std::slice::from_raw_parts(v4.metadata, v4.n_metadata) };
        assert_eq!(
            pairs.iter().map(|p| (text(&p.name), text(&p.value))).collect::<Vec<_>>(),
            [("zone".to_owned(), "a".to_owned())]
        );
        let seen = settings.iter().map(|s| (text(&s.path), s.kind, s.integer, s.real, text(&s.text)));
        assert_eq!(
            seen.collect::<Vec<_>>(),
            [
                ("tiers".to_owned(), wire::SETTING_ARRAY, 1, 0.0, String::new()),
                ("tiers[0]".to_owned(), wire::SETTING_STRING, 0, 0.0, "x".to_owned()),
                ("on".to_owned(), wire::SETTING_BOOLEAN, 1, 0.0, String::new()),
                ("n".to_owned(), wire::SETTING_INTEGER, -5, 0.0, String::new()),
                ("f".to_owned(), wire::SETTING_FLOAT, 0, 0.5, String::new()),
                ("t".to_owned(), wire::SETTING_TABLE, 2, 0.0, String::new()),
            ]
        );
        // An assertion that fails would abort the process, which is a failed test too.
        wire::STATUS_OK
    }
    let metadata = [(Arc::from("zone"), Arc::from("a"))];
    let v4 = EndpointInput {
        id: 7,
        url: "http://10.0.0.1:81",
        name: "10.0.0.1",
        port: 81,
        address: Some([10, 0, 0, 1].into()),
        weight: 3,
        metadata: &metadata,
        counters: &COUNTERS,
    };
    let v6 = EndpointInput { address: Some(std::net::Ipv6Addr::LOCALHOST.into()), ..v4 };
    let named = EndpointInput { address: None, metadata: &[], ..v4 };
    let settings = [
        setting("tiers", SettingValue::Array(1), 1),
        setting("tiers[0]", SettingValue::String("x".into()), 1),
        setting("on", SettingValue::Boolean(true), 1),
        setting("n", SettingValue::Integer(-5), 1),
        setting("f", SettingValue::Float(0.5), 1),
        setting("t", SettingValue::Table(2), 1),
    ];
    let input =
        BuildInput { endpoints: &[v4, v6, named], settings: &settings, saved: Some(b"learned"), ..input() };
    Balancer::build(&module(Calls { build, ..NOTHING }), input).unwrap();
}

fn setting(path: &str, value: SettingValue, line: usize) -> Setting {
    Setting { path: path.into(), value, place: Place { file: "site.toml".into(), line } }
}

/// Says one error about a path, then this status.
macro_rules! says {
    ($(($path:expr, $text:expr)),* => $status:expr) => {{
        unsafe extern "C" fn build(cx: *const wire::BuildCx, _: *mut *mut c_void) -> u32 {
            // SAFETY: the host's promise.
            let errors = unsafe { &*(*cx).errors };
            // SAFETY: as above.
            $(unsafe { (errors.error)(errors.ctx, str_of($path), str_of($text)) };)*
            let _ = errors;
            $status
        }
        module(Calls { build, ..NOTHING })
    }};
}

fn build_error(module: &Arc<ModuleScope>, settings: &[Setting]) -> Vec<String> {
    let error = Balancer::build(module, BuildInput { settings, ..input() }).unwrap_err();
    error.lines().collect()
}

#[test]
fn every_reason_of_a_module_is_one_line_with_the_place_of_its_setting() {
    let module = says!(
        ("choices", "must be at least 2,\nnot 1"), ("tiers[1].name", "is missing"), ("speed", "is no setting"),
        ("", "and so on") => wire::STATUS_REFUSED
    );
    let settings = [
        setting("choices", SettingValue::Integer(1), 14),
        setting("tiers", SettingValue::Array(2), 15),
        setting("tiers[1]", SettingValue::Table(0), 17),
    ];
    assert_eq!(
        build_error(&module, &settings),
        [
            r#"site.toml:14: cluster "api": module "fake": settings.choices: must be at least 2,\nnot 1"#,
            r#"site.toml:17: cluster "api": module "fake": settings.tiers[1].name: is missing"#,
            r#"cluster "api": module "fake": settings.speed: is no setting"#,
            r#"cluster "api": module "fake": and so on"#,
        ]
    );
}

#[test]
fn a_module_that_refuses_without_a_word_is_refused_with_one() {
    let text = r#"cluster "api": module "fake": build refused without a reason"#;
    assert_eq!(build_error(&says!(=> wire::STATUS_REFUSED), &[]), [text]);
    assert_eq!(build_error(&says!(=> 4711), &[]), [text], "an unknown status is a refusal");
}

#[test]
fn errors_count_even_where_the_status_says_that_all_is_well() {
    static DROPS: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn drop_balancer(_: *mut c_void) -> u32 {
        DROPS.fetch_add(1, Ordering::Relaxed);
        wire::STATUS_OK
    }
    let calls = Calls { drop_balancer, ..says!(("", "not really") => wire::STATUS_OK).module.library.calls };
    assert_eq!(build_error(&module(calls), &[]), [r#"cluster "api": module "fake": not really"#]);
    assert_eq!(DROPS.load(Ordering::Relaxed), 1, "there was an instance to be dropped");
}

#[test]
fn a_panic_in_build_is_a_refusal() {
    let panicked = says!(("", "panicked at src/lib.rs:1: oh") => wire::STATUS_PANICKED);
    let text = r#"cluster "api": module "fake": build panicked at src/lib.rs:1: oh"#;
    assert_eq!(build_error(&panicked, &[]), [text]);
    let text = r#"cluster "api": module "fake": build panicked without a message"#;
    assert_eq!(build_error(&says!(=> wire::STATUS_PANICKED), &[]), [text]);
}

/// Fills in these fields of its needs.
macro_rules! needs {
    ($($field:ident: $value:expr),*) => {{
        unsafe extern "C" fn build(cx: *const wire::BuildCx, _: *mut *mut c_void) -> u32 {
            // SAFETY: the host's promise.
            let needs = unsafe { &mut *(*cx).needs };
            assert_eq!(needs.size as usize, size_of::<wire::Needs>());
            $(needs.$field = $value;)*
            wire::STATUS_OK
        }
        Calls { build, ..NOTHING }
    }};
}

struct Names<const N: usize>([wire::Str; N]);
// SAFETY: of static text.
unsafe impl<const N: usize> Sync for Names<N> {}

const fn name(text: &'static str) -> wire::Str {
    wire::Str { ptr: text.as_ptr(), len: text.len() }
}

#[test]
fn needs_are_copied_with_names_in_lower_case() {
    static REQUEST: Names<2> = Names([name("X-Tenant"), name("cookie")]);
    static RESPONSE: Names<1> = Names([name("X-Load")]);
    let calls = needs!(
        flags: wire::NEEDS_KEY, events: 1 << wire::EVENT_TRY_ENDED,
        request_headers: REQUEST.0.as_ptr(), n_request_headers: 2,
        response_headers: RESPONSE.0.as_ptr(), n_response_headers: 1
    );
    let balancer = Balancer::build(&module(Calls { observe: Some(observe_ok), ..calls }), input()).unwrap();
    assert_eq!(
        balancer.needs(),
        &Needs {
            key: true,
            events: 1 << wire::EVENT_TRY_ENDED,
            request_headers: ["x-tenant".into(), "cookie".into()].into(),
            response_headers: ["x-load".into()].into(),
        }
    );
    assert!(balancer.wants(wire::EVENT_TRY_ENDED) && !balancer.wants(wire::EVENT_CONNECTED));
}

unsafe extern "C" fn observe_ok(_: *const c_void, _: *mut c_void, _: *const wire::Event) -> u32 {
    wire::STATUS_OK
}

#[test]
fn needs_that_no_host_can_meet_are_refused() {
    static SPACE: Names<1> = Names([name("a b")]);
    static EMPTY: Names<1> = Names([name("")]);
    let refusal = |calls| build_error(&module(calls), &[]).join("");
    let error = refusal(needs!(request_headers: SPACE.0.as_ptr(), n_request_headers: 1));
    assert!(error.ends_with("it asks for request header \"a b\", which is not a header name"), "{error}");
    let error = refusal(needs!(response_headers: EMPTY.0.as_ptr(), n_response_headers: 1));
    assert!(error.ends_with("it asks for response header \"\", which is not a header name"), "{error}");
    let error = refusal(needs!(request_headers: SPACE.0.as_ptr(), n_request_headers: usize::MAX));
    assert!(error.ends_with("request headers, expected at most 64"), "{error}");
    let error = refusal(needs!(n_request_headers: 1));
    assert!(error.ends_with("request headers, expected at most 64"), "{error}");
    let error = refusal(needs!(events: 1 << wire::EVENT_CONNECTED));
    assert!(error.ends_with("it asks for events, but has no call \"observe\""), "{error}");
}

#[test]
fn only_an_instance_of_the_same_library_and_cluster_is_handed_over() {
    unsafe extern "C" fn build(cx: *const wire::BuildCx, instance: *mut *mut c_void) -> u32 {
        // SAFETY: the host's promise.
        let previous = unsafe { (*cx).previous };
        // An instance is its predecessor's number plus one.
        // SAFETY: as above.
        unsafe { *instance = std::ptr::without_provenance_mut(previous.addr() + 1) };
        wire::STATUS_OK
    }
    let fake = module(Calls { build, ..NOTHING });
    let first = Balancer::build(&fake, input()).unwrap();
    let after_first = BuildInput { previous: Some(&first), ..input() };
    assert_eq!(Balancer::build(&fake, after_first).unwrap().instance.addr(), 2);
    let elsewhere = in_cluster(fake.module(), "web");
    assert_eq!(Balancer::build(&elsewhere, after_first).unwrap().instance.addr(), 1);
    let stranger = module(Calls { build, ..NOTHING });
    assert_eq!(Balancer::build(&stranger, after_first).unwrap().instance.addr(), 1);
}

// ---- calls ---------------------------------------------------------------------------------------------------------

#[test]
fn a_failed_call_is_counted_and_logged_once_with_its_text() {
    unsafe extern "C" fn build(cx: *const wire::BuildCx, instance: *mut *mut c_void) -> u32 {
        // SAFETY: the host's promise. The instance is the host's own table of services.
        unsafe { *instance = (*cx).host.cast_mut().cast() };
        wire::STATUS_OK
    }
    unsafe extern "C" fn drop_trylist(instance: *const c_void, _: *mut c_void) -> u32 {
        // SAFETY: from `build` above; services outlive the balancer.
        let host = unsafe { &*instance.cast::<wire::HostApi>() };
        // SAFETY: as above.
        unsafe { (host.panicked)(host.ctx, str_of("oh\nno")) };
        wire::STATUS_PANICKED
    }
    let module = module(Calls { build, drop_trylist, ..NOTHING });
    let balancer = Balancer::build(&module, input()).unwrap();
    let call = || {
        // SAFETY: this module does not look at its trylist.
        assert_eq!(unsafe { balancer.drop_trylist(ptr::null_mut()) }, Err(Panicked));
    };
    let line = r#"module fault: drop_trylist panicked: oh\nno module="fake" cluster="api" fault="panic""#;
    assert_eq!(logged(call), format!("ERROR {line}\n"));
    assert_eq!(logged(call), format!("DEBUG {line}\n"));
    assert_eq!((module.faults(ModuleFault::Panic), module.faults(ModuleFault::Status)), (2, 0));
}

#[test]
fn a_status_that_is_not_known_is_a_fault_of_its_own() {
    unsafe extern "C" fn drop_trylist(_: *const c_void, _: *mut c_void) -> u32 {
        99
    }
    let module = module(Calls { drop_trylist, ..NOTHING });
    let balancer = Balancer::build(&module, input()).unwrap();
    let log = logged(|| {
        // SAFETY: this module does not look at its trylist.
        assert_eq!(unsafe { balancer.drop_trylist(ptr::null_mut()) }, Err(Panicked));
    });
    assert!(log.contains("drop_trylist returned status 99"), "{log}");
    assert_eq!(module.faults(ModuleFault::Status), 1);
}

#[test]
fn a_module_logs_in_its_own_name_and_cannot_forge_a_line() {
    unsafe extern "C" fn build(cx: *const wire::BuildCx, _: *mut *mut c_void) -> u32 {
        // SAFETY: the host's promise.
        let host = unsafe { &*(*cx).host };
        for (level, text) in [(wire::LOG_WARN, "slow\nERROR all is lost"), (77, "an unknown level")] {
            // SAFETY: as above.
            unsafe { (host.log)(host.ctx, level, str_of(text)) };
        }
        wire::STATUS_OK
    }
    let log = logged(|| drop(Balancer::build(&module(Calls { build, ..NOTHING }), input()).unwrap()));
    assert_eq!(
        log,
        " WARN slow\\nERROR all is lost module=\"fake\" cluster=\"api\"\n INFO an unknown level module=\"fake\" cluster=\"api\"\n"
    );
}

#[test]
fn only_wanted_events_reach_a_module() {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    unsafe extern "C" fn observe(_: *const c_void, _: *mut c_void, event: *const wire::Event) -> u32 {
        // SAFETY: the host's promise.
        SEEN.fetch_or(1 << unsafe { (*event).kind }, Ordering::Relaxed);
        wire::STATUS_OK
    }
    let calls = Calls { observe: Some(observe), ..needs!(events: 1 << wire::EVENT_TRY_ENDED) };
    let balancer = Balancer::build(&module(calls), input()).unwrap();
    for kind in [wire::EVENT_CONNECTED, wire::EVENT_RESPONSE_HEADERS, wire::EVENT_TRY_ENDED] {
        let event = wire::Event {
            size: size_of::<wire::Event>() as u32,
            kind,
            try_id: 1,
            endpoint: 0,
            status: 0,
            result: 0,
            now_ns: 0,
            connect_ns: 0,
            first_byte_ns: 0,
            total_ns: 0,
            bytes_sent: 0,
            bytes_received: 0,
            headers: ptr::null(),
            n_headers: 0,
        };
        // SAFETY: this module does not look at its trylist.
        assert_eq!(unsafe { balancer.observe(ptr::null_mut(), &event) }, Ok(()));
    }
    assert_eq!(SEEN.load(Ordering::Relaxed), 1 << wire::EVENT_TRY_ENDED);
}

#[test]
fn what_is_saved_is_what_the_module_wrote_up_to_a_limit() {
    unsafe extern "C" fn save(_: *const c_void, sink: *const wire::Sink) -> u32 {
        // SAFETY: the host's promise.
        let sink = unsafe { &*sink };
        for part in ["one ", "", "two"] {
            // SAFETY: as above.
            unsafe { (sink.write)(sink.ctx, str_of(part)) };
        }
        wire::STATUS_OK
    }
    unsafe extern "C" fn save_for_ever(_: *const c_void, sink: *const wire::Sink) -> u32 {
        let part = vec![0; 1 << 20];
        // SAFETY: the host's promise.
        let sink = unsafe { &*sink };
        for _ in 0..65 {
            // SAFETY: as above.
            unsafe { (sink.write)(sink.ctx, wire::Str { ptr: part.as_ptr(), len: part.len() }) };
        }
        wire::STATUS_OK
    }
    let saved = |save| Balancer::build(&module(Calls { save, ..NOTHING }), input()).unwrap().save();
    assert_eq!(saved(None), Ok(None));
    assert_eq!(saved(Some(save)), Ok(Some(b"one two".to_vec())));
    assert_eq!(saved(Some(save_for_ever)), Err(SaveError::TooLong));
}
