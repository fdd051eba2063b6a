//! Reads JSON as the manifest means it: objects are objects, names are strings, lists have their limits.
//!
//! serde's derived code takes more: an array of a struct's fields in order, `{"bios": null}` for `"bios"`, lists of any
//! length. Whoever checks a manifest with another JSON library would not, so it would be two things to two readers.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::FormatError;

const MAX_REASON_CHARS: usize = 300;

/// Reads one JSON object of UTF-8, with nothing but white space around it.
pub(super) fn read<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, FormatError> {
    // Checked as a whole, since the parser does not look into strings it has no field for.
    let text = std::str::from_utf8(bytes).map_err(|error| FormatError::Json {
        what,
        reason: format!("byte {} is not UTF-8", error.valid_up_to()),
    })?;
    match serde_json::from_str::<Object<T>>(text) {
        Ok(Object(value)) => Ok(value),
        Err(error) => Err(FormatError::Json { what, reason: safe_reason(&error.to_string()) }),
    }
}

/// The parser's reason, fit for a terminal: it may quote the text it refuses as it is and in full.
fn safe_reason(text: &str) -> String {
    let mut reason = String::new();
    for character in text.chars().take(MAX_REASON_CHARS) {
        match character {
            '"' | '\'' | '\\' => reason.push(character),
            _ => reason.extend(character.escape_debug()),
        }
    }
    if text.chars().nth(MAX_REASON_CHARS).is_some() {
        reason.push('…');
    }
    reason
}

pub(super) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Object::deserialize(from).map(|Object(value)| value)
}

pub(super) fn optional_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::deserialize(from)?.map(|Object(value)| value))
}

/// An enum without fields, from its name.
pub(super) fn name<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(from)?.into_deserializer())
}

/// An enum without fields from its name, or nothing from `null`.
pub(super) fn optional_name<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    let name: Option<String> = Option::deserialize(from)?;
    name.map(|name| T::deserialize(name.into_deserializer())).transpose()
}

pub(super) fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(ListVisitor::<Object<T>, T, MAX>(|Object(value)| value, PhantomData))
}

pub(super) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    from.deserialize_seq(ListVisitor::<T, T, MAX>(|value| value, PhantomData))
}

struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// Reads elements as `E` and keeps them as `T`.
struct ListVisitor<E, T, const MAX: usize>(fn(E) -> T, PhantomData<E>);

impl<'de, E: Deserialize<'de>, T, const MAX: usize> Visitor<'de> for ListVisitor<E, T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = from.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(self.0(element));
        }
        Ok(list)
    }
}
