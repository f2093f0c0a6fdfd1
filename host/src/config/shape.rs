//! Shapes that several keys of the file have, and that serde does not derive.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use toml::Spanned;

/// `[[name]]`, any number of times.
#[derive(Debug)]
pub(super) struct Tables<T>(pub(super) Vec<Spanned<T>>);

/// A table whose keys are names of the operator's choice, in the order of the file.
#[derive(Debug)]
pub(super) struct Named<T>(pub(super) Vec<(Spanned<String>, Spanned<T>)>);

/// A string alone, or a table that says more.
#[derive(Debug)]
pub(super) enum Short<T> {
    /// The string.
    Text(String),
    /// The table.
    Table(T),
}

/// A value that can be switched off by `false`.
#[derive(Debug)]
pub(super) enum Switched<T> {
    /// `false`.
    Off,
    /// Anything else.
    On(Short<T>),
}

/// A valid value, for the error about another one.
pub(super) trait Expecting {
    /// "expected …".
    const EXPECTED: &str;
}

impl<T> Default for Tables<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Tables<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TablesVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for TablesVisitor<T> {
            type Value = Tables<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table in double brackets, one for each")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Tables<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(element) = elements.next_element()? {
                    all.push(element);
                }
                Ok(Tables(all))
            }
        }

        deserializer.deserialize_seq(TablesVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NamedVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for NamedVisitor<T> {
            type Value = Named<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Named<T>, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    all.push(entry);
                }
                Ok(Named(all))
            }
        }

        deserializer.deserialize_map(NamedVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de> + Expecting> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShortVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Expecting> Visitor<'de> for ShortVisitor<T> {
            type Value = Short<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Short<T>, E> {
                Ok(Short::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Short<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(entries)).map(Short::Table)
            }
        }

        deserializer.deserialize_any(ShortVisitor(PhantomData))
    }
}

impl<'de, T: Deserialize<'de> + Expecting> Deserialize<'de> for Switched<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchedVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + Expecting> Visitor<'de> for SwitchedVisitor<T> {
            type Value = Switched<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_bool<E: de::Error>(self, is_on: bool) -> Result<Switched<T>, E> {
                // On by what?
                if is_on { Err(E::invalid_value(Unexpected::Bool(true), &self)) } else { Ok(Switched::Off) }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Switched<T>, E> {
                Ok(Switched::On(Short::Text(text.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Switched<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(entries))
                    .map(|table| Switched::On(Short::Table(table)))
            }
        }

        deserializer.deserialize_any(SwitchedVisitor(PhantomData))
    }
}
