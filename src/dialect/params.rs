//! The parameters of a CBS or UCloud request: from its query and, of a `POST`, from its form or JSON object.
//!
//! Nothing is cut off or guessed: a parameter that is there twice with different values, or that is not text where
//! text belongs, is refused when it is asked for. Parameters that nobody asks for are not looked at. An array is
//! `Key.0=..&Key.1=..` from any base and with gaps, or `Key=..` once or several times, or a JSON array.

use std::collections::BTreeMap;

use http::{Method, header};
use serde_json::Value;

use crate::error::{Error, Result, Violation};

use super::call::{Call, pairs};

/// Most values of one array: what one request can make the pool look at is bounded.
pub(super) const MAX_VALUES: usize = 1000;
/// Most items in a page, and how many there are in one when nothing is said.
pub(super) const MAX_LIMIT: i64 = 100;
const DEFAULT_LIMIT: i64 = 20;

/// One value, as given.
#[derive(Clone, PartialEq, Debug)]
enum Given {
    Json(Value),
    /// A query or form had bytes that are no text.
    NotText,
}

/// What a request says, by key.
#[derive(Debug, Default)]
pub(super) struct Params {
    given: BTreeMap<String, Vec<Given>>,
}

fn malformed(field: &'static str, why: impl Into<String>) -> Error {
    Error::invalid(field, Violation::Malformed, why)
}

fn wrong(field: &'static str, why: impl Into<String>) -> Error {
    Error::invalid(field, Violation::WrongType, why)
}

