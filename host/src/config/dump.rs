//! A tree as TOML again, with the defaults of the reference and without secrets.

use std::fmt::Write as _;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::de::TreeTerms;
use super::gather::Gathered;
use super::secret::{HIDDEN, is_secret_key, is_secret_name, without_secrets};
use super::source::At as _;

/// The reference, whose active keys have their defaults. A test holds it to that.
const REFERENCE: &str = include_str!("../../../conf/reference.toml");

/// Tables of which a configuration has any number; a default is for each of them.
const LISTS: [&str; 3] = ["listener", "cluster", "route"];

/// The whole tree.
pub(super) fn show(tree: &Gathered<'_>) -> String {
    let defaults: Table = toml::from_str(REFERENCE).unwrap_or_default();
    let root = DeTable::new();
    let root = tree.root.get_ref().as_table().unwrap_or(&root);
    let mut whole = table_of(root, Inside::Plain, &tree.terms);
    whole.remove("include");
    for (key, default) in &defaults {
        match (default, LISTS.contains(&key.as_str())) {
            (Value::Array(elements), true) => {
                let Some(Value::Table(default)) = elements.first() else { continue };
                for element in whole.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                    if let Value::Table(element) = element {
                        complete(key, element, default);
                    }
                }
            }
            // Which module is loaded is no default.
            (Value::Table(default), false) if key != "load_module" => {
                let own = whole.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(own) = own {
                    complete(key, own, default);
                }
            }
            (Value::Table(_) | Value::Array(_), _) if key == "load_module" => {}
            (value, _) => drop(whole.entry(key.clone()).or_insert_with(|| value.clone())),
        }
    }
    let mut out = String::new();
    // A table of strings, numbers and tables can always be written.
    let _ = write!(out, "{}", toml::to_string(&whole).unwrap_or_default());
    out
}

/// Adds the keys that a table has by default.
fn complete(name: &str, own: &mut Table, defaults: &Table) {
    for (key, default) in defaults {
        let is_required = match name {
            "listener" => key == "address",
            "cluster" => ["name", "module", "servers", "settings"].contains(&key.as_str()),
            "route" => ["path", "cluster"].contains(&key.as_str()),
            _ => false,
        };
        // A route that answers by itself has no use for it.
        let is_unused = name == "route" && key == "upgrade" && !own.contains_key("cluster");
        match (own.get_mut(key), default) {
            (Some(Value::Table(own)), Value::Table(default)) => complete(key, own, default),
            (None, _) if !is_required && !is_unused => drop(own.insert(key.clone(), default.clone())),
            _ => {}
        }
    }
}

/// Where in the tree a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Plain,
    /// Rules for headers, whose keys are names of headers.
    Headers,
    /// The value of a secret.
    Secret,
}

impl Inside {
    /// Below this key.
    fn below(self, key: &str) -> Self {
        match (self, key) {
            (Self::Secret, _) | (_, "environment") => Self::Secret,
            (Self::Headers, name) if is_secret_name(name) => Self::Secret,
            (_, key) if is_secret_key(key) => Self::Secret,
            (_, "request_headers" | "response_headers") => Self::Headers,
            (inside, _) => inside,
        }
    }
}

fn table_of(table: &DeTable<'_>, inside: Inside, terms: &TreeTerms) -> Table {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.at());
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let key: &str = std::borrow::Cow::as_ref(key.get_ref());
        (key.to_owned(), value_of(value, inside.below(key), terms))
    };
    entries.into_iter().map(entry).collect()
}

fn value_of(value: &Spanned<DeValue<'_>>, inside: Inside, terms: &TreeTerms) -> Value {
    match value.get_ref() {
        DeValue::String(_) if inside == Inside::Secret => Value::String(HIDDEN.to_owned()),
        DeValue::String(text) => {
            let text = terms.shown.get(&value.span()).map_or(&**text, String::as_str);
            Value::String(without_secrets(text).into_owned())
        }
        DeValue::Integer(integer) => {
            Value::Integer(i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or_default())
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or_default()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(datetime) => Value::Datetime(*datetime),
        DeValue::Array(elements) => {
            Value::Array(elements.iter().map(|element| value_of(element, inside, terms)).collect())
        }
        DeValue::Table(table) => Value::Table(table_of(table, inside, terms)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Files, Syntax, dump, parse};

    #[test]
    fn what_is_dumped_is_the_same_configuration() {
        let text = "include = [\"more.toml\"]\nthreads = 3\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
            [load_module]\nx = \"x.so\"\n[[cluster]]\nname = \"a\"\nservers = [\"http://a\", { url = \"http://b\", weight = 2 }]\n\
            sticky = { cookie = \"c\", secret = \"sixteen bytes at least\" }\nejection = { failures = 7 }\n";
        let more = "[limits]\nheaders = 7\n[[route]]\npath = \"/\"\ncluster = \"a\"\n\
            [[route]]\npath = \"/x\"\nrespond = { status = 204 }\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("more.toml"), more).unwrap();
        let dumped = dump(&path, &mut Files::on_disk()).unwrap();
        assert!(!dumped.contains("sixteen") && dumped.contains("(hidden)"), "{dumped}");
        let whole = dumped.replace("(hidden)", "sixteen bytes at least");
        let places = |config: &super::super::Config| {
            let text = format!("{config:#?}");
            let is_place = |line: &&str| {
                let line = line.trim_start();
                !(line.starts_with("file: ") || line.starts_with("line: ") || line.starts_with("source: "))
            };
            text.lines().filter(is_place).map(str::to_owned).collect::<Vec<_>>().join("\n")
        };
        let name = path.display().to_string();
        let (first, _) = parse(&name, text, Syntax::Toml).unwrap();
        let (again, _) =
            parse(&name, &whole, Syntax::Toml).unwrap_or_else(|errors| panic!("{errors}\n{whole}"));
        assert_eq!(places(&first), places(&again));
        assert!(dumped.contains("failures = 7") && dumped.contains("max_percent = 50"), "{dumped}");
    }
    #[test]
    fn no_secret_is_dumped() {
        let text = r#"
            include = ["${TRYLIST_TEST_PART:-more}.toml"]
            [[cluster]]
            name = "a"
            servers = ["http://me:SECRET@a:${TRYLIST_TEST_PORT:-8123}"]
            settings = { passwords = ["SECRET", { of = "SECRET" }], password_file = "path/shown" }
            request_headers.set = { Cookie = "s=SECRET", X-Auth = "SECRET", X-Site = "site shown" }
            request_headers.remove = ["Cookie"]
            [[cluster.discover]]
            type = "exec"
            command = ["inventory", "Bearer ${TRYLIST_TEST_TOKEN:-SECRET} behind"]
            environment = { A = "SECRET" }
            token_file = "token/shown"
        "#;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(folder.path().join("more.toml"), "threads = 7\n").unwrap();
        let dumped = dump(&path, &mut Files::on_disk()).unwrap();
        assert!(!dumped.contains("SECRET"), "{dumped}");
        for shown in [
            "threads = 7",
            "\"http://(hidden)@a:8123\"",
            "path/shown",
            "site shown",
            "token/shown",
            "\"Bearer (hidden) behind\"",
            "\"Cookie\"",
        ] {
            assert!(dumped.contains(shown), "{shown}: {dumped}");
        }
    }
}
