//! CBS requests out of arbitrary bytes.

use serde_json::Value;
use snapvol::Limits;
use snapvol::dialect::{self, Config};

use super::Store;
use super::random::{Shape, request as request_of, says};

const SHAPE: Shape = Shape {
    path: "/v2/index.php",
    actions: &[
        ("DescribeSnapshots", &[]),
        ("CreateSnapshot", &["storageId"]),
        ("ModifySnapshot", &["snapshotId", "snapshotName"]),
        ("ApplySnapshot", &["snapshotId", "storageId"]),
        ("DeleteSnapshot", &["snapshotIds"]),
        ("Describe", &[]),
        ("", &[]),
    ],
    project: ("projectId", &["0", "1", "100"]),
    keys: &[
        "storageId",
        "snapshotId",
        "snapshotName",
        "storageIds",
        "snapshotIds",
        "projectId",
        "diskType",
        "limit",
        "offset",
        "Action",
        "Region",
    ],
    values: &[
        "root",
        "data",
        "0",
        "1",
        "-1",
        "100",
        "101",
        "x",
        "é",
        "\"",
        "[",
        "[\"a\"]",
        "18446744073709551616",
    ],
};

/// A store with three disks and a snapshot of each, whose quotas keep it small.
pub(crate) fn store() -> Store {
    let config = Config::new().cbs_limits(Limits::cbs().snapshots_per_volume(Some(4)));
    Store { config, ..Store::with_three_disks() }
}

/// One request out of arbitrary bytes. Never a panic, an answer that is no JSON, or a fault of ours; nothing of a
/// project that was not asked for; and whatever is refused leaves no trace. Returns what was answered, and the code.
pub(crate) fn one_request(store: &Store, bytes: &[u8], before: &mut String) -> Option<(String, i64)> {
    let request = request_of(store, &SHAPE, bytes)?;
    if request.uri().path() != SHAPE.path {
        return None;
    }
    let answer = dialect::handle(&store.pool, &store.config, &request);
    assert_eq!(answer.status(), 200);
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    let code = answer["code"].as_i64().unwrap();
    assert_ne!(code, 6000, "{request:?} {answer}");
    let after = store.face();
    if code != 0 {
        assert_eq!(*before, after, "a refused call left a trace: {request:?} {answer}");
        assert!(answer["codeDesc"].is_string() && !answer["message"].as_str().unwrap().is_empty());
    }
    *before = after;
    for project in [0, 1, 100] {
        for info in answer["snapshotSet"].as_array().into_iter().flatten() {
            let named = says(&request, "projectId", &project.to_string());
            assert!(!named || info["projectId"] == project, "{request:?} {answer}");
        }
    }
    let kind = ["totalCount", "snapshotId", "detail"].into_iter().find(|key| answer.get(key).is_some());
    Some((kind.unwrap_or("").to_owned(), code))
}