impl Params {
    /// The query, and the body of a `POST`: a form, or a JSON object where the dialect knows that.
    pub(super) fn of(call: &Call<'_>, knows_json: bool) -> Result<Self> {
        let mut params = Self::default();
        params.form(call.query.iter().cloned());
        match *call.method {
            Method::GET => {}
            Method::POST => {
                let kind = match call.headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str()) {
                    None => "",
                    Some(Ok(kind)) => kind.split(';').next().unwrap_or("").trim(),
                    Some(Err(_)) => "?",
                };
                if knows_json && kind.eq_ignore_ascii_case("application/json") {
                    params.json(call.body)?;
                } else if kind.is_empty() || kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
                    params.form(pairs(call.body));
                } else {
                    let known = if knows_json { "a form or JSON" } else { "a form" };
                    return Err(malformed(
                        "body",
                        format!("the content type must be {known}, {kind:?} given"),
                    ));
                }
            }
            ref other => {
                return Err(malformed("method", format!("requests are made by GET or POST, {other} given")));
            }
        }
        Ok(params)
    }

    fn form(&mut self, pairs: impl IntoIterator<Item = (String, String)>) {
        for (key, value) in pairs {
            // What the decoder puts in the place of bytes that are no text must not be taken for what was meant.
            let text = !value.contains(char::REPLACEMENT_CHARACTER);
            let value = if text { Given::Json(Value::String(value)) } else { Given::NotText };
            self.given.entry(key).or_default().push(value);
        }
    }

    fn json(&mut self, body: &[u8]) -> Result<()> {
        let object: BTreeMap<String, Value> =
            serde_json::from_slice(body).map_err(|e| malformed("body", format!("no JSON object: {e}")))?;
        for (key, value) in object {
            if !value.is_null() {
                self.given.entry(key).or_default().push(Given::Json(value));
            }
        }
        Ok(())
    }

    fn one(&self, key: &'static str) -> Result<Option<&Value>> {
        let Some([first, rest @ ..]) = self.given.get(key).map(Vec::as_slice) else { return Ok(None) };
        if rest.iter().any(|other| other != first) {
            return Err(malformed(key, "it is given twice, with different values"));
        }
        match first {
            Given::Json(value) => Ok(Some(value)),
            Given::NotText => Err(malformed(key, "it is not UTF-8")),
        }
    }

    /// A text, if it is given.
    pub(super) fn text(&self, key: &'static str) -> Result<Option<&str>> {
        match self.one(key)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(wrong(key, "a string is needed")),
        }
    }

    /// A text that says something, if it is given.
    pub(super) fn filled(&self, key: &'static str) -> Result<Option<&str>> {
        Ok(self.text(key)?.filter(|text| !text.is_empty()))
    }

    /// A text that has to be there, and to say something.
    pub(super) fn need(&self, key: &'static str) -> Result<&str> {
        self.filled(key)?.ok_or_else(|| missing(key))
    }

    /// Several such texts. Whether each is a text is asked before whether it is there.
    pub(super) fn need_all<const N: usize>(&self, keys: [&'static str; N]) -> Result<[&str; N]> {
        for key in keys {
            self.text(key)?;
        }
        let mut texts = [""; N];
        for (text, key) in texts.iter_mut().zip(keys) {
            *text = self.need(key)?;
        }
        Ok(texts)
    }

    /// A whole number, if it is given.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<i64>> {
        let number = match self.one(key)? {
            None => return Ok(None),
            Some(Value::String(text)) => text.parse().ok(),
            Some(value) => value.as_i64(),
        };
        number.map(Some).ok_or_else(|| wrong(key, "a whole number is needed"))
    }

    /// The texts of an array in their order; `None` when there is none, or an empty JSON array.
    pub(super) fn list(&self, key: &'static str) -> Result<Option<Vec<String>>> {
        let mut values = Vec::new();
        for given in self.given.get(key).into_iter().flatten() {
            take(key, given, &mut values)?;
        }
        let prefix = format!("{key}.");
        let mut numbered = Vec::new();
        for (name, given) in self.given.range(prefix.clone()..) {
            let Some(index) = name.strip_prefix(&prefix) else { break };
            let index: u64 = index.parse().map_err(|_| wrong(key, "an array is Key.0=..&Key.1=.."))?;
            numbered.push((index, given));
        }
        numbered.sort_by_key(|(index, _)| *index);
        for given in numbered.into_iter().flat_map(|(_, given)| given) {
            take(key, given, &mut values)?;
        }
        if values.len() > MAX_VALUES {
            let why = format!("at most {MAX_VALUES} values are allowed, {} given", values.len());
            return Err(Error::invalid(key, Violation::Range, why));
        }
        Ok((!values.is_empty()).then_some(values))
    }

    /// Most items of the page, and how many to skip.
    pub(super) fn page(&self, limit: &'static str, offset: &'static str) -> Result<(u32, u64)> {
        let items = self.number(limit)?.unwrap_or(DEFAULT_LIMIT);
        let skip = self.number(offset)?.unwrap_or(0);
        let skip = u64::try_from(skip).map_err(|_| {
            Error::invalid(offset, Violation::Page, format!("it is at least 0, {skip} given"))
        })?;
        match u32::try_from(items) {
            Ok(items @ 1..) if i64::from(items) <= MAX_LIMIT => Ok((items, skip)),
            _ => {
                let why = format!("a page has 1 to {MAX_LIMIT} items, {items} given");
                Err(Error::invalid(limit, Violation::Page, why))
            }
        }
    }
}

/// A parameter that has to be there.
pub(super) fn missing(key: &'static str) -> Error {
    Error::invalid(key, Violation::Missing, "it is needed")
}

/// Adds what one value of an array says.
fn take(key: &'static str, given: &Given, values: &mut Vec<String>) -> Result<()> {
    let texts = |value: &Value, values: &mut Vec<String>| match value {
        Value::String(text) => {
            values.push(unquoted(text).to_owned());
            Ok(())
        }
        _ => Err(wrong(key, "an array of strings is needed")),
    };
    match given {
        Given::NotText => Err(malformed(key, "it is not UTF-8")),
        Given::Json(Value::Array(all)) => all.iter().try_for_each(|value| texts(value, values)),
        Given::Json(Value::String(text)) if text.starts_with('[') => {
            let all: Vec<String> = serde_json::from_str(text)
                .map_err(|e| wrong(key, format!("no JSON array of strings: {e}")))?;
            values.extend(all);
            Ok(())
        }
        Given::Json(value) => texts(value, values),
    }
}

