//! The shape of an EVS error, and the documents' table of codes.

use serde_json::Value;

/// The documents' table: status, code, message.
const TABLE: &str = include_str!("../golden/evs/error-codes.tsv");

/// The key that names the kind of error, for each status that is answered.
fn kind(status: u16) -> &'static str {
    match status {
        400 => "badRequest",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        413 => "overLimit",
        500 => "computeFault",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        other => panic!("no error has status {other}"),
    }
}

/// One key that goes with the status; below it a message, and a code as a text. A code of the table stands there with
/// this status, and the message begins as the table has it.
#[track_caller]
pub(crate) fn assert_fault(answer: (u16, &Value), status: u16, code: &str) {
    let (found, body) = answer;
    assert_eq!(found, status, "{body}");
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(body), [kind(status)], "{body}");
    let fault = &body[kind(status)];
    assert_eq!(keys(fault), ["code", "message"], "{body}");
    assert_eq!(fault["code"], code, "{body}");
    let message = fault["message"].as_str().unwrap();
    if !code.starts_with("EVS.") {
        assert_eq!(code, status.to_string());
        return;
    }
    let row = TABLE.lines().skip(1).any(|line| {
        let mut row = line.split('\t');
        row.next() == Some(&status.to_string()[..])
            && row.next() == Some(code)
            && row.next().is_some_and(|text| message.starts_with(text))
    });
    assert!(row, "not in the table: {status} {body}");
}
