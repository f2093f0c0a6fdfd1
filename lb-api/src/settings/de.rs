//! A serde deserializer over the tree of settings that knows the path of each value.
//!
//! `host/src/config/de.rs` does the same for configuration files. There are two because `lb-api` must not depend on the host and
//! works on the flat settings of the ABI; the host's works on a TOML tree with places. Keep the texts of their errors alike.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer as _, Visitor};
use serde::forward_to_deserialize_any;

use super::{Value, quoted};
use crate::error::Problem;

/// Why a value does not fit, and where it stands once that is known.
#[derive(Debug)]
pub(super) struct Error {
    pub(super) path: Option<String>,
    pub(super) text: String,
    /// The field that is missing in the table in whose name the error will be raised.
    missing: Option<&'static str>,
}

impl Error {
    fn at(self, path: &str) -> Self {
        Self { path: Some(self.path.unwrap_or_else(|| path.to_owned())), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing {
            Some(field) if self.path.is_none() => write!(f, "{field:?} {}", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Self {
        let text = text.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { path: None, text, missing: None }
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {}, found {}", in_words(expected), shown(found)))
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {}, found {}", in_words(expected), shown(found)))
    }

    fn invalid_length(len: usize, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found {len} elements"))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("unknown value {variant:?}{}", instead(variant, expected)))
    }

    fn missing_field(field: &'static str) -> Self {
        // The table puts its path in front.
        Self { path: None, text: "is missing".into(), missing: Some(field) }
    }
}

/// The type that serde expects, in words for operators.
fn in_words(expected: &dyn de::Expected) -> String {
    match expected.to_string().as_str() {
        "u8" => "an integer from 0 to 255".into(),
        "u16" => "an integer from 0 to 65535".into(),
        "u32" => "an integer from 0 to 4294967295".into(),
        "u64" | "u128" | "usize" => "an integer of 0 or more".into(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "an integer".into(),
        "f32" | "f64" => "a number".into(),
        "a map" => "a table".into(),
        "a sequence" => "an array".into(),
        other => other.strip_prefix("struct ").map_or_else(|| other.into(), |_| "a table".into()),
    }
}

/// A value as it stands in the file.
fn shown(found: de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Bool(it) => it.to_string(),
        de::Unexpected::Signed(it) => it.to_string(),
        de::Unexpected::Unsigned(it) => it.to_string(),
        de::Unexpected::Float(it) => format!("{it:?}"),
        de::Unexpected::Str(it) => format!("{it:?}"),
        de::Unexpected::Map => "a table".into(),
        de::Unexpected::Seq => "an array".into(),
        other => other.to_string(),
    }
}

/// The nearest known key, or all known keys.
fn instead(name: &str, known: &[&str]) -> String {
    let near = known.iter().map(|k| (distance(name, k), k)).min_by_key(|(distance, _)| *distance);
    match near {
        Some((distance, near)) if distance <= 1 + name.chars().count() / 4 => {
            format!(" (did you mean {near:?}?)")
        }
        Some(_) => {
            let all = known.iter().map(|k| format!("{k:?}")).collect::<Vec<_>>();
            format!(", expected one of {}", all.join(", "))
        }
        None => ", this module has none".into(),
    }
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let b = b.chars().collect::<Vec<_>>();
    let mut row = (0..=b.len()).collect::<Vec<_>>();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// One value and its path.
pub(super) struct Deserializer<'a> {
    value: &'a Value,
    path: String,
    /// Keys that no struct has: collected beside, so that reading goes on.
    unknown: &'a RefCell<Vec<Problem>>,
}

impl<'a> Deserializer<'a> {
    pub(super) fn new(value: &'a Value, unknown: &'a RefCell<Vec<Problem>>) -> Self {
        Self { value, path: String::new(), unknown }
    }

    fn key(&self, key: &str) -> String {
        let dot = if self.path.is_empty() { "" } else { "." };
        format!("{}{dot}{}", self.path, quoted(key))
    }

    fn located<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| match error.missing {
            Some(field) => error.at(&self.key(field)),
            None => error.at(&self.path),
        })
    }

    fn report_unknown(&self, key: &str, known: &[&str]) {
        let text = format!("unknown setting{}", instead(key, known));
        self.unknown.borrow_mut().push(Problem { path: self.key(key), text });
    }

    fn table<'de, V: Visitor<'de>>(
        &self,
        entries: &'a [(String, Value)],
        known: Option<&[&str]>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut taken = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            match known {
                Some(known) if !known.contains(&key.as_str()) => self.report_unknown(key, known),
                _ => taken.push((key, value)),
            }
        }
        visitor.visit_map(Entries { of: self, entries: taken.into_iter(), value: None })
    }

    fn any<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Table(entries) => self.table(entries, None, visitor),
            Value::Array(elements) => {
                visitor.visit_seq(Elements { of: self, elements: elements.iter(), idx: 0 })
            }
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(it) => visitor.visit_bool(*it),
        }
    }
}

impl<'de> de::Deserializer<'de> for Deserializer<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.located(self.any(visitor))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let read = match self.value {
            Value::Table(entries) => self.table(entries, Some(fields), visitor),
            _ => self.any(visitor),
        };
        self.located(read)
    }

    /// `()` stands for a table without keys.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let read = match self.value {
            Value::Table(entries) => {
                entries.iter().for_each(|(key, _)| self.report_unknown(key, &[]));
                visitor.visit_unit()
            }
            _ => self.any(visitor),
        };
        self.located(read)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let read = match self.value {
            Value::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            Value::Table(entries) if entries.len() == 1 => {
                let (name, value) = &entries[0];
                let inner = Deserializer { value, path: self.key(name), unknown: self.unknown };
                visitor.visit_enum(Variant { name, inner })
            }
            _ => Err(de::Error::custom("expected a name, or a table with one key")),
        };
        self.located(read)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf seq tuple tuple_struct map
        identifier ignored_any
    }
}

struct Entries<'a, 'd> {
    of: &'d Deserializer<'a>,
    entries: std::vec::IntoIter<(&'a String, &'a Value)>,
    value: Option<(&'a String, &'a Value)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let path = self.of.key(key);
        seed.deserialize(key.as_str().into_deserializer()).map(Some).map_err(|e: Error| e.at(&path))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let (key, value) =
            self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let path = self.of.key(key);
        let inner = Deserializer { value, path: path.clone(), unknown: self.of.unknown };
        // A `deserialize_with` may fail on a value that was read well.
        seed.deserialize(inner).map_err(|e| e.at(&path))
    }
}

struct Elements<'a, 'd> {
    of: &'d Deserializer<'a>,
    elements: std::slice::Iter<'a, Value>,
    idx: usize,
}

impl<'de> de::SeqAccess<'de> for Elements<'_, '_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(value) = self.elements.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.of.path, self.idx);
        self.idx += 1;
        seed.deserialize(Deserializer { value, path: path.clone(), unknown: self.of.unknown })
            .map(Some)
            .map_err(|e| e.at(&path))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.elements.len())
    }
}

/// A variant with something inside: `{ name = … }`.
struct Variant<'a> {
    name: &'a str,
    inner: Deserializer<'a>,
}

impl<'de, 'a> de::EnumAccess<'de> for Variant<'a> {
    type Error = Error;
    type Variant = Deserializer<'a>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Deserializer<'a>), Error> {
        Ok((seed.deserialize(self.name.into_deserializer())?, self.inner))
    }
}

impl<'de> de::VariantAccess<'de> for Deserializer<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        de::Deserialize::deserialize(self)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_any(self, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        de::Deserializer::deserialize_struct(self, "", fields, visitor)
    }
}
