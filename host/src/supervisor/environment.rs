//! The environment of workers.

use std::ffi::OsString;

/// The environment of workers. Code of modules runs there, and the supervisor's own environment may hold secrets. So
/// workers get the names that the system's libraries and this program read, and those that are configured.
pub(super) fn environment(
    all: impl Iterator<Item = (OsString, OsString)>,
    configured: &[Box<str>],
) -> impl Iterator<Item = (OsString, OsString)> {
    let is_passed = |name: &OsString| {
        let name = name.as_encoded_bytes();
        PASSED.iter().any(|passed| passed.as_bytes() == name)
            || PASSED_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning.as_bytes()))
            || configured.iter().any(|passed| passed.as_bytes() == name)
    };
    all.filter(move |(name, _)| is_passed(name))
}

/// - `PATH`, `HOME`, `USER`, `LOGNAME`, `LANG`, `TZ`: as for any program.
/// - `TMPDIR`, `RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR`: where private copies of modules go.
/// - `SSL_CERT_*`: the issuers that the system trusts.
/// - `NO_COLOR`, `TERM`, `RUST_*`: how the log and backtraces look.
/// - `JOURNAL_STREAM`: whether that is journald's.
/// - `LOCALDOMAIN`, `RES_OPTIONS`: how names are looked up.
const PASSED: [&str; 19] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "RUNTIME_DIRECTORY",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NO_COLOR",
    "TERM",
    "RUST_BACKTRACE",
    "RUST_LIB_BACKTRACE",
    "JOURNAL_STREAM",
    "LOCALDOMAIN",
    "RES_OPTIONS",
];
/// `LC_*`, and how the dynamic linker and the allocators work: `LD_*`, `GLIBC_TUNABLES`, `MALLOC_*`, `MIMALLOC_*`; sanitizers
/// and coverage: `ASAN_OPTIONS` and the like, `LLVM_PROFILE_FILE`.
const PASSED_BEGINNINGS: [&str; 10] =
    ["LC_", "LD_", "GLIBC_", "MALLOC_", "MIMALLOC_", "ASAN_", "LSAN_", "TSAN_", "UBSAN_", "LLVM_PROFILE_"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_get_what_they_need_of_the_environment_and_what_is_configured() {
        let all = [
            "TZ",
            "LC_ALL",
            "LD_LIBRARY_PATH",
            "AWS_SECRET_ACCESS_KEY",
            "LISTEN_FDS",
            "NOTIFY_SOCKET",
            "MINE",
            "MINE2",
        ];
        let all = all.map(|name| (name.into(), "value".into()));
        let passed: Vec<_> = environment(all.into_iter(), &["MINE".into()])
            .map(|(name, _)| name.into_string().unwrap())
            .collect();
        assert_eq!(passed, ["TZ", "LC_ALL", "LD_LIBRARY_PATH", "MINE"]);
    }
}
