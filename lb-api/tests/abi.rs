//! A release of the ABI is for ever: `abi-1.N.txt` is what minor N had, and today's structs and constants must still have
//! all of it at its place. Additions may only stand behind it, and need a minor number and a file of their own.
#![cfg(target_pointer_width = "64")]
#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use abi_stable::std_types::RStr;
use lb_api::version::{ABI_MAJOR, ABI_MINOR};
use lb_api::wire::{FieldLayout, compare, wire_fields, wire_sizes};

#[test]
fn every_release_is_still_what_it_was() {
    let today = today();
    let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("abi-{ABI_MAJOR}.{ABI_MINOR}.txt"));
    std::fs::write(&written, &today).unwrap();
    let mut wrong = Vec::new();
    for minor in 0..=ABI_MINOR {
        let file = file(minor);
        match std::fs::read_to_string(&file) {
            Ok(released) => wrong.extend(differences(&released, &today, minor, ABI_MINOR)),
            Err(error) => wrong.push(format!("{}: {error}", file.display())),
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\n\nWhat is released stays as it is. A new minor has a file of its own, as it stands in {}.",
        wrong.join("\n"),
        written.display()
    );
}

#[test]
fn every_release_has_a_line_in_the_history() {
    for minor in 0..=ABI_MINOR {
        let row = format!("//! | {ABI_MAJOR}.{minor} | ");
        let rows = include_str!("../src/version.rs").lines().filter(|line| line.starts_with(&row)).count();
        // The others state what held before.
        assert!(rows >= 1, "{row}");
    }
}

fn file(minor: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/abi-{ABI_MAJOR}.{minor}.txt"))
}

// ---- a release as text ---------------------------------------------------------------------------------------------

/// Today's ABI as a file of a release has it.
fn today() -> String {
    let mut text = format!(
        "# ABI {ABI_MAJOR}.{ABI_MINOR} on 64-bit machines, written and compared by tests/abi.rs. Once released, never changed.\n\
         #\n\
         # const NAME TYPE VALUE\n\
         # struct NAME SIZE, and its fields: NAME OFFSET SIZE TYPE\n\n"
    );
    let constants = include_str!("../src/wire.rs").lines().filter_map(|line| line.strip_prefix("pub const "));
    for line in constants {
        let (name, rest) = line.split_once(": ").expect("a type follows");
        let (type_name, value) = rest.trim_end_matches(';').split_once(" = ").expect("a value follows");
        writeln!(text, "const {name} {type_name} {value}").unwrap();
    }
    for (owner, size) in wire_sizes() {
        writeln!(text, "\nstruct {owner} {size}").unwrap();
        for field in wire_fields().iter().filter(|field| field.owner == *owner) {
            // Compilers break long types into lines.
            let type_name = field.type_name.split_whitespace().collect::<Vec<_>>().join(" ");
            writeln!(text, "{} {} {} {type_name}", field.name, field.offset, field.size).unwrap();
        }
    }
    text
}

/// Such a text, read.
#[derive(Default)]
struct Release<'a> {
    /// Type and value by name.
    constants: BTreeMap<&'a str, &'a str>,
    /// Size by name.
    structs: BTreeMap<&'a str, u32>,
    fields: Vec<FieldLayout>,
}

impl<'a> Release<'a> {
    fn read(text: &'a str) -> Self {
        let mut release = Self::default();
        let mut owner = "";
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(constant) = line.strip_prefix("const ") {
                release.constants.extend(constant.split_once(' '));
            } else if let Some(head) = line.strip_prefix("struct ") {
                let (name, size) = head.split_once(' ').expect(line);
                release.structs.insert(name, size.parse().expect(line));
                owner = name;
            } else {
                let mut words = line.splitn(4, ' ');
                let mut word = || words.next().expect(line);
                let (name, offset, size) = (word(), word().parse().expect(line), word().parse().expect(line));
                let (owner, name, type_name) = (leaked(owner), leaked(name), leaked(word()));
                release.fields.push(FieldLayout { owner, name, offset, size, type_name });
            }
        }
        release
    }

    fn has(&self, field: &FieldLayout) -> bool {
        self.fields.iter().any(|ours| (ours.owner, ours.name) == (field.owner, field.name))
    }

    /// Whether a struct can grow at all: those that start with their size can.
    fn grows(&self, owner: &str) -> bool {
        self.fields.iter().find(|field| field.owner == owner).is_some_and(|first| first.name == "size")
    }
}

/// A field's text is static, as a module has it.
fn leaked(text: &str) -> RStr<'static> {
    RStr::from_str(Box::leak(text.into()))
}

// ---- the rules of growth -------------------------------------------------------------------------------------------

