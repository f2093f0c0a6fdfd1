//! Every refusal of the loader, with a file that is really broken in that way, and the exact line that it gives.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tests::artifacts::{broken, module};
use trylist::config::{ModuleFile, Place};
use trylist::module::load::{LoadError, inspect, open};
use trylist::module::registry::Registry;
use trylist::module::{Language, Module};

/// A configuration's line 7 that loads `id` from `file`.
fn line(id: &str, file: impl Into<PathBuf>) -> ModuleFile {
    ModuleFile {
        id: id.into(),
        file: file.into(),
        search: Arc::default(),
        sha256: None,
        place: Place { file: "site.toml".into(), line: 7 },
    }
}

fn load(id: &str, file: &Path) -> Result<Arc<Module>, LoadError> {
    open(&line(id, file))
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

const NO_MODULE: &str = "is no balancer module: it exports neither the root of a Rust module \
                         (lb_api::export_balancer!) nor the symbol lb_module of a C module";
const NO_TABLE: &str = "its symbol lb_module does not point to a table of calls; \
                        define it as `const struct lb_module *const lb_module = &table;`";

// ---- the file ------------------------------------------------------------------------------------------------------

#[test]
fn refuses_a_file_that_is_not_there() {
    refused(Path::new("/nowhere/libmod_x.so"), "cannot be read: No such file or directory (os error 2)");
}

#[test]
fn names_every_place_where_it_looked_for_a_relative_file() {
    let request =
        ModuleFile { search: [PathBuf::from("/a"), "/b".into()].into(), ..line("x", "modules/mod_x.so") };
    assert_eq!(
        open(&request).unwrap_err().to_string(),
        "site.toml:7: module \"x\": modules/mod_x.so: not found, looked for /a/modules/mod_x.so, \
         /b/modules/mod_x.so, /a/mod_x.so, /b/mod_x.so, /a/libmod_x.so and /b/libmod_x.so"
    );
}

#[test]
fn refuses_folders_and_pipes() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), "is no regular file");
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    refused(&pipe, "is no regular file");
}

#[test]
fn refuses_what_is_no_library() {
    let (_folder, text) = file(b"/* GNU ld script */");
    refused(&text, &format!("is no ELF file, expected a shared library for {}", std::env::consts::ARCH));
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
    refused(&broken("lacks-a-function"), "cannot be linked: undefined symbol: this_is_defined_nowhere");
}

#[test]
fn refuses_another_hash_than_the_pinned_one() {
    let library = broken("no-root");
    let found = sha256(&library);
    let request = ModuleFile { sha256: Some([0xab; 32]), ..line("x", &library) };
    assert_eq!(
        open(&request).unwrap_err().to_string(),
        format!(
            "site.toml:7: module \"x\": {}: has sha256 {found}, the configuration wants {}",
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
    let (folder, library) = file(&fs::read(module("round_robin")).unwrap());
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
        "its calls are not this host's: its root has 1 calls and fields of the first release, here 14; rebuild it",
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

fn sha256(file: &Path) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(fs::read(file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}
