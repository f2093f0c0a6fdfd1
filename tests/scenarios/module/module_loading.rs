//! Every refusal of the loader, with a file that is really broken in that way, and the exact line that it gives.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use lb_api::wire;
use sha2::Digest as _;
use tests::artifacts::{broken, c_module};
use trylist::config::{ModuleFile, Place, Setting, SettingValue};
use trylist::module::balancer::{Balancer, BuildInput, EndpointInput, ModuleScope};
use trylist::module::board::{Board, CallKind, Crumb, ModuleMark, take_place};
use trylist::module::load::{self, inspect};
use trylist::module::refusal::LoadError;
use trylist::module::registry::Registry;
use trylist::module::{Language, Module, Supports, TrylistLayout};

/// A configuration's line 7 that loads `id` from `file`.
fn line(id: &str, file: impl Into<PathBuf>) -> ModuleFile {
    ModuleFile {
        id: id.into(),
        file: file.into(),
        search: Arc::default(),
        sha256: None,
        kept_in: None,
        place: Place { file: "site.toml".into(), line: 7 },
    }
}

fn load(id: &str, file: &Path) -> Result<Arc<Module>, LoadError> {
    open(&line(id, file))
}

/// As a host that nobody watches over.
fn open(request: &ModuleFile) -> Result<Arc<Module>, LoadError> {
    load::open(request, load::read(request)?, ModuleMark::NONE)
}

/// Loads `file` as module `x`, and checks that it is refused in one line: place, ID, file, and this.
#[track_caller]
fn refused(file: &Path, why: &str) {
    let error = load("x", file).expect_err("it must be refused").to_string();
    assert_eq!(error, format!("site.toml:7: module \"x\": {}: {why}", file.display()));
}

/// A file of these bytes in a folder of its own.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("libmod_x.so");
    fs::write(&file, bytes).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    (folder, file)
}

const NO_MODULE: &str = "not a balancer module: it exports neither the root of a Rust module \
                         (lb_api::export_balancer!) nor the symbol lb_module of a C module";
const NO_TABLE: &str = "symbol lb_module does not point to a table of calls; \
                        define it as `LB_EXPORT const struct lb_module *const lb_module = &table;`";

// ---- the file ------------------------------------------------------------------------------------------------------

#[test]
fn refuses_a_file_that_is_not_there() {
    refused(Path::new("/nowhere/libmod_x.so"), "not found");
}

#[test]
fn names_every_place_where_it_looked_for_a_relative_file() {
    let request =
        ModuleFile { search: [PathBuf::from("/a"), "/b".into()].into(), ..line("x", "modules/mod_x.so") };
    assert_eq!(
        open(&request).unwrap_err().to_string(),
        "site.toml:7: module \"x\": modules/mod_x.so: not found; looked for /a/modules/mod_x.so, \
         /a/mod_x.so, /a/libmod_x.so, /b/modules/mod_x.so, /b/mod_x.so and /b/libmod_x.so"
    );
}

#[test]
fn refuses_folders_and_pipes() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), "not found");
    let inspected = inspect(folder.path()).unwrap_err().to_string();
    assert_eq!(inspected, format!("{}: not a regular file", folder.path().display()));
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    refused(&pipe, "not a regular file");
}

#[test]
fn refuses_what_is_no_library() {
    let (_folder, text) = file(b"/* GNU ld script */");
    refused(&text, &format!("not an ELF file, expected a shared library for {}", std::env::consts::ARCH));
}

#[test]
fn refuses_a_library_for_another_machine() {
    let mut bytes = fs::read(broken("no-root")).unwrap();
    let (machine, name) = if cfg!(target_arch = "aarch64") { (62u16, "x86_64") } else { (183, "aarch64") };
    bytes[18..20].copy_from_slice(&machine.to_ne_bytes());
    let (_folder, foreign) = file(&bytes);
    let ours = std::env::consts::ARCH;
    refused(&foreign, &format!("is for {name}, this machine is {ours}; build it for this machine"));
}

#[test]
fn refuses_a_library_that_was_cut_short() {
    let bytes = fs::read(broken("no-root")).unwrap();
    let (_folder, short) = file(&bytes[..5000]);
    let error = load("x", &short).unwrap_err().to_string();
    assert!(error.contains("libmod_x.so: is cut short: 5000 bytes of at least "), "{error}");
    assert!(error.ends_with("; copy it again"), "{error}");
}

#[test]
fn refuses_a_library_that_lacks_a_function() {
    refused(
        &broken("lacks-a-function"),
        "cannot be linked: undefined symbol: this_is_defined_nowhere; `ldd -r FILE` lists what is missing",
    );
}

