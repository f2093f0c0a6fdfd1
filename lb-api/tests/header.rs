//! `include/lb_module.h` says what `wire.rs` says: compiled as C and as C++, and compared size by size, offset by offset
//! and constant by constant.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use lb_api::version::{ABI_MAJOR, ABI_MINOR};
use lb_api::wire::{wire_fields, wire_sizes};

#[test]
fn the_c_header_says_what_the_rust_structs_say() {
    let ours = rust_facts();
    compare(
        &ours,
        &c_facts(&ours, "cc", "c11", "c").expect("a C compiler, named `cc`, is needed for this test"),
    );
}

#[test]
fn the_header_is_cplusplus_too() {
    let ours = rust_facts();
    match c_facts(&ours, "c++", "c++11", "cpp") {
        Some(theirs) => compare(&ours, &theirs),
        None => println!("SKIPPED: no C++ compiler `c++` on this machine"),
    }
}

/// Standards that authors compile by, with the file that they compile.
const STANDARDS: [(&str, &str, &str); 10] = [
    ("cc", "c99", "header.c"),
    ("cc", "c11", "header.c"),
    ("cc", "c17", "header.c"),
    ("cc", "c11", "c_example.c"),
    ("cc", "c17", "c_example.c"),
    ("c++", "c++11", "header.cpp"),
    ("c++", "c++11", "cpp_example.cpp"),
    ("c++", "c++14", "cpp_example.cpp"),
    ("c++", "c++17", "cpp_example.cpp"),
    ("c++", "c++20", "cpp_example.cpp"),
];

#[test]
fn header_and_models_compile_without_a_warning_by_every_standard() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standards");
    std::fs::create_dir_all(&dir).unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/c-example");
    for name in ["header.c", "header.cpp"] {
        // A file must declare something of its own.
        std::fs::write(dir.join(name), "#include \"lb_module.h\"\n\nint nothing;\n").unwrap();
    }
    for (compiler, standard, file) in STANDARDS {
        let source = if file.starts_with("header") { dir.join(file) } else { models.join(file) };
        let compiled = Command::new(compiler)
            .arg(format!("-std={standard}"))
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/include"))
            .arg(source)
            .output();
        match compiled {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{file} by {standard}: {said}");
            }
            Err(_) => println!("SKIPPED: no compiler `{compiler}` on this machine for {file} by {standard}"),
        }
    }
}

fn compare(ours: &BTreeMap<String, u64>, theirs: &BTreeMap<String, u64>) {
    let differences: Vec<_> = ours
        .iter()
        .filter(|(fact, value)| theirs.get(*fact) != Some(value))
        .map(|(fact, value)| format!("{fact}: {value} in Rust, {:?} in C", theirs.get(fact)))
        .collect();
    assert!(differences.is_empty(), "{differences:#?}");
    // The header has nothing that Rust does not: its own names, counted.
    let header = header();
    let constants =
        header.lines().filter(|line| line.starts_with("#define LB_") && line.split(' ').count() == 3);
    let constants = constants.filter(|line| !line.contains("LB_EXPORT")).count();
    assert_eq!(constants, ours.keys().filter(|fact| fact.starts_with("LB_")).count());
    let structs = header.lines().filter(|line| line.starts_with("struct lb_") && line.ends_with('{')).count();
    assert_eq!(structs, wire_sizes().len());
}

/// Expressions in C, and what they must come to.
fn rust_facts() -> BTreeMap<String, u64> {
    let sizes =
        wire_sizes().iter().map(|(owner, size)| (format!("sizeof(struct {})", c_name(owner)), *size as u64));
    let fields = wire_fields().iter().flat_map(|field| {
        let (owner, name) = (c_name(&field.owner), &field.name);
        [
            (format!("offsetof(struct {owner}, {name})"), u64::from(field.offset)),
            (format!("sizeof(((struct {owner} *)0)->{name})"), u64::from(field.size)),
        ]
    });
    sizes.chain(fields).chain(constants()).collect()
}

/// The constants of `wire.rs`, from its text, so that none can be forgotten here.
fn constants() -> impl Iterator<Item = (String, u64)> {
    let lines = include_str!("../src/wire.rs").lines().filter_map(|line| line.strip_prefix("pub const "));
    let wire = lines.map(|line| {
        let (name, rest) = line.split_once(": ").expect("a type follows");
        let value = rest.split_once(" = ").expect("a value follows").1.trim_end_matches(';');
        let value = if value == "u32::MAX" { u64::from(u32::MAX) } else { value.parse().expect(value) };
        (format!("LB_{name}"), value)
    });
    wire.chain([("LB_ABI_MAJOR".into(), ABI_MAJOR.into()), ("LB_ABI_MINOR".into(), ABI_MINOR.into())])
}

/// `BuildCx` is `lb_build_cx`.
fn c_name(owner: &str) -> String {
    owner.chars().fold(String::from("lb"), |mut name, c| {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
        name
    })
}

/// Compiles a program that prints each fact; `None` without such a compiler.
fn c_facts(
    facts: &BTreeMap<String, u64>,
    compiler: &str,
    standard: &str,
    extension: &str,
) -> Option<BTreeMap<String, u64>> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("header-{extension}"));
    std::fs::create_dir_all(&dir).unwrap();
    let (source, program) = (dir.join(format!("facts.{extension}")), dir.join("facts"));
    let mut text = String::from("#include \"lb_module.h\"\n#include <stdio.h>\n\nint main(void)\n{\n");
    for fact in facts.keys() {
        writeln!(text, "    printf(\"%s=%llu\\n\", \"{fact}\", (unsigned long long)({fact}));").unwrap();
    }
    text.push_str("    return 0;\n}\n");
    std::fs::write(&source, text).unwrap();
    let compiled = Command::new(compiler)
        .arg(format!("-std={standard}"))
        .args([
            "-Wall",
            "-Wextra",
            "-pedantic",
            "-Werror",
            "-I",
            concat!(env!("CARGO_MANIFEST_DIR"), "/include"),
        ])
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .output()
        .ok()?;
    assert!(compiled.status.success(), "{compiler}: {}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&program).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    Some(
        printed
            .lines()
            .map(|line| line.rsplit_once('=').unwrap())
            .map(|(fact, value)| (fact.to_owned(), value.parse().unwrap()))
            .collect(),
    )
}

fn header() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/include/lb_module.h")).unwrap()
}
