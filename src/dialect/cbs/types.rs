//! The answers, as the documents have them.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::pool;

/// What every answer begins with, and what a successful one says beyond it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Answer<T> {
    /// 0 for success. Read from a number or from its text.
    #[serde(deserialize_with = "number")]
    pub code: i64,
    /// What went wrong; empty for success.
    pub message: String,
    /// The code in a word; only in a failure.
    #[serde(rename = "codeDesc", default, skip_serializing_if = "Option::is_none")]
    pub code_desc: Option<String>,
    /// The rest; nothing in a failure.
    #[serde(flatten)]
    pub body: Option<T>,
}

impl<T> Answer<T> {
    pub(super) fn success(body: T) -> Self {
        Self { code: 0, message: String::new(), code_desc: None, body: Some(body) }
    }
}

/// Answers that say no more than whether it worked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Nothing {}

/// One page of snapshots.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DescribeSnapshots {
    /// How many match in all.
    pub total_count: u64,
    /// The page.
    pub snapshot_set: Vec<Snapshot>,
}

/// The snapshot that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct CreateSnapshot {
    /// Its id.
    pub snapshot_id: String,
}

/// What became of each id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeleteSnapshot {
    /// By the ids as they were given.
    pub detail: BTreeMap<String, Outcome>,
}

/// What became of one id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Outcome {
    /// 0 when it is deleted. Read from a number or from its text.
    #[serde(deserialize_with = "number")]
    pub code: i64,
    /// In words.
    pub message: String,
}

impl Outcome {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// A snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Snapshot {
    /// Its id.
    pub snapshot_id: String,
    /// The disk whose content it holds.
    pub storage_id: String,
    /// Its name; empty when it has none.
    pub snapshot_name: String,
    /// What it is doing.
    pub snapshot_status: SnapshotStatus,
    /// Number of the disk's project, 0 for the default one.
    pub project_id: u32,
    /// How much of it is made: 100 once it is created.
    pub percent: u8,
    /// Size of the disk at that moment, in GB.
    pub storage_size: u64,
    /// When it was created: `YYYY-MM-DD HH:MM:SS`. Read from that, or from seconds since 1970, in UTC then.
    #[serde(deserialize_with = "time")]
    pub create_time: String,
    /// The role of the disk.
    pub disk_type: DiskType,
}

/// Status of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SnapshotStatus {
    /// Ready for everything.
    Normal,
    /// Being made, or read by a backup.
    Creating,
    /// Its disk is being rolled back to it.
    Rollbacking,
}

impl SnapshotStatus {
    /// The native statuses that are shown; snapshots in any other are left out.
    pub(super) const SHOWN: [pool::SnapshotStatus; 4] = [
        pool::SnapshotStatus::Available,
        pool::SnapshotStatus::Creating,
        pool::SnapshotStatus::BackingUp,
        pool::SnapshotStatus::Rollbacking,
    ];

    pub(super) fn of(status: pool::SnapshotStatus) -> Option<Self> {
        use pool::SnapshotStatus as S;
        match status {
            S::Available => Some(Self::Normal),
            S::Creating | S::BackingUp => Some(Self::Creating),
            S::Rollbacking => Some(Self::Rollbacking),
            S::Error | S::ErrorDeleting | S::Deleting => None,
        }
    }

    pub(super) fn percent(self) -> u8 {
        if self == Self::Creating { 0 } else { 100 }
    }
}

/// The role of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DiskType {
    /// A server boots from it.
    Root,
    /// Any other.
    Data,
}

/// `YYYY-MM-DD HH:MM:SS` at an offset from UTC. Times that no calendar has become its last.
pub(super) fn printed(micros: u64, utc_offset_seconds: i32) -> String {
    let micros = i64::try_from(micros).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::MAX);
    let offset = jiff::tz::Offset::from_seconds(utc_offset_seconds).unwrap_or(jiff::tz::Offset::UTC);
    offset.to_datetime(time).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(i64),
    Text(String),
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    match NumberOrText::deserialize(from)? {
        NumberOrText::Number(number) => Ok(number),
        NumberOrText::Text(text) => text.parse().map_err(de::Error::custom),
    }
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match NumberOrText::deserialize(from)? {
        NumberOrText::Number(seconds) => {
            let seconds = u64::try_from(seconds).map_err(de::Error::custom)?;
            Ok(printed(seconds.saturating_mul(1_000_000), 0))
        }
        NumberOrText::Text(text) => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_at_the_offset_and_read_in_both_forms() {
        let sample = 1_463_515_128_000_000;
        assert_eq!(printed(sample, 0), "2016-05-17 19:58:48");
        assert_eq!(printed(sample + 999_999, 8 * 3600), "2016-05-18 03:58:48");
        for (micros, offset) in [(u64::MAX, 93_599), (0, -93_599), (i64::MAX as u64, 0), (u64::MAX, i32::MAX)]
        {
            assert!(printed(micros, offset).len() >= 19);
        }
        let read = |text: &str| time(&mut serde_json::Deserializer::from_str(text)).unwrap();
        assert_eq!(read("1463515128"), "2016-05-17 19:58:48");
        assert_eq!(read("\"2016-05-17 19:58:48\""), "2016-05-17 19:58:48");
    }

    #[test]
    fn an_answer_is_read_with_its_code_as_number_or_text() {
        let failed: Answer<CreateSnapshot> =
            serde_json::from_str(r#"{"code":"5100","message":"no","codeDesc":"OperationFailed"}"#).unwrap();
        assert_eq!((failed.code, failed.body), (5100, None));
        let made: Answer<CreateSnapshot> =
            serde_json::from_str(r#"{"code":0,"message":"","snapshotId":"snap-a"}"#).unwrap();
        assert_eq!(made.body.unwrap().snapshot_id, "snap-a");
    }

    #[test]
    fn the_statuses_that_are_shown_are_those_that_have_a_spelling() {
        for &status in pool::SnapshotStatus::ALL {
            assert_eq!(SnapshotStatus::of(status).is_some(), SnapshotStatus::SHOWN.contains(&status));
        }
    }
}
