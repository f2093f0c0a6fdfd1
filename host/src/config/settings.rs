//! Settings of a module: a tree of any shape, flattened for the ABI.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

use super::shape::Named;
use super::source::{At, Diagnostics};
use super::{ClusterConfig, Place, Setting, SettingValue};

/// A value of any kind, with the place of each part. Dates are strings.
#[derive(Debug)]
pub(super) enum SettingTree {
    Table(Named<Self>),
    Array(Vec<Spanned<Self>>),
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

/// All values in the order of the file, tables and arrays before their elements; see [`lb_api::wire::Setting`] for the
/// form of the paths. The table of settings itself is not among them.
pub(super) fn flatten(settings: Named<SettingTree>, report: &Diagnostics) -> Vec<Setting> {
    let mut flat = Vec::new();
    for (key, value) in settings.0 {
        flatten_into(&mut flat, &quoted(key.get_ref()), report.place(key.at()), value.into_inner(), report);
    }
    flat
}

fn flatten_into(flat: &mut Vec<Setting>, path: &str, place: Place, value: SettingTree, report: &Diagnostics) {
    let push = |value| flat.push(Setting { path: path.into(), value, place });
    match value {
        SettingTree::String(text) => push(SettingValue::String(text.into())),
        SettingTree::Integer(integer) => push(SettingValue::Integer(integer)),
        SettingTree::Float(float) => push(SettingValue::Float(float)),
        SettingTree::Boolean(boolean) => push(SettingValue::Boolean(boolean)),
        SettingTree::Table(Named(entries)) => {
            push(SettingValue::Table(entries.len()));
            for (key, value) in entries {
                let below = format!("{path}.{}", quoted(key.get_ref()));
                flatten_into(flat, &below, report.place(key.at()), value.into_inner(), report);
            }
        }
        SettingTree::Array(elements) => {
            push(SettingValue::Array(elements.len()));
            for (index, element) in elements.into_iter().enumerate() {
                let place = report.place(element.at());
                flatten_into(flat, &format!("{path}[{index}]"), place, element.into_inner(), report);
            }
        }
    }
}

/// A key as it stands in a path: bare where TOML allows it, else in basic quotes.
fn quoted(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !key.is_empty() && key.bytes().all(is_bare) {
        return key.to_owned();
    }
    let mut quoted = String::from('"');
    for c in key.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

impl ClusterConfig {
    /// Where a setting was said, for whoever reports what a module does not like about it: the setting at `path`, or
    /// else the innermost table or array around it that is known, or else the cluster.
    pub fn setting_place(&self, path: &str) -> &Place {
        let is_around = |known: &str| {
            path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let around = self.settings.iter().filter(|setting| is_around(&setting.path));
        around.max_by_key(|setting| setting.path.len()).map_or(&self.place, |setting| &setting.place)
    }
}

impl<'de> Deserialize<'de> for SettingTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SettingTreeVisitor;

        impl<'de> Visitor<'de> for SettingTreeVisitor {
            type Value = SettingTree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_bool<E: de::Error>(self, boolean: bool) -> Result<SettingTree, E> {
                Ok(SettingTree::Boolean(boolean))
            }

            fn visit_i64<E: de::Error>(self, integer: i64) -> Result<SettingTree, E> {
                Ok(SettingTree::Integer(integer))
            }

            fn visit_f64<E: de::Error>(self, float: f64) -> Result<SettingTree, E> {
                Ok(SettingTree::Float(float))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SettingTree, E> {
                Ok(SettingTree::String(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> Result<SettingTree, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(elements)).map(SettingTree::Array)
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<SettingTree, A::Error> {
                Named::deserialize(MapAccessDeserializer::new(entries)).map(SettingTree::Table)
            }
        }

        deserializer.deserialize_any(SettingTreeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Syntax, parse};

    fn cluster(settings: &str) -> ClusterConfig {
        let rest = "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\nx = \"x.so\"\n[[route]]\npath = \"/\"\ncluster = \"a\"\n";
        let text = format!("{rest}[[cluster]]\nname = \"a\"\nservers = [\"http://a\"]\n{settings}");
        let (mut config, _) = parse("t.toml", &text, Syntax::Toml).unwrap();
        config.clusters.remove(0)
    }

    #[test]
    fn flattens_every_kind_of_value_with_its_line() {
        let cluster = cluster(
            "[cluster.settings]\nz = 1\na = [true, { b = 1.5 }]\nday = 2003-07-01\n\
             \"x.y\".\"\\\"\\\\\\n\" = \"s\"\n[cluster.settings.empty]\n",
        );
        let flat: Vec<_> = cluster.settings.iter().map(|s| (&*s.path, &s.value, s.place.line)).collect();
        let string = |text: &str| SettingValue::String(text.into());
        assert_eq!(
            flat,
            [
                ("z", &SettingValue::Integer(1), 12),
                ("a", &SettingValue::Array(2), 13),
                ("a[0]", &SettingValue::Boolean(true), 13),
                ("a[1]", &SettingValue::Table(1), 13),
                ("a[1].b", &SettingValue::Float(1.5), 13),
                ("day", &string("2003-07-01"), 14),
                (r#""x.y""#, &SettingValue::Table(1), 15),
                (r#""x.y"."\"\\\u000A""#, &string("s"), 15),
                ("empty", &SettingValue::Table(0), 16),
            ]
        );
    }

    #[test]
    fn places_a_path_at_the_nearest_thing_known() {
        let cluster = cluster("[cluster.settings]\na = [\n  1,\n  2,\n]\n[cluster.settings.b]\nc = 1\n");
        let line = |path| cluster.setting_place(path).line;
        assert_eq!([line("a"), line("a[0]"), line("a[1]"), line("a[2]")], [12, 13, 14, 12]);
        assert_eq!([line("b"), line("b.c"), line("b.d"), line("b.cd")], [16, 17, 16, 16]);
        assert_eq!([line(""), line("d"), line("bc")], [8, 8, 8]);
    }
}
