//! UCloud requests out of arbitrary bytes.

use serde_json::Value;
use snapvol::Limits;
use snapvol::dialect::{self, Config};

use super::Store;
use super::random::{Shape, request as request_of, says};

const SHAPE: Shape = Shape {
    path: "/",
    actions: &[
        ("CreateSnapshot", &["DiskID"]),
        ("DescribeSnapshot", &[]),
        ("RollbackSnapshot", &["DiskID", "SnapshotID"]),
        ("DeleteSnapshot", &["SnapshotID"]),
        ("ModifyNameAndRemark", &["ResourceID", "Name"]),
        ("DescribeDisk", &[]),
        ("", &[]),
    ],
    project: ("ProjectID", &["p", "q"]),
    keys: &[
        "DiskID",
        "SnapshotID",
        "SnapshotIDs",
        "ProjectIDs",
        "ProjectID",
        "Name",
        "Remark",
        "Type",
        "Keyword",
        "Limit",
        "Offset",
        "Region",
        "CompanyID",
        "ResourceID",
        "Action",
    ],
    values: &["p", "q", "0", "1", "-1", "100", "101", "x", "é", "\"", "[", "[\"a\"]", "Manual", "Automatic"],
};

/// A store with three disks and a snapshot of each, whose quotas keep it small.
pub(crate) fn store() -> Store {
    let config = Config::new().ucloud_limits(Limits::ucloud().snapshots_per_volume(Some(2)));
    Store { config, ..Store::with_three_disks() }
}

/// One request out of arbitrary bytes. Never a panic, an answer that is no JSON, or a fault of ours; nothing of a
/// project that was not asked for; and whatever is refused leaves no trace. Returns the action and the code.
pub(crate) fn one_request(store: &Store, bytes: &[u8], before: &mut String) -> Option<(String, i64)> {
    let request = request_of(store, &SHAPE, bytes)?;
    if request.uri().path() != SHAPE.path || (request.method() == "GET" && request.uri().query().is_none()) {
        return None;
    }
    // What the caller of one project must leave alone.
    let others = [("p", store.face_of("q")), ("q", store.face_of("p"))];
    let answer = dialect::handle(&store.pool, &store.config, &request);
    assert_eq!(answer.status(), 200);
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    let code = answer["RetCode"].as_i64().unwrap();
    assert_ne!(code, 1000, "{request:?} {answer}");
    let after = store.face();
    if code != 0 {
        assert_eq!(*before, after, "a refused call left a trace: {request:?} {answer}");
        assert!(!answer["Message"].as_str().unwrap().is_empty());
    }
    *before = after;
    for (project, other) in others {
        if says(&request, "ProjectID", project) {
            for info in answer["Infos"].as_array().into_iter().flatten() {
                assert_eq!(info["ProjectID"], project, "{request:?} {answer}");
            }
            assert!(other == store.face_of(["p", "q"][usize::from(project == "p")]), "{request:?} {answer}");
        }
    }
    Some((answer["Action"].as_str().unwrap().to_owned(), code))
}