#[test]
fn refuses_another_hash_than_the_pinned_one() {
    let library = broken("no-root");
    let found = sha256(&library);
    let request = ModuleFile { sha256: Some([0xab; 32]), ..line("x", &library) };
    assert_eq!(
        open(&request).unwrap_err().to_string(),
        format!(
            "site.toml:7: module \"x\": {}: sha256 is {found}, the configuration pins {}",
            library.display(),
            "ab".repeat(32)
        )
    );
}

#[test]
fn refuses_as_root_what_others_can_write() {
    if !rustix::process::geteuid().is_root() {
        return; // Only root is held to it; the rules themselves are tested for everybody in `owner.rs`.
    }
    let (folder, library) = file(&fs::read(broken("exhausts-early")).unwrap());
    let advice = "modules run by root must be for root alone to change";
    fs::set_permissions(&library, fs::Permissions::from_mode(0o666)).unwrap();
    refused(&library, &format!("is writable by others (mode 0666); {advice}"));
    fs::set_permissions(&library, fs::Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let folder = folder.path().display();
    refused(&library, &format!("is in folder {folder}, which is writable by others (mode 0777); {advice}"));
}

// ---- the envelope of Rust modules ----------------------------------------------------------------------------------

#[test]
fn refuses_a_library_without_a_module() {
    refused(&broken("no-root"), NO_MODULE);
}

#[test]
fn refuses_a_rust_module_of_another_abi() {
    refused(&broken("wrong-abi"), "built for ABI 2.0, this host provides 1.0; rebuild it");
}

#[test]
fn refuses_a_rust_module_with_another_root() {
    refused(
        &broken("other-root"),
        "its calls differ from this host's: its root differs (Package); rebuild it",
    );
}

#[test]
fn refuses_a_rust_module_whose_structs_differ_and_names_the_field() {
    refused(
        &broken("other-layout"),
        "built for ABI 1.0, but wire field Endpoint.size is 4 bytes at offset 4, here 4 bytes at offset 0; rebuild it",
    );
}

#[test]
fn refuses_a_rust_module_that_hides_its_layout() {
    refused(
        &broken("hides-layout"),
        "built without the layout of its root; export it with lb_api::export_balancer!",
    );
}

#[test]
fn refuses_a_rust_module_of_another_abi_stable() {
    refused(&broken("other-abi-stable"), "built with abi_stable 0.12, this host has 0.11; rebuild it");
}

#[test]
fn refuses_a_rust_module_that_panics_before_it_says_a_word() {
    refused(&broken("panics-in-root"), "its root could not be made: it panicked");
}

// ---- the table of C modules ----------------------------------------------------------------------------------------

#[test]
fn refuses_a_c_module_of_another_abi() {
    refused(&broken("other-major"), "built for ABI 2.0, this host provides 1.0; rebuild it");
    refused(&broken("newer-minor"), "built for ABI 1.1, this host provides 1.0; rebuild it");
}

#[test]
fn refuses_a_symbol_that_leads_to_no_table() {
    refused(&broken("null-table"), NO_TABLE);
    refused(&broken("table-itself"), NO_TABLE);
}

#[test]
fn refuses_a_table_that_is_too_short() {
    refused(
        &broken("short-table"),
        "its table of calls has 64 bytes, expected at least 104; set its `size` to sizeof(struct lb_module)",
    );
}

#[test]
fn refuses_a_table_without_a_call_that_every_module_must_have() {
    refused(&broken("null-call"), "required call next is null; define it");
    refused(&broken("null-info"), "required call info is null; define it");
}

#[test]
fn refuses_a_module_that_says_nothing_of_itself() {
    refused(&broken("info-refuses"), "info returned status 1");
    refused(&broken("info-panics"), "panicked in info");
}

#[test]
fn refuses_a_module_that_was_put_together_from_two_abis() {
    refused(&broken("info-of-another-abi"), "its table has ABI 1.0, its info 1.3; rebuild the whole module");
}

#[test]
fn refuses_an_id_that_is_none() {
    refused(&broken("odd-id"), "its ID \"Round-Robin\" is not snake_case");
}

#[test]
fn refuses_text_that_is_none() {
    refused(&broken("odd-text"), "its version is not UTF-8: \"1.0 \u{fffd}\"");
    for text in ["text-nowhere", "text-without-end"] {
        refused(&broken(text), "its version is not a readable text of at most 512 bytes");
    }
}

#[test]
fn refuses_a_trylist_that_no_host_can_place() {
    refused(&broken("odd-alignment"), "its trylist has alignment 24, expected a power of two up to 16");
    refused(
        &broken("huge-trylist"),
        "its trylist has 1048576 bytes, expected at most 65536; keep the rest on the heap",
    );
}

// ---- building ------------------------------------------------------------------------------------------------------

/// The error of a broken module in a cluster `api` with this setting in line 9.
fn build(id: &str, setting: Option<(&str, i64)>) -> Result<Balancer, Vec<String>> {
    build_from(&broken(&id.replace('_', "-")), id, setting)
}

fn build_from(file: &Path, id: &str, setting: Option<(&str, i64)>) -> Result<Balancer, Vec<String>> {
    let module = load(id, file).unwrap();
    build_of(&module, None, setting.map(|(path, value)| (path, SettingValue::Integer(value))))
}

fn build_of(
    module: &Arc<Module>,
    cluster_idx: Option<usize>,
    setting: Option<(&str, SettingValue)>,
) -> Result<Balancer, Vec<String>> {
    let setting = setting.map(|(path, value)| Setting {
        path: path.into(),
        value,
        place: Place { file: "site.toml".into(), line: 9 },
    });
    let endpoint = EndpointInput {
        id: 1,
        url: "http://127.0.0.1:9001",
        name: "127.0.0.1",
        port: 9001,
        address: Some([127, 0, 0, 1].into()),
        weight: 1,
        metadata: &[],
        counters: &COUNTERS,
    };
    let input = BuildInput {
        endpoints: &[endpoint],
        state: &STATE,
        settings: setting.as_slice(),
        previous: None,
        saved: None,
    };
    Balancer::build(&ModuleScope::new(module, "api", cluster_idx, 0), input)
        .map_err(|error| error.lines().collect())
}

static COUNTERS: wire::Counters = wire::Counters {
    size: size_of::<wire::Counters>() as u32,
    state: AtomicU32::new(wire::STATE_AVAILABLE),
    effective_weight: AtomicU32::new(1 << 16),
    in_flight: AtomicU32::new(0),
    in_flight_older: AtomicU32::new(0),
    max_in_flight: AtomicU32::new(0),
    latency_ns: AtomicU64::new(0),
};

static STATE: wire::ClusterState = wire::ClusterState {
    size: size_of::<wire::ClusterState>() as u32,
    n_available: AtomicU32::new(1),
    epoch: AtomicU64::new(0),
};

#[test]
fn every_reason_against_the_settings_is_a_line_with_their_place() {
    assert_eq!(
        build("refuses_settings", Some(("choices", 3))).unwrap_err(),
        [
            r#"site.toml:9: cluster "api": module "refuses_settings": settings.choices: 3 is not what it wants"#,
            r#"cluster "api": module "refuses_settings": nothing is"#,
        ]
    );
}

#[test]
fn a_missing_setting_is_named() {
    assert_eq!(
        build("refuses_settings", None).unwrap_err(),
        [r#"cluster "api": module "refuses_settings": settings.choices: is missing"#]
    );
}

#[test]
fn a_setting_that_the_module_does_not_have_is_refused() {
    assert_eq!(
        build("always_busy", Some(("choices", 3))).unwrap_err(),
        [
            r#"site.toml:9: cluster "api": module "always_busy": settings.choices: unknown setting, this module has none"#
        ]
    );
}

#[test]
fn a_panic_in_build_is_a_refusal_that_names_its_place() {
    let lines = build("panics_in_build", None).unwrap_err();
    let [line] = &*lines else { panic!("{lines:?}") };
    let start = r#"cluster "api": module "panics_in_build": build panicked at "#;
    assert!(line.starts_with(start) && line.ends_with("src/lib.rs:14: cannot be built"), "{line}");
}

#[test]
fn modules_that_fail_only_later_load_and_build() {
    let faults = [
        "panics_in_next",
        "panics_in_load_balance",
        "answers_out_of_range",
        "answers_tried_again",
        "always_busy",
        "exhausts_early",
        "segfaults",
        "aborts",
        "never_returns",
        "misbehaves",
        "waits",
        "answers_unknown_kind",
        "odd_status",
    ];
    for id in faults {
        build(id, None).unwrap();
    }
}

// ---- what is loaded ------------------------------------------------------------------------------------------------

#[test]
fn refuses_a_module_under_another_id() {
    refused(&broken("exhausts-early"), "is module \"exhausts_early\"; load it by that ID");
}

#[test]
fn tells_what_a_module_is() {
    let file = broken("exhausts-early");
    let module = inspect(&file).unwrap();
    assert_eq!((module.id(), module.version(), module.abi()), ("exhausts_early", "1.0.0", (1, 0)));
    assert_eq!(module.summary(), "gives up after one endpoint");
    assert_eq!((module.language(), module.file()), (Language::Rust, &*file));
    assert_eq!(module.trylist(), TrylistLayout { size: 16, align: 8 });
    assert_eq!(module.supports(), Supports { observe: true, save: true, explain: true });
    assert_eq!(hex(module.sha256()), sha256(&file));
}

#[test]
fn a_module_in_c_is_loaded_by_the_same_line() {
    let file = c_module();
    let balancer = build_from(&file, "c_example", Some(("first", 0))).unwrap();
    assert_eq!(balancer.module().language(), Language::C);
    assert_eq!(
        build_from(&file, "c_example", Some(("first", 1))).unwrap_err(),
        [
            r#"site.toml:9: cluster "api": module "c_example": settings.first: expected the index of an endpoint, from 0"#
        ]
    );
}

#[test]
fn tells_what_a_c_module_is() {
    let module = inspect(&broken("odd-status")).unwrap();
    assert_eq!((module.id(), module.version(), module.abi()), ("odd_status", "1.0.0", (1, 0)));
    assert_eq!((module.language(), module.trylist()), (Language::C, TrylistLayout { size: 0, align: 1 }));
    assert_eq!(module.supports(), Supports { observe: false, save: false, explain: false });
}

#[test]
fn inspecting_names_the_file_and_the_reason() {
    let file = broken("no-root");
    assert_eq!(inspect(&file).unwrap_err().to_string(), format!("{}: {NO_MODULE}", file.display()));
}

#[test]
fn takes_the_pinned_hash() {
    let file = broken("exhausts-early");
    let mut pinned = [0; 32];
    pinned.copy_from_slice(&sha2::Sha256::digest(fs::read(&file).unwrap()));
    open(&ModuleFile { sha256: Some(pinned), ..line("exhausts_early", &file) }).unwrap();
}

#[test]
fn finds_a_relative_file_as_written_then_by_name_then_with_lib() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.path().join("modules")).unwrap();
    let request = ModuleFile {
        search: [PathBuf::from("/nowhere"), folder.path().to_owned()].into(),
        ..line("exhausts_early", "modules/mod_exhausts_early.so")
    };
    for name in ["libmod_exhausts_early.so", "mod_exhausts_early.so", "modules/mod_exhausts_early.so"] {
        fs::copy(broken("exhausts-early"), folder.path().join(name)).unwrap();
        assert_eq!(open(&request).unwrap().file(), folder.path().join(name));
    }
}

