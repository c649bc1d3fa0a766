//! What requests hold, with the types that the documents let a field have.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Map, Value};

use super::codes::{BODY, Code, Refusal, TYPE};

/// A whole number: decimals are cut off, a text of digits counts too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Whole(pub(super) i64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let whole = match &value {
            // Out of range in either direction stays out of the range of every field.
            Value::Number(n) => {
                n.as_i64().or(n.as_u64().map(|_| i64::MAX)).or(n.as_f64().map(|f| f.trunc() as i64))
            }
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        whole
            .map(Self)
            .ok_or_else(|| D::Error::custom(format!("a whole number is needed, {} given", kind(&value))))
    }
}

/// True or false, or the word for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flag(pub(super) bool);

impl Flag {
    pub(super) fn of_text(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "true" => Some(Self(true)),
            "false" => Some(Self(false)),
            _ => None,
        }
    }

    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(on) => Some(Self(*on)),
            Value::String(text) => Self::of_text(text),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::of(&value)
            .ok_or_else(|| D::Error::custom(format!("true or false is needed, {} given", kind(&value))))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "another number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The body as an object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    serde_json::from_slice(body).map_err(|e| Refusal::new(BODY, e.to_string()))
}

/// What stands under `name` in the body; `missing` is the code for when it is not there.
pub(super) fn envelope<T: DeserializeOwned>(body: &[u8], name: &str, missing: Code) -> Result<T, Refusal> {
    under(&mut object(body)?, name, missing)
}

pub(super) fn under<T: DeserializeOwned>(
    body: &mut Map<String, Value>,
    name: &str,
    missing: Code,
) -> Result<T, Refusal> {
    match body.remove(name) {
        None | Some(Value::Null) => Err(Refusal::new(missing, format!("{name:?} is needed"))),
        Some(value @ Value::Object(_)) => typed(value),
        Some(other) => Err(Refusal::new(BODY, format!("{name:?} is an object, {} given", kind(&other)))),
    }
}

pub(super) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    serde_json::from_value(value).map_err(|e| Refusal::new(TYPE, e.to_string()))
}

/// Metadata: text to text. A null is not a text, though it has the right to stand in JSON.
pub(super) type Metadata = BTreeMap<String, Option<String>>;

pub(super) fn metadata(given: Option<Metadata>) -> Result<Option<BTreeMap<String, String>>, Refusal> {
    let Some(given) = given else { return Ok(None) };
    let pairs = given.into_iter().map(|(key, value)| match value {
        Some(value) => Ok((key, value)),
        None => Err(Refusal::new(BODY, format!("the value of metadata key {key:?} is null"))),
    });
    pairs.collect::<Result<_, _>>().map(Some)
}
