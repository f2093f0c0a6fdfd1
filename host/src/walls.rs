//! The walls of the house: which file may import which. `lib.rs` lists the rooms from the top; a room imports only rooms
//! below it, and the files of one folder import each other in one direction.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path from the crate's root, such as `serve::forward::plan`.
type Module = String;

/// All files of the library but tests, and what each names of the crate.
struct House {
    /// Each module's imports: the line, and the module that the name belongs to.
    imports: BTreeMap<Module, Vec<(usize, Module)>>,
}

/// The rooms from the top, as `lib.rs` lists them.
fn rooms() -> Vec<&'static str> {
    let listed = include_str!("lib.rs").lines().filter_map(|line| {
        line.trim_start_matches("pub ")
            .trim_start_matches("pub(crate) ")
            .strip_prefix("mod ")?
            .strip_suffix(';')
    });
    listed.filter(|room| *room != "walls").collect()
}

impl House {
    fn of(rooms: &[&str]) -> Self {
        let mut files = BTreeMap::new();
        for room in rooms {
            files.insert((*room).to_owned(), src().join(format!("{room}.rs")));
            add_files(&mut files, &src().join(room), room);
        }
        let names: BTreeMap<_, _> =
            files.iter().map(|(module, path)| (module, names_in(module, path))).collect();
        // A room's own file shows some names of its files as its own.
        let mut shown = BTreeMap::new();
        for (module, name) in
            names.iter().flat_map(|(module, names)| names.iter().map(move |name| (module, name)))
        {
            if let Some(last) = name.path.rsplit("::").next().filter(|_| name.is_shown) {
                shown.insert(format!("{module}::{last}"), name.path.clone());
            }
        }
        let owner = |path: &str| owner(path, &files, &shown);
        let imports = |names: &[ImportedName]| {
            names.iter().filter_map(|name| Some((name.line, owner(&name.path)?))).collect::<Vec<_>>()
        };
        Self { imports: names.iter().map(|(module, names)| ((*module).clone(), imports(names))).collect() }
    }

    /// Imports of a room that does not stand below the importing one.
    fn that_lead_up(&self, rooms: &[&str]) -> Vec<String> {
        let room_of = |module: &str| module.split("::").next().map(str::to_owned).unwrap_or_default();
        let height = |room: &str| rooms.iter().position(|listed| *listed == room);
        let mut wrong = Vec::new();
        for (module, imports) in &self.imports {
            for (line, imported) in imports {
                let (from, to) = (room_of(module), room_of(imported));
                if height(&to) < height(&from) {
                    wrong.push(format!("{module}, line {line}: \"{from}\" imports {imported}"));
                }
            }
        }
        wrong
    }

    /// Imports between the files of one folder, with all that is below each, that come back to where they began.
    fn circles(&self) -> Vec<String> {
        let mut folders: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
        for (module, imports) in &self.imports {
            for (_, imported) in imports {
                if let Some((folder, from, to)) = siblings(module, imported) {
                    folders.entry(folder).or_default().entry(from).or_default().insert(to);
                }
            }
        }
        let mut found = Vec::new();
        for (folder, arrows) in folders {
            let mut circle: Vec<&str> =
                arrows.keys().copied().filter(|file| reaches(&arrows, file, file)).collect();
            circle.retain(|file| !ALLOWED.contains(&(folder, file)));
            if !circle.is_empty() {
                found.push(format!("{folder}: {}", circle.join(", ")));
            }
        }
        found
    }
}

/// Files that import each other on purpose: folder and file.
const ALLOWED: [(&str, &str); 0] = [];

/// A name of the crate in a file.
struct ImportedName {
    line: usize,
    /// From the crate's root.
    path: String,
    /// By `pub use`.
    is_shown: bool,
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn add_files(files: &mut BTreeMap<Module, PathBuf>, folder: &Path, module: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_str().expect("sources have names in ASCII");
        match name.strip_suffix(".rs") {
            Some("tests" | "samples") => {}
            Some(name) => drop(files.insert(format!("{module}::{name}"), path)),
            None if name == "tests" => {}
            None => add_files(files, &path, &format!("{module}::{name}")),
        }
    }
}

