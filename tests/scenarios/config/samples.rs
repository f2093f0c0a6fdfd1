//! The files of `conf/`, as they are: each loads, and its balancers build; and systemd understands every line of the unit.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use tests::artifacts;
use tests::command::trylist;

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("conf")
}

#[test]
fn every_sample_is_ready_to_run() {
    let mut n = 0;
    for entry in fs::read_dir(conf()).unwrap() {
        let file = entry.unwrap().path();
        // The unit, descriptions for other programs, and the page about all of them are no configurations.
        if !file.extension().is_some_and(|extension| extension == "toml" || extension == "conf") {
            continue;
        }
        let output = trylist(&["check", "-c", file.to_str().unwrap()]);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {stderr}", file.display());
        assert!(stdout.contains(": ok: "), "{stdout}");
        assert!(!stderr.contains("(warning)"), "{}: {stderr}", file.display());
        n += 1;
    }
    assert!(n > 0);
}

/// systemd ignores lines that it does not know, such as those of a later version. `verify` reports them on its standard error
/// and exits with 0.
#[test]
fn the_unit_is_one_that_systemd_understands() {
    let unit = fs::read_to_string(conf().join("trylist.service")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trylist.service");
    // It has to be executable, and need not be installed.
    let binary = artifacts::binary().display().to_string();
    assert!(unit.contains("\nExecStart=/usr/bin/trylist run "), "{unit}");
    // systemd 252 then watches readiness and reloads.
    for line in ["Type=notify", "ExecReload=/bin/kill -HUP $MAINPID"] {
        assert!(unit.lines().any(|of| of == line), "{line}: {unit}");
    }
    // An `owner` of a Unix listener takes both.
    let capabilities = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let capabilities: Vec<&str> = capabilities.flat_map(str::split_whitespace).collect();
    assert!(
        ["CAP_CHOWN", "CAP_FOWNER"].iter().all(|needed| capabilities.contains(needed)),
        "{capabilities:?}"
    );
    fs::write(&file, unit.replace("/usr/bin/trylist", &binary)).unwrap();
    let output = match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("skipped: systemd-analyze is not installed");
            return;
        }
        output => output.unwrap(),
    };
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
}
