//! Text becomes an answer. JSON and TOML are read by the same rules; `conf/servers.schema.json` says them for other programs.
//!
//! ```text
//! ["http://10.0.0.1:8080", { "url": "http://10.0.0.2:8080", "weight": 2 }]        or the same as { "servers": […] }
//! ```
//!
//! One mistake refuses the whole text: half of an inventory must not take the other half's servers out.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::answer::{
    MAX_PAIRS, MAX_TEXT_BYTES, MOST_BYTES, MOST_MEMBERS, SourceAnswer, SourceMember, SourceState,
};
use crate::config::{LAST_TIER, MAX_REQUESTS, SourceSpec};

/// The keys of a server.
const KEYS: [&str; 8] = ["url", "weight", "tier", "zone", "route", "max_requests", "state", "metadata"];

/// The form of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerForm {
    /// JSON.
    Json,
    /// TOML: `servers = […]`, or a table `[[servers]]` for each.
    Toml,
}

impl AnswerForm {
    /// By the file's name.
    pub(crate) fn of(path: &Path) -> Self {
        let is_toml = path.extension().is_some_and(|extension| extension == "toml");
        if is_toml { Self::Toml } else { Self::Json }
    }
}

/// An answer and how many of its servers were left out because they were named before.
pub(crate) type ReadAnswer = (SourceAnswer, usize);

/// Reads a text, whose servers are all of those that this source may name.
///
/// # Errors
/// The mistake, and the line where a reader would look for it.
pub(crate) fn read(bytes: &[u8], form: AnswerForm, spec: &SourceSpec) -> Result<ReadAnswer, String> {
    if bytes.len() > MOST_BYTES {
        return Err(too_long());
    }
    let raw: RawAnswer = match form {
        AnswerForm::Json => serde_json::from_slice(bytes).map_err(|error| of_json(&error))?,
        AnswerForm::Toml => {
            let text = std::str::from_utf8(bytes).map_err(|error| {
                let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
                format!("line {line}: is not UTF-8")
            })?;
            toml::from_str(text).map_err(|error| of_toml(text, &error))?
        }
    };
    let (mut seen, mut members, mut n_twins) = (HashSet::new(), Vec::with_capacity(raw.0.len()), 0);
    for (idx, mut member) in raw.0.into_iter().enumerate() {
        let url = spec.admit(&member.url).map_err(|why| {
            let url: String = member.url.chars().take(100).collect();
            format!("server {} of the list, {url:?}: {why}", idx + 1)
        })?;
        if seen.insert(url.clone()) {
            member.url = url.to_string();
            members.push(member);
        } else {
            n_twins += 1;
        }
    }
    Ok((SourceAnswer { members }, n_twins))
}

/// The words for an answer that is longer than any may be.
pub(crate) fn too_long() -> String {
    format!("is longer than {} MiB", MOST_BYTES >> 20)
}

fn of_json(error: &serde_json::Error) -> String {
    let text = error.to_string();
    // Its own words end with the place.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(&place).unwrap_or(&text);
    format!("line {}, column {}: {what}", error.line(), error.column())
}

fn of_toml(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
    format!("line {line}: {}", error.message().replace('\n', " "))
}

/// The list as it was written.
struct RawAnswer(Vec<SourceMember>);

impl<'de> Deserialize<'de> for RawAnswer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnswerVisitor)
    }
}

struct AnswerVisitor;

impl<'de> Visitor<'de> for AnswerVisitor {
    type Value = RawAnswer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of servers, or { \"servers\": […] }")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawAnswer, A::Error> {
        let mut members = Vec::new();
        while let Some(Listed(member)) = list.next_element()? {
            if members.len() == MOST_MEMBERS {
                return Err(de::Error::custom(format_args!("has more than {MOST_MEMBERS} servers")));
            }
            members.push(member);
        }
        Ok(RawAnswer(members))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawAnswer, A::Error> {
        let mut servers = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "servers" if servers.is_some() => return Err(de::Error::duplicate_field("servers")),
                "servers" => servers = Some(map.next_value::<RawList>()?.0),
                // Editors find the rules of a file by it.
                "$schema" => drop(map.next_value::<String>()?),
                key => return Err(unknown(key, &["servers"])),
            }
        }
        servers.map(RawAnswer).ok_or_else(|| de::Error::missing_field("servers"))
    }
}

