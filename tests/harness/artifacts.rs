//! The `.so` files that tests load, built once and by their own Cargo.
//!
//! `cargo test` leaves no `cdylib` in place for itself (rust-lang/cargo issue 8311), and modules of strangers are
//! workspaces of their own anyway. So the first test that asks for one has Cargo build them into a target folder apart,
//! and reads from its messages where they are. Test processes that ask at the same time wait for each other at Cargo's
//! own lock; where nothing has changed, asking costs a fraction of a second.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The library of one of this workspace's modules, by module ID.
pub fn module(id: &str) -> PathBuf {
    static BUILT: OnceLock<Libraries> = OnceLock::new();
    BUILT.get_or_init(|| modules("dev")).path(&id.replace('_', "-"))
}

/// The IDs of this workspace's modules in Rust.
pub fn module_ids() -> Vec<String> {
    module_folders().map(|folder| folder.replace('-', "_")).collect()
}

/// All of this workspace's modules, module ID and library, optimised as for users: for benchmarks.
pub fn release_modules() -> Vec<(String, PathBuf)> {
    let id = |folder: &String| folder.replace('-', "_");
    modules("release").paths.iter().map(|(folder, path)| (id(folder), path.clone())).collect()
}

/// A module that is wrong on purpose, by its folder in `tests/broken`, or by its C file in `tests/broken/c`.
pub fn broken(fault: &str) -> PathBuf {
    static BUILT: OnceLock<Libraries> = OnceLock::new();
    let source = root().join(format!("tests/broken/c/{fault}.c"));
    if source.exists() {
        return compile(&source);
    }
    BUILT.get_or_init(|| cargo(&root().join("tests/broken"), "dev", &[])).path(fault)
}

/// The module `tests/broken/c/fault.c`, compiled with these macros: `ID="other"`, `CONSTRUCTOR=segv`.
pub fn fault(macros: &[&str]) -> PathBuf {
    let defines: Vec<String> = macros.iter().map(|name| format!("-D{name}")).collect();
    let name = std::iter::once("fault").chain(macros.iter().copied()).collect::<Vec<_>>().join("-");
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    compile_with(&root().join("lb-api/include"), &root().join("tests/broken/c/fault.c"), &name, &defines)
}

/// The module of a stranger, who knows `lb-api` and nothing else.
pub fn third_party() -> PathBuf {
    static BUILT: OnceLock<Libraries> = OnceLock::new();
    BUILT.get_or_init(|| cargo(&root().join("tests/third-party"), "dev", &[])).only()
}

/// The module written in C, as the line at its top builds it.
pub fn c_module() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile(&root().join("modules/c-example/c_example.c"))).clone()
}

/// The module written in C++, as the line at its top builds it; none where there is no compiler.
pub fn cpp_module() -> Option<PathBuf> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Command::new("c++").arg("--version").stdout(Stdio::null()).status().ok()?;
    let source = root().join("modules/c-example/cpp_example.cpp");
    let build =
        || compile_by(["c++", "-std=c++17"], &root().join("lb-api/include"), &source, ("cpp_example", &[]));
    Some(BUILT.get_or_init(build).clone())
}

/// The module in C of the first release of the ABI, compiled with that release's header.
pub fn first_release_c() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = root().join("tests/abi-1.0/c");
    BUILT
        .get_or_init(|| compile_with(&folder, &folder.join("first_release_c.c"), "first_release_c", &[]))
        .clone()
}

/// The Rust module of the first release of the ABI, built with that release's side of it.
pub fn first_release() -> PathBuf {
    static BUILT: OnceLock<Libraries> = OnceLock::new();
    BUILT.get_or_init(|| cargo(&root().join("tests/abi-1.0/rust"), "dev", &[])).only()
}

/// The program itself, with this workspace's modules beside it, as `cargo build` leaves them.
pub fn binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let messages = cargo_build(root(), "dev", &[], &workspace_target());
        let executable = |line: &str| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(message["executable"].as_str()?.into())
        };
        messages.lines().find_map(executable).expect("the workspace has a program")
    };
    BUILT.get_or_init(build).clone()
}

/// The libraries of one workspace, by the folder of their crate.
struct Libraries {
    workspace: PathBuf,
    paths: BTreeMap<String, PathBuf>,
}

impl Libraries {
    fn path(&self, folder: &str) -> PathBuf {
        let known = || self.paths.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let path = self.paths.get(folder);
        path.unwrap_or_else(|| {
            panic!("no library in folder {folder:?} of {}, only in {}", self.workspace.display(), known())
        })
        .clone()
    }

    fn only(&self) -> PathBuf {
        assert_eq!(self.paths.len(), 1, "libraries of {}: {:?}", self.workspace.display(), self.paths);
        self.paths.values().next().expect("there is one").clone()
    }
}

