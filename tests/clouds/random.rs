//! A request out of arbitrary bytes: mostly of the right shape, so that the bytes reach the rules, and at times of
//! any shape at all.

use http::{Method, Request, header};
use serde_json::{Value, json};
use snapvol::{SnapshotQuery, VolumeQuery};

use super::Store;

/// How the requests of one dialect look.
pub(crate) struct Shape {
    pub(crate) path: &'static str,
    /// Each with the keys without which it is refused.
    pub(crate) actions: &'static [(&'static str, &'static [&'static str])],
    /// The key by which a caller says that it sees one project alone, and some values of it.
    pub(crate) project: (&'static str, &'static [&'static str]),
    pub(crate) keys: &'static [&'static str],
    pub(crate) values: &'static [&'static str],
}

/// Bytes that are used up; zeroes follow.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> usize {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                usize::from(*first)
            }
            None => 0,
        }
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.next() % from.len()]
    }

    fn raw(&mut self) -> Vec<u8> {
        let count = self.next() % 24;
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn encoded(text: &[u8]) -> String {
    text.iter()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(*b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// Ids of what there is, in both forms.
fn ids(store: &Store) -> Vec<String> {
    let mut ids = Vec::new();
    for volume in store.pool.list_volumes(&VolumeQuery::new().limit(8)).unwrap().items {
        ids.extend([volume.id.to_string(), volume.alias]);
    }
    for snapshot in store.pool.list_snapshots(&SnapshotQuery::new().limit(8)).unwrap().items {
        ids.extend([snapshot.id.to_string(), snapshot.alias]);
    }
    ids.push("00000000-0000-0000-0000-000000000000".into());
    ids
}

/// The request that these bytes stand for; `None` where they make none that can be sent.
pub(crate) fn request(store: &Store, shape: &Shape, bytes: &[u8]) -> Option<Request<Vec<u8>>> {
    let bytes = &mut Bytes(bytes);
    let ids = ids(store);
    let mut pairs: Vec<(String, Vec<u8>)> = Vec::new();
    if bytes.next() % 16 != 0 {
        let (action, needs) = bytes.pick(shape.actions);
        pairs.push(("Action".into(), action.as_bytes().to_vec()));
        if bytes.next() % 4 != 0 {
            pairs.extend(needs.iter().map(|key| ((*key).to_owned(), bytes.pick(&ids).as_bytes().to_vec())));
        }
        if bytes.next() % 3 == 0 {
            let (key, values) = shape.project;
            pairs.push((key.to_owned(), bytes.pick(values).as_bytes().to_vec()));
        }
    }
    for _ in 0..bytes.next() % 7 {
        let key = match bytes.next() % 16 {
            0 => String::from_utf8_lossy(&bytes.raw()).into_owned(),
            n => {
                let key = *bytes.pick(shape.keys);
                if n > 2 { key.to_owned() } else { format!("{key}.{}", bytes.next() % 3) }
            }
        };
        let value = match bytes.next() % 8 {
            0 => bytes.raw(),
            1 => bytes.pick(shape.values).repeat(bytes.next() % 40).into_bytes(),
            2 | 3 => bytes.pick(shape.values).as_bytes().to_vec(),
            _ => bytes.pick(&ids).as_bytes().to_vec(),
        };
        pairs.push((key, value));
    }
    let form = |pairs: &[(String, Vec<u8>)]| -> String {
        let pairs =
            pairs.iter().map(|(key, value)| format!("{}={}", encoded(key.as_bytes()), encoded(value)));
        pairs.collect::<Vec<_>>().join("&")
    };
    let (method, kind, query, body) = match bytes.next() % 10 {
        0..4 => (Method::GET, "", form(&pairs), bytes.raw()),
        4..6 => (Method::POST, "application/x-www-form-urlencoded", String::new(), form(&pairs).into_bytes()),
        6..8 => {
            let (some, others) = pairs.split_at(bytes.next() % (pairs.len() + 1));
            let text = |value: &[u8]| Value::String(String::from_utf8_lossy(value).into_owned());
            let mut object = serde_json::Map::new();
            for (key, value) in others {
                let value = match bytes.next() % 8 {
                    0 => json!(bytes.next()),
                    1 => json!([text(value), text(value)]),
                    2 => json!({"a": [null, 1.5, true]}),
                    _ => text(value),
                };
                object.insert(key.clone(), value);
            }
            let body = serde_json::to_vec(&object).unwrap();
            (Method::POST, "application/json; charset=utf-8", form(some), body)
        }
        8 => (
            Method::POST,
            *bytes.pick(&["", "text/plain", "application/json", "a/b; \"", "multipart/form-data"]),
            form(&pairs),
            bytes.raw(),
        ),
        _ => (
            bytes.pick(&[Method::PUT, Method::DELETE, Method::HEAD, Method::PATCH]).clone(),
            "",
            form(&pairs),
            bytes.raw(),
        ),
    };
    let mut uri = format!("{}?{query}", shape.path);
    if bytes.next() % 32 == 31 {
        uri.push_str(&String::from_utf8_lossy(&bytes.raw()));
    }
    let mut request = Request::builder().method(method).uri(uri);
    if !kind.is_empty() {
        request = request.header("content-type", kind);
    }
    request.body(body).ok()
}

/// Whether the request says this of the key, in its query, its form or its JSON object.
pub(crate) fn says(request: &Request<Vec<u8>>, key: &str, value: &str) -> bool {
    let pair = format!("{key}={value}");
    let form = |text: &[u8]| text.split(|byte| *byte == b'&').any(|said| said == pair.as_bytes());
    let kind = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
    let body = request.body();
    form(request.uri().query().unwrap_or("").as_bytes())
        || *request.method() == Method::POST
            && match kind {
                b"" | b"application/x-www-form-urlencoded" => form(body),
                _ => serde_json::from_slice::<Value>(body).is_ok_and(|object| object[key] == value),
            }
}