/// The documents' examples put values of arrays in quotes, which are no part of them.
fn unquoted(text: &str) -> &str {
    let inner = |open, close| text.strip_prefix(open).and_then(|t| t.strip_suffix(close));
    inner('“', '”').or_else(|| inner('"', '"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(query: &str) -> Params {
        let mut params = Params::default();
        params.form(pairs(query.as_bytes()));
        params
    }

    fn list(query: &str) -> Option<Vec<String>> {
        of(query).list("K").unwrap()
    }

    #[test]
    fn an_array_is_read_in_every_form_that_clients_send() {
        let ab = Some(vec!["a".to_owned(), "b".to_owned()]);
        for query in [
            "K.0=a&K.1=b",
            "K.1=b&K.0=a",
            "K.1=a&K.20=b",
            "K.9=a&K.10=b",
            "K=a&K=b",
            "K=a&K.0=b",
            "K=[\"a\",\"b\"]",
            "K.0=“a”&K.1=\"b\"",
            "K.0=%E2%80%9Ca%E2%80%9D&K.1=b",
        ] {
            assert_eq!(list(query), ab, "{query}");
        }
        assert_eq!(list("K=[]&L.0=a&KK.0=b"), None);
        for query in ["K.x=a", "K.=a", "K.0.1=a", "K=[1]", "K=[", "K.0=%ff", "K.-1=a"] {
            assert!(of(query).list("K").is_err(), "{query}");
        }
        let many: String = (0..=MAX_VALUES).map(|n| format!("K.{n}=a&")).collect();
        assert!(of(&many).list("K").is_err());
    }

    #[test]
    fn a_scalar_is_given_once_and_is_what_it_has_to_be() {
        assert_eq!(of("K=a&K=a").text("K").unwrap(), Some("a"));
        for bad in ["K=a&K=b", "K=%ff", "K=a&K=%ff"] {
            assert!(of(bad).text("K").is_err(), "{bad}");
        }
        assert!(of("K=").need("K").is_err() && of("").need("K").is_err());
        assert_eq!(of("K=a&L=b").need_all(["K", "L"]).unwrap(), ["a", "b"]);
        let rule = |query: &str| match of(query).need_all(["K", "L"]) {
            Err(Error::InvalidArgument { rule, .. }) => rule,
            other => panic!("{other:?}"),
        };
        assert_eq!((rule("L=a"), rule("L=%ff")), (Violation::Missing, Violation::Malformed));
        for bad in ["K=", "K=1.5", "K=x", "K=99999999999999999999", "K= 1"] {
            assert!(of(bad).number("K").is_err(), "{bad}");
        }
        assert_eq!(of("K=-7").number("K").unwrap(), Some(-7));
        assert_eq!(of("").page("L", "O").unwrap(), (20, 0));
        assert_eq!(of("L=100&O=7").page("L", "O").unwrap(), (100, 7));
        for bad in ["L=0", "L=101", "L=-1", "O=-1", "L=x", "L=4294967297"] {
            assert!(of(bad).page("L", "O").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_json_object_has_types_and_no_depth_breaks_it() {
        let mut params = Params::default();
        params.json(br#"{"T":"t","N":5,"A":["a"],"B":true,"Z":null,"F":1.5}"#).unwrap();
        assert_eq!(params.text("T").unwrap(), Some("t"));
        assert_eq!(params.number("N").unwrap(), Some(5));
        assert_eq!(params.list("A").unwrap(), Some(vec!["a".to_owned()]));
        assert_eq!(params.text("Z").unwrap(), None);
        assert!(params.text("N").is_err() && params.number("F").is_err() && params.list("B").is_err());
        for bad in [
            "",
            "[]",
            "{",
            "{\"a\":1,}",
            "7",
            &"[".repeat(1 << 20),
            &format!("{{\"a\":{}", "[".repeat(1 << 20)),
        ] {
            assert!(Params::default().json(bad.as_bytes()).is_err());
        }
    }
}
