//! `trylist module new`: writes a folder with a module that works, for its author to change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lb_api::version;

use crate::cli::{Lang, New};
use crate::output::{CommandFailure as Failure, print};

const MANIFEST: &str = include_str!("template/manifest.toml");
const RUST: &str = include_str!("template/lib.rs");
const SAMPLE: &str = include_str!("template/sample.toml");
const HEADER: &str = include_str!("../../../lb-api/include/lb_module.h");
/// The model for authors is what they begin with.
const C: &str = include_str!("../../../modules/c-example/c_example.c");

/// So that every file's name that is made of it is one that file systems take.
const MAX_NAME: usize = 64;

pub(crate) fn run(new: &New) -> Result<(), Failure> {
    check_name(&new.name).map_err(|why| Failure::new(format_args!("module \"{}\": {why}", new.name)))?;
    let folder = new.path.clone().unwrap_or_else(|| new.name.replace('_', "-").into());
    let files = match new.lang {
        Lang::Rust => rust(&new.name, &lb_api(new.lb_api.as_deref())?),
        Lang::C => c(&new.name),
    };
    let failed = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::AlreadyExists => "already exists; name another folder with --path DIR".to_owned(),
            _ => format!("cannot be written: {error}"),
        };
        Failure::new(format_args!("{}: {why}", folder.display()))
    };
    write(&folder, &files).map_err(failed)?;
    let names: Vec<_> = files.iter().map(|(file, _)| *file).collect();
    let folder = folder.display();
    print(&format!("{folder}: {}\n\n    cd {folder}\n{}", names.join(", "), steps(&new.name, new.lang)))
}

/// A module's ID, and a name of files.
fn check_name(name: &str) -> Result<(), String> {
    let is_snake = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if name.len() > MAX_NAME {
        return Err(format!("has {} characters, expected at most {MAX_NAME}", name.len()));
    }
    if is_snake {
        return Ok(());
    }
    Err("a module ID is in snake_case: a letter, then letters, digits and underscores, all lower case"
        .to_owned())
}

/// The folder of lb-api's sources: the one given, or that of the checkout that this program was built from.
fn lb_api(said: Option<&Path>) -> Result<String, Failure> {
    let built_with = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("lb-api");
    let folder = said.unwrap_or(&built_with);
    let is_it = fs::read_to_string(folder.join("Cargo.toml")).is_ok_and(|text| text.contains("\"lb-api\""));
    if !is_it {
        let hint = if said.is_none() { "; name their folder with --lb-api DIR" } else { "" };
        let text = format!("{}: sources of lb-api not found{hint}", folder.display());
        return Err(Failure::new(text));
    }
    let absolute = fs::canonicalize(folder).ok().and_then(|path| path.to_str().map(str::to_owned));
    absolute
        .ok_or_else(|| Failure::new(format_args!("{}: its path cannot be written in TOML", folder.display())))
}

type TemplateFiles = Vec<(&'static str, String)>;

fn rust(name: &str, lb_api: &str) -> TemplateFiles {
    let lb_api = toml::Value::String(lb_api.to_owned()).to_string();
    // The crate's major and minor number are the ABI's.
    let version = format!("{}.{}", version::ABI_MAJOR, version::ABI_MINOR);
    vec![
        ("Cargo.toml", fill(MANIFEST, name).replace("@LB_API@", &lb_api).replace("@VERSION@", &version)),
        ("src/lib.rs", fill(RUST, name)),
        (".gitignore", "/target\n".to_owned()),
        ("sample.toml", sample(name, "target/release", "run = 2")),
    ]
}

fn c(name: &str) -> TemplateFiles {
    let source = C
        .replace("from the top of the checkout", "in this folder")
        .replace("-I lb-api/include ", "")
        .replace("modules/c-example/c_example.c", "module.c")
        .replace("c_example", name);
    vec![
        ("module.c", source),
        ("lb_module.h", HEADER.to_owned()),
        ("sample.toml", sample(name, ".", "first = 1")),
    ]
}

fn sample(name: &str, out: &str, settings: &str) -> String {
    fill(SAMPLE, name).replace("@OUT@", out).replace("@SETTINGS@", settings)
}

fn fill(template: &str, name: &str) -> String {
    template.replace("@ID@", name).replace("@FOLDER@", &name.replace('_', "-"))
}

fn write(folder: &PathBuf, files: &TemplateFiles) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::create_dir(folder)?;
    for (file, text) in files {
        let file = folder.join(file);
        fs::create_dir_all(file.parent().expect("a file is in a folder"))?;
        fs::write(file, text)?;
    }
    Ok(())
}

/// The next steps, in order.
fn steps(name: &str, lang: Lang) -> String {
    let (build, file) = match lang {
        Lang::Rust => (
            "    cargo test                # its own tests, the contract among them\n    \
                 cargo build --release\n"
                .to_owned(),
            format!("target/release/libmod_{name}.so"),
        ),
        Lang::C => (
            format!(
                "    cc -std=c11 -Wall -Wextra -O2 -fPIC -shared -fvisibility=hidden -o libmod_{name}.so module.c\n"
            ),
            format!("./libmod_{name}.so"),
        ),
    };
    let sources = match lang {
        Lang::Rust => {
            "\nCargo.toml names lb-api by version and by the path of its sources, until it is on crates.io. If they move, change\n\
             both lines. `cargo doc --open` shows the guide for authors."
        }
        Lang::C => "\nlb_module.h documents every struct and call.",
    };
    format!(
        "{build}    trylist module test {file} --skips-unavailable\n    \
             trylist run -c sample.toml\n{sources}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_that_are_module_ids() {
        for name in ["a", "least_request", "p2c", "match"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let long = "a".repeat(MAX_NAME + 1);
        for name in ["", "A", "a-b", "2p", "_a", "ä", "a b", "../a", "a.b", &long] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn nothing_is_left_to_fill_in() {
        for files in [rust("mine", "/x \"y\""), c("mine")] {
            for (file, text) in files {
                assert!(!text.contains('@') && !text.contains("c_example"), "{file}: {text}");
            }
        }
    }

    #[test]
    fn the_line_that_builds_is_the_one_at_the_top_of_the_source() {
        let (_, source) = &c("mine")[0];
        let line = steps("mine", Lang::C).lines().next().map(|line| line.trim().to_owned());
        assert!(source.contains(&line.expect("a line")), "{source}");
    }
}
