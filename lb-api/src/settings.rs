//! The module's own settings table, from the flat array that crosses the boundary into the author's struct.
//!
//! Unknown keys are refused with the nearest known one, also if the struct lacks `deny_unknown_fields`. (Inside
//! `#[serde(flatten)]` and tagged enums the attribute is needed, because serde does not say which keys exist there.) All
//! problems are reported in one run: a wrong value is taken out, and the rest is read again.

mod de;
pub(crate) mod time;

use std::cell::RefCell;

use serde::de::DeserializeOwned;

use crate::error::{BuildError, Problem};
use crate::export::view::{Strided, View};
use crate::wire;

/// One value of the tree that the flat array describes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Table(Vec<(String, Value)>),
    Array(Vec<Value>),
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Element(usize),
}

/// The settings as `T`.
pub(crate) fn read<T: DeserializeOwned>(settings: Strided<'_, wire::Setting>) -> Result<T, BuildError> {
    let flat = (0..settings.len()).filter_map(|idx| settings.get(idx)).map(|setting| {
        let path = setting.text(|s| s.path);
        (path, value_of(setting))
    });
    from_tree(tree(flat)?)
}

fn value_of(setting: View<'_, wire::Setting>) -> Value {
    match setting.kind {
        wire::SETTING_TABLE => Value::Table(Vec::new()),
        wire::SETTING_ARRAY => Value::Array(Vec::new()),
        wire::SETTING_INTEGER => Value::Integer(setting.integer),
        wire::SETTING_FLOAT => Value::Float(setting.real),
        wire::SETTING_BOOLEAN => Value::Boolean(setting.integer != 0),
        _ => Value::String(setting.text(|s| s.text).to_owned()),
    }
}

/// Puts the values in their places. Tables and arrays stand before their elements.
fn tree<'a>(flat: impl Iterator<Item = (&'a str, Value)>) -> Result<Value, BuildError> {
    let mut root = Value::Table(Vec::new());
    for (path, value) in flat {
        let placed = steps(path).and_then(|steps| place(&mut root, &steps, value));
        placed.ok_or_else(|| {
            BuildError::setting(path, "has no place: its table or array was not sent before it")
        })?;
    }
    Ok(root)
}

fn place(root: &mut Value, steps: &[Step], value: Value) -> Option<()> {
    let (last, parents) = steps.split_last()?;
    let parent = parents.iter().try_fold(root, |at, step| match (at, step) {
        (Value::Table(entries), Step::Key(key)) => entries.iter_mut().find(|(k, _)| k == key).map(|(_, v)| v),
        (Value::Array(elements), Step::Element(idx)) => elements.get_mut(*idx),
        _ => None,
    })?;
    match (parent, last) {
        (Value::Table(entries), Step::Key(key)) => entries.push((key.clone(), value)),
        (Value::Array(elements), Step::Element(idx)) if *idx == elements.len() => elements.push(value),
        _ => return None,
    }
    Some(())
}

/// Takes `a.b[0]."c d"` apart.
fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (idx, after) = after.split_once(']')?;
            steps.push(Step::Element(idx.parse().ok()?));
            rest = after;
            continue;
        }
        rest = if steps.is_empty() { rest } else { rest.strip_prefix('.')? };
        let (key, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        steps.push(Step::Key(key));
        rest = after;
    }
    Some(steps)
}

/// A key in TOML's basic quotes, from behind the opening one, and what stands behind the closing one.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut key = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((key, &text[at + 1..])),
            '\\' => key.push(match chars.next()?.1 {
                'b' => '\u{8}',
                't' => '\t',
                'n' => '\n',
                'f' => '\u{c}',
                'r' => '\r',
                'e' => '\u{1b}',
                c @ ('"' | '\\') => c,
                c @ ('x' | 'u' | 'U') => {
                    let digits = match c {
                        'x' => 2,
                        'u' => 4,
                        _ => 8,
                    };
                    let code =
                        (0..digits).map(|_| chars.next().map(|(_, c)| c)).collect::<Option<String>>()?;
                    char::from_u32(u32::from_str_radix(&code, 16).ok()?)?
                }
                _ => return None,
            }),
            c => key.push(c),
        }
    }
    None
}

/// The other way: a key as it stands in a path.
fn quoted(key: &str) -> String {
    if !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return key.to_owned();
    }
    let mut out = String::from("\"");
    for c in key.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// Reads the tree, again and again without the value that did not fit, until all that can be found is found.
pub(crate) fn from_tree<T: DeserializeOwned>(mut root: Value) -> Result<T, BuildError> {
    let unknown = RefCell::new(Vec::new());
    let mut problems: Vec<Problem> = Vec::new();
    let read = loop {
        unknown.borrow_mut().clear();
        match T::deserialize(de::Deserializer::new(&root, &unknown)) {
            Ok(settings) => break Some(settings),
            Err(error) => {
                let problem = Problem { path: error.path.unwrap_or_default(), text: error.text };
                // A key that was taken out is missing afterwards: that is no news.
                if problems.iter().any(|known| known.path == problem.path) {
                    break None;
                }
                let found = steps(&problem.path).is_some_and(|steps| remove(&mut root, &steps));
                problems.push(problem);
                if !found {
                    break None;
                }
            }
        }
    };
    let mut all = unknown.into_inner();
    all.retain(|problem: &Problem| problems.iter().all(|known| known.path != problem.path));
    problems.append(&mut all);
    match read {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(BuildError::from_problems(problems)),
    }
}

