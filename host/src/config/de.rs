//! A deserializer over a parsed TOML tree that can run again after an error.
//!
//! `toml`'s own deserializer stops at the first wrong value and returns a text. This one returns a typed error (place,
//! path, known keys), leaves out the values that earlier rounds found wrong, and only borrows the tree. So
//! [`super::read`] repeats it until no error is left, and one run reports all mistakes of a file.
//!
//! `lb-api/src/settings/de.rs` is the other deserializer of this repository. It reads a module's settings on the module's
//! side of the ABI: from the flat list of paths and values that `settings.rs` makes, without spans, and it stops at the
//! first mistake. It is part of the SDK, which depends on neither `toml` nor the host, so the two share no code.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::slice;
use std::str::FromStr;

use serde::Deserializer;
use serde::de::{
    self, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_spanned::de::{SpannedDeserializer, is_spanned};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{At, Span};

/// A value of the tree.
#[derive(Clone, Copy)]
pub(super) struct TreeNode<'de> {
    value: &'de Spanned<DeValue<'de>>,
    terms: &'de TreeTerms,
}

/// How a tree is read.
#[derive(Debug, Default)]
pub(super) struct TreeTerms {
    /// Values and keys that are not looked at.
    pub(super) left_out: HashSet<Span>,
    /// Texts that may also be read as a number or a boolean.
    pub(super) from_environment: HashSet<Span>,
    /// Texts with a secret of the environment, as they are shown.
    pub(super) shown: HashMap<Span, String>,
}

impl<'de> TreeNode<'de> {
    /// The tree's root.
    pub(super) fn new(value: &'de Spanned<DeValue<'de>>, terms: &'de TreeTerms) -> Self {
        Self { value, terms }
    }

    /// The value that the text of a variable stands for.
    fn meant<T: FromStr>(&self) -> Option<T> {
        let text = self.value.get_ref().as_str()?;
        self.terms.from_environment.contains(&self.value.span()).then_some(text)?.trim().parse().ok()
    }

    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.value.get_ref() {
            DeValue::String(text) => visitor.visit_str(text),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(integer) => visitor.visit_i64(integer),
                Err(_) => Err(de::Error::custom(format!("{integer} is too large for an integer"))),
            },
            DeValue::Float(float) => match float.as_str().parse::<f64>() {
                Ok(float) => visitor.visit_f64(float),
                Err(error) => Err(de::Error::custom(error)),
            },
            DeValue::Boolean(boolean) => visitor.visit_bool(*boolean),
            DeValue::Datetime(datetime) => visitor.visit_string(datetime.to_string()),
            DeValue::Array(array) => {
                visitor.visit_seq(TreeElements { left: array.iter(), terms: self.terms, next: 0 })
            }
            DeValue::Table(table) => visitor.visit_map(TreeEntries::new(table, self)),
        }
    }
}