/// The names that begin with `crate`, `super` or `self`, groups taken apart. Comments and tests count for nothing.
fn names_in(module: &str, path: &Path) -> Vec<ImportedName> {
    let text = fs::read_to_string(path).expect("a source can be read");
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut names = Vec::new();
    let mut statement = String::new();
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
        let code = line.split(" // ").next().unwrap_or(line).trim();
        let begins_use = code.starts_with("use ") || code.starts_with("pub") && code.contains(" use ");
        if begins_use || !statement.is_empty() {
            statement.push_str(code);
            if !code.ends_with(';') {
                continue;
            }
            let is_shown = statement.starts_with("pub");
            let tree = statement.split("use ").nth(1).unwrap_or_default().trim_end_matches(';').to_owned();
            for path in apart(&tree) {
                names.extend(absolute(module, &path).map(|path| ImportedName {
                    line: n + 1,
                    path,
                    is_shown,
                }));
            }
            statement.clear();
            continue;
        }
        for word in ["crate::", "super::", "self::"] {
            for (at, _) in code.match_indices(word) {
                let rest = &code[at..];
                let end =
                    rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
                let before = code[..at].chars().next_back();
                if before.is_none_or(|c| !(c.is_alphanumeric() || c == ':' || c == '_')) {
                    let path = absolute(module, rest[..end].trim_end_matches(':'));
                    names.extend(path.map(|path| ImportedName { line: n + 1, path, is_shown: false }));
                }
            }
        }
    }
    names
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d` and `a::c::e`.
fn apart(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(at) = tree.find('{') else { return vec![tree.split(" as ").next().unwrap_or(tree).to_owned()] };
    let (prefix, inner) = (&tree[..at], &tree[at + 1..tree.rfind('}').unwrap_or(tree.len())]);
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[begin..i]);
                begin = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&inner[begin..]);
    let whole = |part: &str| match part.trim() {
        "self" => vec![prefix.trim_end_matches(':').to_owned()],
        part => apart(&format!("{prefix}{part}")),
    };
    parts.into_iter().filter(|part| !part.trim().is_empty()).flat_map(whole).collect()
}

/// A path from the crate's root, of one that a module writes; none for other crates'.
fn absolute(module: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split("::").collect();
    let mut base: Vec<&str> = module.split("::").collect();
    match parts[0] {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            base.pop();
            while parts.get(1) == Some(&"super") {
                base.pop();
                parts.remove(0);
            }
        }
        _ => return None,
    }
    base.extend(&parts[1..]);
    Some(base.join("::"))
}

/// The module that a name belongs to: the longest part of its path that is a file.
fn owner(path: &str, files: &BTreeMap<Module, PathBuf>, shown: &BTreeMap<String, String>) -> Option<Module> {
    let parts: Vec<&str> = path.split("::").collect();
    for n in (1..=parts.len()).rev() {
        let begin = parts[..n].join("::");
        // A file may show a name that is its own, too: it would be resolved for ever.
        let inside = format!("{begin}::");
        if let Some(real) = shown.get(&begin).filter(|real| **real != begin && !real.starts_with(&inside)) {
            return owner(&[&[real.as_str()], &parts[n..]].concat().join("::"), files, shown);
        }
        if files.contains_key(&begin) {
            return Some(begin);
        }
    }
    None
}

/// The folder that two modules have in common, and the file (or folder) of each in it; none where one is above the other.
fn siblings<'a>(from: &'a str, to: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
    let mut begin = 0;
    loop {
        let next = |module: &'a str| module.get(begin..)?.split("::").next().filter(|part| !part.is_empty());
        let (a, b) = (next(from)?, next(to)?);
        if a != b {
            return Some((from[..begin].trim_end_matches(':'), a, b)).filter(|_| begin > 0);
        }
        begin += a.len() + 2;
    }
}

fn reaches(arrows: &BTreeMap<&str, BTreeSet<&str>>, from: &str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        for imported in arrows.get(file).into_iter().flatten() {
            if *imported == to {
                return true;
            }
            if seen.insert(*imported) {
                next.push(imported);
            }
        }
    }
    false
}

#[test]
fn every_import_leads_down() {
    let rooms = rooms();
    let house = House::of(&rooms);
    assert!(house.imports.values().map(Vec::len).sum::<usize>() > 500, "the test reads the imports");
    let wrong = house.that_lead_up(&rooms);
    assert!(wrong.is_empty(), "imports that lead up:\n{}", wrong.join("\n"));
}

#[test]
fn no_folder_has_a_circle() {
    let circles = House::of(&rooms()).circles();
    assert!(circles.is_empty(), "files that import each other:\n{}", circles.join("\n"));
}

#[test]
fn sees_what_it_is_to_see() {
    assert_eq!(apart("a::{b, c::{self, d}}"), ["a::b", "a::c", "a::c::d"]);
    assert_eq!(absolute("x::y", "super::z").as_deref(), Some("x::z"));
    // The file x/y.rs has a function y, which x shows.
    let files = BTreeMap::from(["x", "x::y"].map(|module| (module.to_owned(), PathBuf::new())));
    let shown = BTreeMap::from([("x::y".to_owned(), "x::y::y".to_owned())]);
    assert_eq!(owner("x::y::y", &files, &shown).as_deref(), Some("x::y"));
    assert_eq!(siblings("x::y::z", "x::a"), Some(("x", "y", "a")));
    assert_eq!(siblings("x::y::z", "x::y"), None);
    let import = |from: &str, to: &str| (from.to_owned(), vec![(1, to.to_owned())]);
    let house = House { imports: BTreeMap::from([import("low::a", "high"), import("high::a", "low::b")]) };
    assert_eq!(house.that_lead_up(&["high", "low"]), ["low::a, line 1: \"low\" imports high"]);
    let house = House { imports: BTreeMap::from([import("r::a", "r::b::x"), import("r::b", "r::a")]) };
    assert_eq!(house.circles(), ["r: a, b"]);
}

/// Files of the host and of `lb-api` that allow `unsafe` code, as the sources say.
fn with_unsafe() -> BTreeSet<String> {
    let root = src().join("../..");
    let mut files = BTreeMap::new();
    for crate_ in ["host", "lb-api"] {
        add_files(&mut files, &root.join(crate_).join("src"), crate_);
    }
    let allows = |path: &Path| {
        let text = fs::read_to_string(path).expect("a source can be read");
        ["allow(unsafe_code", "expect(unsafe_code"].iter().any(|words| text.contains(words))
            || text.contains("unsafe_code,\n")
    };
    let relative =
        |path: &Path| path.strip_prefix(&root).expect("a file below the root").display().to_string();
    files
        .values()
        .filter(|path| !path.ends_with("walls.rs") && allows(path))
        .map(|path| relative(path))
        .collect()
}

/// The same list, as ARCHITECTURE.md says.
fn listed_as_unsafe() -> BTreeSet<String> {
    let page = include_str!("../../ARCHITECTURE.md");
    let table = page.split("### Files with `unsafe`").nth(1).expect("the section is there");
    let table = table.split("\n## ").next().unwrap_or_default();
    table.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

#[test]
fn unsafe_is_where_the_page_says() {
    assert_eq!(with_unsafe(), listed_as_unsafe(), "left: sources, right: ARCHITECTURE.md");
}

/// The types that a file declares: each with its name and the file.
fn declared_types() -> BTreeMap<String, BTreeSet<String>> {
    let mut files = BTreeMap::new();
    for room in rooms() {
        files.insert(room.to_owned(), src().join(format!("{room}.rs")));
        add_files(&mut files, &src().join(room), room);
    }
    let mut types: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, path) in &files {
        let text = fs::read_to_string(path).expect("a source can be read");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for line in code.lines() {
            let words: Vec<&str> = line
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .filter(|word| !word.is_empty())
                .collect();
            let words = words.iter().skip_while(|word| matches!(**word, "pub" | "crate" | "super" | "in"));
            let mut words = words.skip_while(|word| rooms().contains(word));
            if let Some("struct" | "enum" | "trait" | "union") = words.next().copied()
                && let Some(name) = words.next()
                && line.trim_start().starts_with(|c: char| c.is_ascii_lowercase())
            {
                types.entry((*name).to_owned()).or_default().insert(module.clone());
            }
        }
    }
    types
}

#[test]
fn one_name_is_one_type() {
    let types = declared_types();
    assert!(types.len() > 400, "the test reads the types");
    let doubled: Vec<_> = types.iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(doubled.is_empty(), "names of several types: {doubled:?}");
}

/// No function is longer, its documentation left out.
const MAX_FUNCTION_LINES: usize = 60;

/// Length of each function outside of tests, by its name. The text is formatted.
fn function_lengths(text: &str) -> Vec<(String, usize)> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut lengths = Vec::new();
    let mut begun = None;
    for (n, line) in code.lines().enumerate() {
        let item = line.trim_start();
        let indent = &line[..line.len() - item.len()];
        match begun {
            None => {
                let words = item.split(' ').skip_while(|word| {
                    word.starts_with("pub") || ["async", "const", "unsafe", "extern", "\"C\""].contains(word)
                });
                let mut words = words.skip_while(|word| matches!(*word, "in" | "crate)"));
                if words.next() == Some("fn") && !line.ends_with([';', '}']) {
                    let name = words.next().unwrap_or_default();
                    begun = Some((indent, name.split(['(', '<']).next().unwrap_or(name), n));
                }
            }
            Some((outer, name, first)) if outer == indent && item == "}" => {
                lengths.push((name.to_owned(), n + 1 - first));
                begun = None;
            }
            // A declaration without a body.
            Some((outer, ..)) if outer == indent && item.starts_with(')') && item.ends_with(';') => {
                begun = None;
            }
            Some(_) => {}
        }
    }
    lengths
}

#[test]
fn functions_are_short() {
    let root = src().join("../..");
    let mut files = BTreeMap::new();
    for crate_ in ["host", "lb-api"] {
        add_files(&mut files, &root.join(crate_).join("src"), crate_);
    }
    let mut n_functions = 0;
    let mut long = Vec::new();
    for (module, path) in &files {
        let lengths = function_lengths(&fs::read_to_string(path).expect("a source can be read"));
        n_functions += lengths.len();
        let is_long = |function: &(String, usize)| function.1 > MAX_FUNCTION_LINES;
        long.extend(
            lengths.into_iter().filter(is_long).map(|(name, n)| format!("{module}: {name}, {n} lines")),
        );
    }
    assert!(n_functions > 1_500, "the test reads the functions: {n_functions}");
    assert!(long.is_empty(), "functions of more than {MAX_FUNCTION_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn sees_where_a_function_ends() {
    let text = "trait A {\n    fn a(\n        &self,\n    ) -> u8;\n    fn b(&self) {}\n    pub(crate) async fn c<T>(\n    ) {\n        {\n        }\n    }\n}\n\
                unsafe extern \"C\" fn d(a: u8) -> u8 {\n    a\n}\n#[cfg(test)]\nmod tests {\n    fn e() {\n    }\n}\n";
    assert_eq!(function_lengths(text), [("c".to_owned(), 5), ("d".to_owned(), 3)]);
}