#[test]
fn several_modules_of_one_root_type_are_loaded_side_by_side() {
    let files =
        ["exhausts_early", "always_busy", "panics_in_next"].map(|id| line(id, broken(&id.replace('_', "-"))));
    let registry = Registry::load(&files).unwrap();
    let ids: Vec<_> = registry.iter().map(|module| module.id().to_owned()).collect();
    assert_eq!(ids, ["always_busy", "exhausts_early", "panics_in_next"]);
    assert_eq!(registry.module("always_busy").unwrap().summary(), "says that all endpoints are full");
    assert!(registry.module("other").is_none());
}

#[test]
fn a_module_that_does_not_return_is_seen_where_it_is_from_outside_of_the_process() {
    let board = Board::create(1).unwrap();
    let worker = Board::open(board.fd().try_clone_to_owned().unwrap()).unwrap();
    let worker: &'static Board = Box::leak(Box::new(worker));
    let registry = Registry::load(&["waits", "misbehaves"].map(|id| line(id, broken(id)))).unwrap();
    let module = Arc::clone(registry.module("misbehaves").unwrap());
    // Ends with the process.
    std::thread::spawn(move || {
        take_place(worker, 0);
        build_of(&module, Some(3), Some(("build", SettingValue::String("block".into()))))
    });
    let crumb =
        tests::eventually("a thread is inside a module", || board.look().first().and_then(|seen| seen.crumb));
    assert_eq!(crumb, Crumb { kind: CallKind::Long, module: 1, cluster: Some(3), in_host: false });
}