impl<'de> Deserializer<'de> for TreeNode<'de> {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.visit(visitor).map_err(|error| error.at(self.value.span()))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        visitor.visit_some(self)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.meant() {
            Some(number) => visitor.visit_i64(number),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.meant() {
            Some(number) => visitor.visit_f64(number),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.meant() {
            Some(boolean) => visitor.visit_bool(boolean),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        // Dates are valid only in a module's settings, as strings. Elsewhere quotes were forgotten.
        match self.value.get_ref() {
            DeValue::Datetime(_) => {
                Err(<TreeError as de::Error>::invalid_type(Unexpected::Other("a date"), &visitor)
                    .at(self.value.span()))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        if is_spanned(name) {
            return visitor.visit_map(SpannedDeserializer::new(self, self.value.span()));
        }
        // Derived code would accept an array as the values of a table in the order of its fields.
        if self.value.get_ref().is_array() {
            return Err(
                <TreeError as de::Error>::invalid_type(Unexpected::Seq, &visitor).at(self.value.span())
            );
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, TreeError> for TreeNode<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

struct TreeElements<'de> {
    left: slice::Iter<'de, Spanned<DeValue<'de>>>,
    terms: &'de TreeTerms,
    next: usize,
}

impl<'de> SeqAccess<'de> for TreeElements<'de> {
    type Error = TreeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, TreeError> {
        for value in self.left.by_ref() {
            let index = self.next;
            self.next += 1;
            if !self.terms.left_out.contains(&value.span()) {
                let element = seed.deserialize(TreeNode { value, terms: self.terms });
                return element.map(Some).map_err(|error| error.below(TreeStep::Index(index)));
            }
        }
        Ok(None)
    }
}

type TreeEntry<'de> = (&'de Spanned<Cow<'de, str>>, &'de Spanned<DeValue<'de>>);

struct TreeEntries<'de> {
    left: std::vec::IntoIter<TreeEntry<'de>>,
    current: Option<TreeEntry<'de>>,
    table: TreeNode<'de>,
}

impl<'de> TreeEntries<'de> {
    fn new(entries: &'de DeTable<'de>, table: TreeNode<'de>) -> Self {
        let is_kept = |(key, value): &TreeEntry<'_>| {
            let left_out = &table.terms.left_out;
            !left_out.contains(&key.span()) && !left_out.contains(&value.span())
        };
        let mut entries: Vec<TreeEntry<'de>> = entries.iter().filter(is_kept).collect();
        // The order of the file, where `toml` keeps that of the alphabet.
        entries.sort_by_key(|(key, _)| key.at());
        Self { left: entries.into_iter(), current: None, table }
    }
}

impl<'de> MapAccess<'de> for TreeEntries<'de> {
    type Error = TreeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TreeError> {
        self.current = self.left.next();
        let Some((key, _)) = self.current else { return Ok(None) };
        let step = || TreeStep::Key { table: self.table.value.span(), key: key.to_string() };
        seed.deserialize(TreeKey(key)).map(Some).map_err(|error| error.at(key.span()).below(step()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, TreeError> {
        let (key, value) = self.current.take().expect("serde asks for a value after its key");
        let step = || TreeStep::Key { table: self.table.value.span(), key: key.to_string() };
        seed.deserialize(TreeNode { value, terms: self.table.terms }).map_err(|error| error.below(step()))
    }
}

#[derive(Clone, Copy)]
struct TreeKey<'de>(&'de Spanned<Cow<'de, str>>);

impl<'de> Deserializer<'de> for TreeKey<'de> {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        visitor.visit_str(self.0.get_ref())
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        if is_spanned(name) {
            return visitor.visit_map(SpannedDeserializer::new(self, self.0.span()));
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, TreeError> for TreeKey<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The mistake that ended one round.
#[derive(Debug)]
pub(super) struct TreeError {
    /// The wrong value or key.
    pub(super) span: Option<Span>,
    /// The path to it from the root.
    pub(super) path: Vec<TreeStep>,
    /// The kind of mistake.
    pub(super) fault: TreeFault,
}

/// One step from a table or an array to what is in it.
#[derive(Debug)]
pub(super) enum TreeStep {
    /// Into a key of the table at this span.
    Key { table: Span, key: String },
    /// Into an element of an array.
    Index(usize),
}

/// The kind of a mistake.
#[derive(Debug)]
pub(super) enum TreeFault {
    /// The key is unknown; these are the known ones.
    UnknownKey(&'static [&'static str]),
    /// Any other mistake, as text.
    Wrong(String),
}

impl TreeError {
    fn new(fault: TreeFault) -> Self {
        Self { span: None, path: Vec::new(), fault }
    }

    fn at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }

    fn below(mut self, step: TreeStep) -> Self {
        self.path.insert(0, step);
        self
    }
}

impl de::Error for TreeError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::new(TreeFault::Wrong(text.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = match expected.to_string().as_str() {
            "a sequence" => "an array".to_owned(),
            "a map" => "a table".to_owned(),
            "i64" => "an integer".to_owned(),
            other => other.to_owned(),
        };
        Self::custom(format!("expected {expected}, found {}", show(found)))
    }

    fn unknown_field(_: &str, known: &'static [&'static str]) -> Self {
        Self::new(TreeFault::UnknownKey(known))
    }
}

fn show(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(boolean) => format!("the boolean {boolean}"),
        Unexpected::Unsigned(integer) => format!("the integer {integer}"),
        Unexpected::Signed(integer) => format!("the integer {integer}"),
        Unexpected::Float(float) => format!("the float {float}"),
        Unexpected::Str(text) => format!("the string {text:?}"),
        Unexpected::Seq => "an array".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fault {
            TreeFault::UnknownKey(_) => f.write_str("unknown key"),
            TreeFault::Wrong(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for TreeError {}