/// The differences of `today` from the release of that minor, a line each; `newest` is today's minor.
fn differences(released: &str, today: &str, minor: u32, newest: u32) -> Vec<String> {
    let (released, today) = (Release::read(released), Release::read(today));
    let mut wrong = Vec::new();
    for (name, was) in &released.constants {
        match today.constants.get(name) {
            Some(is) if is == was => {}
            Some(is) => wrong.push(format!("constant {name} is {is}, in {ABI_MAJOR}.{minor} it was {was}")),
            None => wrong.push(format!("constant {name} is gone, in {ABI_MAJOR}.{minor} it was {was}")),
        }
    }
    for field in &released.fields {
        // The release in the module's place, the tree in the host's.
        wrong.extend(compare(&[*field], &today.fields).err().map(|e| format!("{ABI_MAJOR}.{minor}: {e}")));
    }
    for (owner, was) in &released.structs {
        match today.structs.get(owner) {
            Some(is) if is == was || is > was && released.grows(owner) => {}
            Some(is) => {
                wrong.push(format!("struct {owner} is {is} bytes, in {ABI_MAJOR}.{minor} it was {was}"));
            }
            None => wrong.push(format!("struct {owner} is gone")),
        }
    }
    for field in today.fields.iter().filter(|field| !released.has(field)) {
        let place = format!("{}.{}", field.owner, field.name);
        // The older side's size covers its padding too, so that what it never wrote would be read.
        if let Some(end) = released.structs.get(field.owner.as_str()).filter(|end| field.offset < **end) {
            wrong.push(format!(
                "field {place} is new at offset {}, within the {end} bytes of {ABI_MAJOR}.{minor}",
                field.offset
            ));
        }
        if field.owner == "Module" && !field.type_name.starts_with("Option<") {
            wrong.push(format!("call {place} is new and no Option: older modules do not have it"));
        }
    }
    if minor == newest {
        let fields = today.fields.iter().filter(|field| !released.has(field));
        let fields = fields.map(|field| format!("field {}.{}", field.owner, field.name));
        let constants = today.constants.keys().filter(|name| !released.constants.contains_key(*name));
        let new = fields.chain(constants.map(|name| format!("constant {name}")));
        wrong.extend(new.map(|what| format!("{what} is not in {ABI_MAJOR}.{minor}: it needs a new minor")));
    }
    wrong
}

// ---- the rules, tried ----------------------------------------------------------------------------------------------

/// The differences to 1.0 of a tree in which one text of it was replaced, and whose minor is `newest`.
#[track_caller]
fn after(from: &str, to: &str, newest: u32) -> Vec<String> {
    let released = std::fs::read_to_string(file(0)).unwrap();
    let changed = released.replacen(from, to, 1);
    assert!(changed != released, "{from:?} is not there");
    differences(&released, &changed, 0, newest)
}

#[test]
fn what_was_released_may_not_change() {
    let is = |wrong: Vec<String>, lines: &[&str]| assert_eq!(wrong, lines);
    is(
        after("const STATE_DOWN u32 1", "const STATE_DOWN u32 5", 0),
        &["constant STATE_DOWN is u32 5, in 1.0 it was u32 1"],
    );
    is(after("const STATE_DOWN u32 1\n", "", 0), &["constant STATE_DOWN is gone, in 1.0 it was u32 1"]);
    is(
        after("\nn_tries 16 4 u32\n", "\nn_tries 16 4 i32\n", 0),
        &["1.0: wire field Outcome.n_tries is a u32, here a i32"],
    );
    is(
        after("\nn_endpoints 32 8 usize\n", "\nn_endpoints 36 8 usize\n", 0),
        &["1.0: wire field BuildCx.n_endpoints is 8 bytes at offset 32, here 8 bytes at offset 36"],
    );
    is(after("\nn_headers 136 8 usize\n", "\n", 0), &["1.0: wire field Request.n_headers is not known here"]);
    is(after("struct Str 16", "struct Str 24", 0), &["struct Str is 24 bytes, in 1.0 it was 16"]);
    is(after("struct Answer 16", "struct Answer 12", 0), &["struct Answer is 12 bytes, in 1.0 it was 16"]);
}

#[test]
fn what_is_new_stands_at_the_end_and_has_a_minor_of_its_own() {
    let in_front =
        after("struct Answer 16\nsize 0 4 u32\n", "struct Answer 16\nsize 0 4 u32\nwhy 4 4 u32\n", 1);
    assert_eq!(in_front, ["field Answer.why is new at offset 4, within the 16 bytes of 1.0"]);
    let longer = "struct Answer 24\nwhy 16 8 u64\n";
    assert_eq!(after("struct Answer 16\n", longer, 1), [""; 0]);
    assert_eq!(
        after("struct Answer 16\n", longer, 0),
        ["field Answer.why is not in 1.0: it needs a new minor"]
    );
    assert_eq!(after("const NEEDS_KEY", "const NEEDS_MORE u32 2\nconst NEEDS_KEY", 1), [""; 0]);
    assert_eq!(
        after("const NEEDS_KEY", "const NEEDS_MORE u32 2\nconst NEEDS_KEY", 0),
        ["constant NEEDS_MORE is not in 1.0: it needs a new minor"]
    );
    let call =
        after("struct Module 104\n", "struct Module 112\nlater 104 8 unsafe extern \"C\" fn() -> u32\n", 1);
    assert_eq!(call, ["call Module.later is new and no Option: older modules do not have it"]);
}