#[test]
fn all_refusals_are_told_in_one_run() {
    let files =
        [line("a", "/nowhere/a.so"), line("always_busy", broken("always-busy")), line("b", "/nowhere/b.so")];
    let refused = Registry::load(&files).unwrap_err();
    let files: Vec<_> = refused.iter().map(|error| error.file.clone()).collect();
    assert_eq!(files, [PathBuf::from("/nowhere/a.so"), "/nowhere/b.so".into()]);
}

#[test]
fn what_was_loaded_runs_on_when_its_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("m.so");
    // Bytes that no other test loads: what stands behind a library's own means nothing to the linker.
    let mut bytes = fs::read(broken("always-busy")).unwrap();
    bytes.extend_from_slice(b"what was loaded runs on");
    fs::write(&file, &bytes).unwrap();
    let before = load("always_busy", &file).unwrap();
    // In place, as `cp` does: with the file itself mapped, this would be the end of the process.
    fs::write(&file, fs::read(broken("exhausts-early")).unwrap()).unwrap();
    assert_eq!(before.summary(), "says that all endpoints are full");
    let after = load("exhausts_early", &file).unwrap();
    assert_eq!(after.summary(), "gives up after one endpoint");
    build("always_busy", None).unwrap();
}

fn sha256(file: &Path) -> String {
    hex(&sha2::Sha256::digest(fs::read(file).unwrap()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