/// Takes the value at this path out of its table. Elements of arrays stay, because the others would change their
/// names; their whole array goes.
fn remove(at: &mut Value, steps: &[Step]) -> bool {
    let [Step::Key(key), rest @ ..] = steps else { return false };
    let Value::Table(entries) = at else { return false };
    let Some(idx) = entries.iter().position(|(k, _)| k == key) else { return false };
    if !remove(&mut entries[idx].1, rest) {
        entries.remove(idx);
    }
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default)]
    struct Sample {
        choices: u8,
        decay: f64,
        label: Option<String>,
        mode: Mode,
        tiers: Vec<Tier>,
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Strict,
        Loose {
            by: u32,
        },
        Fixed(u32),
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Tier {
        name: String,
        weight: Option<u32>,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self {
                choices: 2,
                decay: 0.5,
                label: None,
                mode: Mode::Strict,
                tiers: Vec::new(),
                labels: BTreeMap::new(),
            }
        }
    }

    fn text(s: &str) -> Value {
        Value::String(s.into())
    }

    fn table() -> Value {
        Value::Table(Vec::new())
    }

    fn array() -> Value {
        Value::Array(Vec::new())
    }

    fn sample(flat: Vec<(&str, Value)>) -> Result<Sample, String> {
        tree(flat.into_iter()).and_then(from_tree).map_err(|e| e.to_string())
    }

    #[test]
    fn no_settings_are_the_defaults() {
        assert_eq!(sample(vec![]), Ok(Sample::default()));
        assert_eq!(tree([].into_iter()).and_then(from_tree::<()>), Ok(()));
    }

    #[test]
    fn reads_every_kind_of_value() {
        let read = sample(vec![
            ("choices", Value::Integer(3)),
            ("decay", Value::Integer(2)),
            ("label", text("x")),
            ("mode", table()),
            ("mode.loose", table()),
            ("mode.loose.by", Value::Integer(9)),
            ("tiers", array()),
            ("tiers[0]", table()),
            ("tiers[0].name", text("a")),
            ("tiers[1]", table()),
            ("tiers[1].name", text("b")),
            ("tiers[1].weight", Value::Integer(7)),
            ("labels", table()),
            (r#"labels."a.b\"\u00e4""#, text("c")),
        ]);
        let tier = |name: &str, weight| Tier { name: name.into(), weight };
        assert_eq!(
            read,
            Ok(Sample {
                choices: 3,
                decay: 2.0,
                label: Some("x".into()),
                mode: Mode::Loose { by: 9 },
                tiers: vec![tier("a", None), tier("b", Some(7))],
                labels: [("a.b\"ä".to_owned(), "c".to_owned())].into(),
            })
        );
        let fixed = vec![("mode", table()), ("mode.fixed", Value::Integer(4))];
        assert_eq!(sample(fixed).unwrap().mode, Mode::Fixed(4));
        assert_eq!(sample(vec![("mode", text("strict"))]).unwrap().mode, Mode::Strict);
    }

    #[test]
    fn refuses_unknown_keys_without_being_asked() {
        let error = sample(vec![("choises", Value::Integer(3))]).unwrap_err();
        assert_eq!(error, "choises: unknown setting (did you mean \"choices\"?)");
        let error = sample(vec![("x.y", Value::Integer(3))]).unwrap_err();
        assert_eq!(error, "x.y: has no place: its table or array was not sent before it");
        let error = sample(vec![("\"x y\"", Value::Integer(3))]).unwrap_err();
        assert!(error.starts_with("\"x y\": unknown setting, expected one of \"choices\", "), "{error}");
        let nested = vec![("tiers", array()), ("tiers[0]", table()), ("tiers[0].name", text("a"))];
        let nested = [nested, vec![("tiers[0].wight", Value::Integer(1))]].concat();
        assert_eq!(sample(nested).unwrap_err(), "tiers[0].wight: unknown setting (did you mean \"weight\"?)");
    }

    #[test]
    fn a_module_without_settings_takes_none() {
        let error = tree([("a", text("b"))].into_iter()).and_then(from_tree::<()>).unwrap_err();
        assert_eq!(error.to_string(), "a: unknown setting, this module has none");
    }

    #[test]
    fn says_what_was_expected_and_found() {
        let error = |flat| sample(flat).unwrap_err();
        assert_eq!(
            error(vec![("choices", text("two"))]),
            "choices: expected an integer from 0 to 255, found \"two\""
        );
        assert_eq!(
            error(vec![("choices", Value::Integer(300))]),
            "choices: expected an integer from 0 to 255, found 300"
        );
        assert_eq!(
            error(vec![("mode", text("lose"))]),
            "mode: unknown value \"lose\" (did you mean \"loose\"?)"
        );
        let tier = vec![("tiers", array()), ("tiers[0]", table())];
        assert_eq!(error(tier), "tiers[0].name: is missing");
    }

    #[test]
    fn reports_all_that_can_be_found_in_one_run() {
        let error = sample(vec![
            ("choices", text("two")),
            ("decay", text("fast")),
            ("lable", text("x")),
            ("tiers", array()),
            ("tiers[0]", table()),
            ("tiers[0].name", Value::Integer(1)),
        ]);
        assert_eq!(
            error.unwrap_err(),
            "choices: expected an integer from 0 to 255, found \"two\"; decay: expected a number, found \"fast\"; \
             tiers[0].name: expected a string, found 1; \
             lable: unknown setting (did you mean \"label\"?)"
        );
    }

    #[test]
    fn deny_unknown_fields_says_the_same() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Strict {
            #[serde(alias = "n")]
            #[expect(dead_code, reason = "only its name counts")]
            number: Option<u32>,
        }
        let read = |key| tree([(key, Value::Integer(1))].into_iter()).and_then(from_tree::<Strict>);
        assert_eq!(
            read("numbr").unwrap_err().to_string(),
            "numbr: unknown setting (did you mean \"number\"?)"
        );
        read("n").unwrap();
    }
}