/// The value of `servers`.
struct RawList(Vec<SourceMember>);

impl<'de> Deserialize<'de> for RawList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor;

        impl<'de> Visitor<'de> for ListVisitor {
            type Value = RawList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of servers")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawList, A::Error> {
                AnswerVisitor.visit_seq(list).map(|answer| RawList(answer.0))
            }
        }

        deserializer.deserialize_seq(ListVisitor)
    }
}

/// A server: its URL alone, or a table.
struct Listed(SourceMember);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemberVisitor)
    }
}

struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = Listed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a URL, or a table with a url")
    }

    fn visit_str<E: de::Error>(self, url: &str) -> Result<Listed, E> {
        Ok(Listed(SourceMember { url: url.to_owned(), ..SourceMember::default() }))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listed, A::Error> {
        let (mut member, mut seen) = (SourceMember::default(), HashSet::new());
        while let Some(key) = map.next_key::<String>()? {
            let Some(key) = KEYS.into_iter().find(|known| **known == *key) else {
                return Err(unknown(&key, &KEYS));
            };
            if !seen.insert(key) {
                return Err(de::Error::duplicate_field(key));
            }
            set(&mut member, key, &mut map)
                .map_err(|error: A::Error| de::Error::custom(format_args!("{key}: {error}")))?;
        }
        if !seen.contains("url") {
            return Err(de::Error::missing_field("url"));
        }
        Ok(Listed(member))
    }
}

fn set<'de, A: MapAccess<'de>>(member: &mut SourceMember, key: &str, map: &mut A) -> Result<(), A::Error> {
    match key {
        "weight" => member.weight = Some(number(map, 65_535)?),
        "tier" => member.tier = Some(number(map, LAST_TIER.into())?),
        "max_requests" => member.max_requests = Some(number(map, MAX_REQUESTS)?),
        "zone" => member.zone = Some(text(map)?),
        "route" => member.route = Some(text(map)?),
        "state" => member.state = state(map)?,
        "metadata" => member.metadata = metadata(map)?,
        _ => member.url = map.next_value()?,
    }
    Ok(())
}

fn number<'de, A: MapAccess<'de>, T: TryFrom<i64>>(map: &mut A, most: i64) -> Result<T, A::Error> {
    let number: i64 = map.next_value()?;
    let checked = Some(number).filter(|number| (0..=most).contains(number)).map(T::try_from);
    match checked {
        Some(Ok(number)) => Ok(number),
        _ => Err(de::Error::custom(format_args!("{number} is not a number from 0 to {most}"))),
    }
}

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<String, A::Error> {
    let text: String = map.next_value()?;
    if text.is_empty() || text.len() > MAX_TEXT_BYTES {
        return Err(de::Error::custom(format_args!("expected a text of 1 to {MAX_TEXT_BYTES} bytes")));
    }
    Ok(text)
}

fn state<'de, A: MapAccess<'de>>(map: &mut A) -> Result<SourceState, A::Error> {
    let word: String = map.next_value()?;
    match word.as_str() {
        "ready" => Ok(SourceState::Ready),
        "draining" => Ok(SourceState::Draining),
        "down" => Ok(SourceState::Down),
        _ => {
            // Escaped: it is from outside, and what is told of it is one line.
            let word: String = word.chars().take(40).collect();
            Err(de::Error::custom(format_args!("unknown state {word:?} (known here: ready, draining, down)")))
        }
    }
}

fn metadata<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Vec<(String, String)>, A::Error> {
    let pairs: BTreeMap<String, String> = map.next_value()?;
    let is_short = |text: &String| text.len() <= MAX_TEXT_BYTES;
    if pairs.len() > MAX_PAIRS || !pairs.iter().all(|(name, value)| is_short(name) && is_short(value)) {
        let most = format_args!("at most {MAX_PAIRS} pairs of at most {MAX_TEXT_BYTES} bytes each");
        return Err(de::Error::custom(format_args!("expected {most}")));
    }
    Ok(pairs.into_iter().collect())
}

