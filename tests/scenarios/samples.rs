//! The files of `conf/`, as they are: each loads, and its balancers build.

use std::path::Path;

use tests::command::trylist;

#[test]
fn every_sample_is_ready_to_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("conf");
    let mut n = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|extension| extension == "service") {
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
