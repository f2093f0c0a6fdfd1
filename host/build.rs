//! Names the commit that the program is built from, for `trylist -V`.

use std::process::Command;

fn main() {
    // A build without a repository names it by this variable. Not for every commit: that would build everything anew each time.
    println!("cargo:rerun-if-env-changed=TRYLIST_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    let given = std::env::var("TRYLIST_COMMIT").ok().filter(|commit| !commit.is_empty());
    let asked = || {
        let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
        let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !commit.is_empty()).then_some(commit)
    };
    let commit = given.or_else(asked).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=TRYLIST_COMMIT={commit}");
}