fn unknown<E: de::Error>(key: &str, known: &[&str]) -> E {
    let key: String = key.chars().take(40).collect();
    E::custom(format_args!("unknown key {key:?} (known here: {})", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;
    use crate::config::{MayName, SourceKind, WhenEmpty};

    fn spec() -> SourceSpec {
        SourceSpec {
            cluster: "app".into(),
            name: "file".into(),
            kind: SourceKind::File { path: "servers.json".into() },
            may_name: MayName { http: true, https: false, unix: vec!["/run/app".into()] },
            empty: WhenEmpty::Keep,
            settle: Duration::ZERO,
        }
    }

    fn json(text: &str) -> Result<SourceAnswer, String> {
        read(text.as_bytes(), AnswerForm::Json, &spec()).map(|(answer, _)| answer)
    }

    #[test]
    fn a_list_of_urls_and_tables_of_every_key_are_an_answer_in_both_forms() {
        let whole = SourceMember {
            url: "http://[::1]:80".into(),
            weight: Some(0),
            tier: Some(1),
            max_requests: Some(7),
            zone: Some("b".into()),
            route: Some("r1".into()),
            state: SourceState::Draining,
            metadata: vec![("rack".into(), "4".into())],
        };
        let short = |url: &str| SourceMember { url: url.into(), ..SourceMember::default() };
        let expected =
            SourceAnswer { members: vec![short("http://a.test:8080"), whole, short("unix:/run/app/1.sock")] };
        let list = "[\"http://A.test:8080\",\n{ \"url\": \"http://[0::1]\", \"weight\": 0, \"tier\": 1, \"max_requests\": 7, \
                    \"zone\": \"b\", \"route\": \"r1\", \"state\": \"draining\", \"metadata\": { \"rack\": \"4\" } },\n\
                    \"unix:/run/app/1.sock\"]";
        assert_eq!(json(list), Ok(expected.clone()));
        assert_eq!(json(&format!("{{ \"$schema\": \"x\", \"servers\": {list} }}")), Ok(expected.clone()));
        let toml = "servers = [\"http://a.test:8080\", { url = \"http://[::1]:80\", weight = 0, tier = 1, max_requests = 7, \
                    zone = \"b\", route = \"r1\", state = \"draining\", metadata = { rack = \"4\" } }, \"unix:/run/app/1.sock\"]";
        assert_eq!(read(toml.as_bytes(), AnswerForm::Toml, &spec()), Ok((expected, 0)));
        assert_eq!(json("[]"), Ok(SourceAnswer::default()));
    }

    #[test]
    fn a_server_that_is_named_again_is_left_out() {
        let text = "[\"http://a:80\", \"http://b\", { \"url\": \"http://A\", \"weight\": 3 }]";
        let (answer, n_twins) = read(text.as_bytes(), AnswerForm::Json, &spec()).unwrap();
        let urls: Vec<&str> = answer.members.iter().map(|member| &*member.url).collect();
        assert_eq!((urls, n_twins), (vec!["http://a:80", "http://b:80"], 1));
    }

    #[test]
    fn what_is_wrong_is_told_with_line_and_key() {
        for (text, why) in [
            ("", "line 1, column 0: EOF while parsing a value"),
            ("[\n\"http://a\"", "line 2, column 10: EOF while parsing a list"),
            (
                "7",
                "line 1, column 1: invalid type: integer `7`, expected a list of servers, or { \"servers\": […] }",
            ),
            ("{}", "line 1, column 2: missing field `servers`"),
            (
                "{ \"servers\": 7 }",
                "line 1, column 14: invalid type: integer `7`, expected a list of servers",
            ),
            ("{ \"hosts\": [] }", "line 1, column 9: unknown key \"hosts\" (known here: servers)"),
            (
                "[\n{ \"url\": \"http://a\",\n\"wieght\": 1 }]",
                "line 3, column 8: unknown key \"wieght\" (known here: url, weight, tier, zone, route, max_requests, state, metadata)",
            ),
            (
                "[\n{ \"url\": \"http://a\",\n\"weight\": \"x\" }]",
                "line 3, column 13: weight: invalid type: string \"x\", expected i64",
            ),
            (
                "[{ \"url\": \"http://a\",\n\"weight\": 65536 }]",
                "line 2, column 17: weight: 65536 is not a number from 0 to 65535",
            ),
            (
                "[{ \"url\": \"http://a\",\n\"tier\": 16 }]",
                "line 2, column 12: tier: 16 is not a number from 0 to 15",
            ),
            (
                "[{ \"url\": \"http://a\", \"state\": \"up\" }]",
                "line 1, column 37: state: unknown state \"up\" (known here: ready, draining, down)",
            ),
            (
                "[{ \"url\": \"http://a\", \"route\": \"\" }]",
                "line 1, column 35: route: expected a text of 1 to 1024 bytes",
            ),
            (
                "[{ \"url\": \"http://a\", \"url\": \"http://b\" }]",
                "line 1, column 27: duplicate field `url`",
            ),
            ("[{ \"weight\": 1 }]", "line 1, column 16: missing field `url`"),
            (
                "[\"http://a\", \"ftp://b\"]",
                "server 2 of the list, \"ftp://b\": scheme \"ftp\" is not supported (write http://host or http://host:port)",
            ),
            (
                "[\"https://a\"]",
                "server 1 of the list, \"https://a\": this source may not name servers of scheme https (the key schemes says which)",
            ),
            (
                "[\"unix:/etc/x\"]",
                "server 1 of the list, \"unix:/etc/x\": a Unix socket that this source may not name (the key unix says which)",
            ),
            (
                "[\"unix:/run/app/../x\"]",
                "server 1 of the list, \"unix:/run/app/../x\": a Unix socket that this source may not name (the key unix says which)",
            ),
        ] {
            assert_eq!(json(text), Err(why.to_owned()), "{text}");
        }
        let toml = |text: &[u8]| read(text, AnswerForm::Toml, &spec()).unwrap_err();
        assert_eq!(
            toml(b"servers = [\n{ url = \"http://a\", wight = 1 }]"),
            "line 2: unknown key \"wight\" (known here: url, weight, tier, zone, route, max_requests, state, metadata)"
        );
        assert_eq!(toml(b"servers = [\n\"http://a\"\n"), "line 2: unclosed array, expected `]`");
        assert_eq!(toml(b"\n\xff"), "line 2: is not UTF-8");
    }

    #[test]
    fn no_text_takes_more_memory_than_an_answer_may() {
        let many = format!("[{}\"http://z\"]", "\"http://a\",".repeat(MOST_MEMBERS));
        assert!(json(&many).unwrap_err().ends_with("has more than 65535 servers"));
        assert_eq!(json(&" ".repeat(MOST_BYTES + 1)), Err("is longer than 32 MiB".to_owned()));
        assert!(json(&"[".repeat(100_000)).is_err(), "depth is bounded");
        let long = format!("[\"http://{}\"]", "a.".repeat(200));
        assert!(json(&long).unwrap_err().ends_with("is longer than 300 bytes"));
    }

    /// Whether a value is as the schema says: as much of JSON Schema as `conf/servers.schema.json` uses, and no more.
    fn fits(schema: &Value, whole: &Value, value: &Value) -> bool {
        let Value::Object(rules) = schema else { panic!("a schema is a table: {schema}") };
        rules.iter().all(|(rule, says)| {
            let most = || says.as_u64().expect("a number");
            let len = |text: &str| text.chars().count() as u64;
            match (rule.as_str(), value) {
                ("title" | "description" | "$schema" | "$defs", _) => true,
                ("$ref", _) => {
                    let at = says.as_str().and_then(|at| at.strip_prefix('#')).expect("a place in this file");
                    fits(whole.pointer(at).expect(at), whole, value)
                }
                ("anyOf", _) => says.as_array().unwrap().iter().any(|schema| fits(schema, whole, value)),
                ("enum", _) => says.as_array().unwrap().contains(value),
                ("type", _) => match says.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_i64(),
                    other => panic!("type {other}"),
                },
                ("minimum", value) => value.as_i64().is_none_or(|n| n >= says.as_i64().unwrap()),
                ("maximum", value) => value.as_i64().is_none_or(|n| n <= says.as_i64().unwrap()),
                ("minLength", Value::String(text)) => len(text) >= most(),
                ("maxLength", Value::String(text)) => len(text) <= most(),
                ("pattern", Value::String(text)) => {
                    assert_eq!(says, "^(https?://|unix:/)");
                    ["http://", "https://", "unix:/"].iter().any(|start| text.starts_with(start))
                }
                ("maxItems", Value::Array(list)) => list.len() as u64 <= most(),
                ("items", Value::Array(list)) => list.iter().all(|value| fits(says, whole, value)),
                ("maxProperties", Value::Object(table)) => table.len() as u64 <= most(),
                ("required", Value::Object(table)) => {
                    says.as_array().unwrap().iter().all(|key| table.contains_key(key.as_str().unwrap()))
                }
                ("properties", Value::Object(table)) => table
                    .iter()
                    .all(|(key, value)| says.get(key).is_none_or(|schema| fits(schema, whole, value))),
                ("additionalProperties", Value::Object(table)) => table.iter().all(|(key, value)| {
                    let is_known = rules.get("properties").is_some_and(|known| known.get(key).is_some());
                    is_known || *says != Value::Bool(false) && fits(says, whole, value)
                }),
                ("minLength" | "maxLength" | "pattern" | "maxItems" | "items" | "maxProperties", _) => true,
                ("required" | "properties" | "additionalProperties", _) => true,
                (rule, _) => panic!("a rule that this test does not know: {rule}"),
            }
        })
    }

    #[test]
    fn the_schema_takes_what_the_reader_takes() {
        let schema: Value = serde_json::from_str(include_str!("../../../conf/servers.schema.json")).unwrap();
        let long = "x".repeat(MAX_TEXT_BYTES + 1);
        let with = |key: &str, value: Value| {
            let mut server = serde_json::Map::from_iter([("url".to_owned(), "http://a".into())]);
            server.insert(key.to_owned(), value);
            Value::from(vec![Value::from(server)])
        };
        let mut values: Vec<Value> = [
            "[]",
            "{}",
            "7",
            "[7]",
            "[\"http://a\"]",
            "[\"a\"]",
            "[{}]",
            "[[]]",
            "null",
            "[null]",
            "{\"servers\": []}",
            "{\"servers\": {}}",
            "{\"servers\": [], \"more\": 1}",
            "{\"servers\": [], \"$schema\": \"x\"}",
        ]
        .map(|text| serde_json::from_str(text).unwrap())
        .into();
        for key in KEYS.into_iter().chain(["other"]) {
            let numbers = [-1, 0, 1, 15, 16, 65_535, 65_536, 1_000_000, 1_000_001].map(Value::from);
            let texts = ["", "x", "ready", "draining", "down", "http://a", &long].map(Value::from);
            let others = [
                Value::Null,
                true.into(),
                1.5.into(),
                serde_json::json!({}),
                serde_json::json!({"a": "b"}),
                serde_json::json!({"a": 1}),
                serde_json::json!({"a": long}),
            ];
            values.extend(numbers.into_iter().chain(texts).chain(others).map(|value| with(key, value)));
        }
        let (mut n_taken, mut n_refused) = (0, 0);
        for value in values {
            let read = json(&value.to_string());
            assert_eq!(fits(&schema, &schema, &value), read.is_ok(), "{value}: {read:?}");
            if read.is_ok() { n_taken += 1 } else { n_refused += 1 }
        }
        assert!(n_taken > 20 && n_refused > 100, "{n_taken}, {n_refused}");
        let keys: Vec<&String> =
            schema["$defs"]["server"]["properties"].as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), KEYS.len());
    }
}