/// Builds `modules/*`.
fn modules(profile: &str) -> Libraries {
    let packages = module_folders().map(|folder| format!("--package=mod-{folder}"));
    cargo(root(), profile, &packages.collect::<Vec<_>>())
}

/// The folders below `modules` that are crates.
fn module_folders() -> impl Iterator<Item = String> {
    let folders = fs::read_dir(root().join("modules")).expect("the workspace has modules");
    folders
        .map(|folder| folder.expect("a readable folder"))
        .filter(|folder| folder.path().join("Cargo.toml").exists())
        .map(|folder| folder.file_name().into_string().expect("a crate's name"))
}

fn cargo(workspace: &Path, profile: &str, packages: &[String]) -> Libraries {
    let messages = cargo_build(workspace, profile, packages, &target());
    let paths = messages.lines().filter_map(library).collect();
    Libraries { workspace: workspace.to_owned(), paths }
}

/// Runs these lines in a folder of the test's own as a person at a shell does who has `trylist` installed. They end where
/// one fails. What Cargo needs is on this machine, because this test was built, and what it builds goes where other modules
/// are built, though it looks as if it were in the folder.
pub fn shell_in(folder: &Path, lines: &str) {
    symlink(target(), folder.join("target")).expect("a new folder has no target");
    let binary = binary();
    let beside = binary.parent().expect("it is in a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths([beside].into_iter().chain(std::env::split_paths(&path))).expect("a path");
    let mut shell = command_in("sh".into(), folder);
    shell.args(["-ec", lines]).env("PATH", path).env("CARGO_NET_OFFLINE", "true").stdout(Stdio::null());
    let status = shell.status().expect("sh can be started");
    assert!(status.success(), "{lines}");
}

fn cargo_command(folder: &Path) -> Command {
    command_in(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), folder)
}

fn command_in(program: OsString, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).stdin(Stdio::null()).stderr(Stdio::inherit());
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_outer_cargo(name)) {
        command.env_remove(name);
    }
    command
}

/// Builds, and returns Cargo's messages, one a line.
fn cargo_build(workspace: &Path, profile: &str, packages: &[String], target: &Path) -> String {
    let mut command = cargo_command(workspace);
    command
        .arg("build")
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .args(["--profile", profile])
        .args(packages)
        .arg("--target-dir")
        .arg(target);
    let output = command.output().expect("cargo can be started");
    assert!(output.status.success(), "cargo could not build {}", workspace.display());
    String::from_utf8(output.stdout).expect("cargo writes UTF-8")
}

/// Variables of the Cargo that runs this test are not meant for another build. Those for its folders and
/// its registry are.
fn is_of_outer_cargo(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    let for_all = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_TERM_"];
    name.starts_with("CARGO") && !for_all.iter().any(|prefix| name.starts_with(prefix))
}

/// The folder of the crate and the library that it became, if this message of Cargo tells of one.
fn library(message: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let is_library = message["target"]["crate_types"].as_array()?.iter().any(|kind| kind == "cdylib");
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let mut files = message["filenames"].as_array()?.iter().filter_map(|file| file.as_str());
    let file = files.find(|file| is_library && file.ends_with(".so"))?;
    Some((manifest.parent()?.file_name()?.to_str()?.to_owned(), file.into()))
}

/// Compiles a C module as its author would, with the header of `lb-api` and nothing else.
fn compile(source: &Path) -> PathBuf {
    let name = source.file_stem().expect("a file").to_str().expect("a plain name");
    compile_with(&root().join("lb-api/include"), source, name, &[])
}

fn compile_with(headers: &Path, source: &Path, name: &str, defines: &[String]) -> PathBuf {
    compile_by(["cc", "-std=c11"], headers, source, (name, defines))
}

fn compile_by(
    [compiler, standard]: [&str; 2],
    headers: &Path,
    source: &Path,
    (name, defines): (&str, &[String]),
) -> PathBuf {
    let folder = target().join("c");
    fs::create_dir_all(&folder).expect("the target folder can be written");
    let library = folder.join(format!("{name}.so"));
    // Into a file of its own first: another test may be loading the last one just now.
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let fresh = library.with_extension(format!("{}-{n}.so", std::process::id()));
    let status = Command::new(compiler)
        .args([standard, "-g", "-Wall", "-Wextra", "-O1", "-fvisibility=hidden", "-shared", "-fPIC"])
        .args(defines)
        .arg("-I")
        .arg(headers)
        .arg("-o")
        .args([fresh.as_path(), source])
        .status()
        .unwrap_or_else(|e| panic!("{compiler} is needed, as it is to link Rust programs: {e}"));
    assert!(status.success(), "{compiler} could not compile {}", source.display());
    fs::rename(&fresh, &library).expect("the target folder can be written");
    library
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around this crate")
}

/// One target folder for all of them, so that what they share is compiled once.
fn target() -> PathBuf {
    workspace_target().join("test-modules")
}

fn workspace_target() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    std::path::absolute(target).expect("the current folder exists")
}
