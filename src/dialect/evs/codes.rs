//! Refusals as EVS words them: a status, the key that names the kind, a code of the documents and a message.
//!
//! Where the documents have no code (a method, a feature, a body that is too large) the status stands in its place.

use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::dialect::call::json;
use crate::error::{Error, StateRule, Violation};

/// A row of the documents' table of codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Code {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: &'static str,
}

macro_rules! codes {
    ($($name:ident = $status:literal $code:literal $message:literal;)*) => {
        $(pub(super) const $name: Code = Code { status: $status, code: $code, message: $message };)*
    };
}

codes! {
    TENANT = 400 "EVS.0001" "invalid tenant id!";
    NULL_VOLUME = 400 "EVS.1001" "null volume!";
    NAME = 400 "EVS.1003" "invalid volume name!";
    DESCRIPTION = 400 "EVS.1004" "invalid volume description!";
    METADATA_SIZE = 400 "EVS.1005" "size of metadata is too large!";
    NOTHING = 400 "EVS.1007" "volume name and description can not both be empty!";
    CREATE = 400 "EVS.1009" "invalid volumeForCreate!";
    SIZE = 400 "EVS.1010" "invalid volume size!";
    EXTEND = 400 "EVS.1011" "null extendVolumeReq!";
    NOT_LARGER = 400 "EVS.1015" "new volume Size must be greater than old Size!";
    SOURCES = 400 "EVS.1016" "Invalid input received: May specify only one of imageRef, snapshot_id, backup_id!";
    TYPE = 400 "EVS.1018" "Type conversion error , parameter type is unexpected";
    VOLUME_TYPE = 400 "EVS.1020" "invalid volume type!";
    COUNT = 400 "EVS.1021" "the quantity of volume is invalid!";
    BACKUP_SIZE = 400 "EVS.1022" "the size param is less than backup size!";
    STATUS_FILTER = 400 "EVS.1031" "invalid resources status!";
    ZONE = 400 "EVS.1036" "invalid availability zone!";
    SORT_KEY = 400 "EVS.1039" "invalid sort_key!";
    SORT_DIR = 400 "EVS.1040" "invalid sort_dir!";
    ZONE_FILTER = 400 "EVS.1041" "invalid filter availablity-zone!";
    SOURCE_METADATA = 400 "EVS.1043" "encrypt and cmk and passthrougth in metadata is not support when create volume from snapshot or image!";
    BACKUP_STATUS = 400 "EVS.1044" "backup status must be available when create a volume from it!";
    DELETE_VOLUME = 400 "EVS.1046" "volume status must be available, error, error_extending, error_restoring, error_rollbacking when delete volume!";
    DELETE_SNAPSHOT = 400 "EVS.1047" "snapshot status must be available or error when delete snapshot!";
    BACKUP_ZONE = 400 "EVS.1049" "available-zone is not equal to backup available-zone!";
    BACKUP_COUNT = 400 "EVS.1051" "can not batch create volume from backup!";
    SHAREABLE = 400 "EVS.1054" "invalid shareable parameter!";
    PASSTHROUGH = 400 "EVS.1057" "invalid hw:passthrough in metadata!";
    METADATA_FILTER = 400 "EVS.1058" "invalid metadata filter!";
    FULL_CLONE = 400 "EVS.1063" "invalid full_clone in metadata!";
    EXTEND_STATUS = 400 "EVS.1064" "volume status must be available or in-use when extending!";
    EXTEND_SHARED = 400 "EVS.1065" "multiattach volume status must be available when extending!";
    EXTEND_SERVER = 400 "EVS.1066" "status of ECS or BMS does not support volume online extension!";
    ENCRYPTION = 400 "EVS.2041" "The encrypt Param is invalid!";
    SNAPSHOT_STATUS = 400 "EVS.2043" "The status of snapshot is not available or backing-up.";
    SOURCE_ZONE = 400 "EVS.2054" "Cannot create volume from snapshot as the az is invalid!";
    LOCKED = 400 "EVS.2068" "operation failed because of volume be locked";
    SHARED_IMAGE = 400 "EVS.2094" "system image is not support to create Multiattach/shareable volume !";
    SOURCE_TYPE = 400 "EVS.2096" "Target volumeType[%s] is not matched with snapshot[%s] !";
    BACKING_UP = 400 "EVS.2130" "Volume is backing-up, forbidden deleting!";
    LIMIT_MOST = 400 "EVS.2142" "invalid filter limit, can not greater than 1000.";
    BODY = 400 "EVS.5400" "Malformed request body.";
    URL = 400 "EVS.5400" "Malformed request url.";
    MISMATCH = 400 "EVS.5400" "Request body and URI mismatch.";
    IMAGE_REF = 400 "EVS.5400" "Invalid imageRef provided.";
    STATUS = 400 "EVS.5400" "Must specify a valid status.";
    OFFSET = 400 "EVS.5400" "offset param must be an integer.";
    LIMIT = 400 "EVS.5400" "limit param must be an integer.";
    LIMIT_POSITIVE = 400 "EVS.5400" "limit param must be positive.";
    POLICY = 403 "EVS.5403" "Policy check failed.";
    NOT_FOUND = 404 "EVS.5404" "Resource(Volume, Snapshot, Backup .etc) cound not be found.";
    METHOD = 405 "405" "This method is not allowed here.";
    TOO_LARGE = 413 "413" "The request body is too large.";
    QUOTA = 413 "EVS.5413" "Insufficient volume quota.";
    INTERNAL = 500 "EVS.5500" "Internal server error.";
    UNSUPPORTED = 501 "501" "This is not offered.";
    UNAVAILABLE = 503 "EVS.5503" "Service unavailable.";
}

/// Why a request is not served.
#[derive(Debug)]
pub(super) struct Refusal {
    code: Code,
    detail: String,
    /// The methods that are served in the place of the one that was tried.
    allowed: Option<&'static str>,
}

/// What goes under the one key of an error body.
#[derive(Serialize)]
struct Fault {
    message: String,
    code: &'static str,
}

impl Refusal {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), allowed: None }
    }

    /// For a resource that serves other methods only.
    pub(super) fn method(allowed: &'static str) -> Self {
        Self { allowed: Some(allowed), ..Self::new(METHOD, format!("allowed here: {allowed}")) }
    }

    pub(super) fn path(path: &str) -> Self {
        Self::new(NOT_FOUND, format!("nothing is served at {path}"))
    }

    pub(super) fn not_found(kind: &str, id: &str) -> Self {
        Self::new(NOT_FOUND, format!("no {kind} {id}"))
    }

    pub(super) fn answer(self) -> Response<Vec<u8>> {
        let Code { status, code, message } = self.code;
        let allowed = self.allowed.map(HeaderValue::from_static);
        let message =
            if self.detail.is_empty() { message.into() } else { format!("{message}: {}", self.detail) };
        let fault = serde_json::to_value(Fault { message, code }).unwrap_or(Value::Null);
        let body = Map::from_iter([(key(status).to_owned(), fault)]);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = json(status, &body);
        answer.headers_mut().extend(allowed.map(|methods| (header::ALLOW, methods)));
        answer
    }

    /// The same, for a call about snapshots: their texts have no code of their own.
    pub(super) fn about_a_snapshot(mut self) -> Self {
        if self.code == NAME || self.code == DESCRIPTION {
            self.code = BODY;
        }
        self
    }
}

/// The kind of error that goes with a status.
fn key(status: u16) -> &'static str {
    match status {
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        413 => "overLimit",
        500 => "computeFault",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "badRequest",
    }
}

/// What the native rules say, in the words of EVS.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::InvalidArgument { rule, field, .. } => argument(*rule, field),
            Error::InvalidState { object, status, op, rule, .. } => state(object, status, op, *rule),
            Error::NotFound { .. } => NOT_FOUND,
            Error::AlreadyExists { .. } => STATUS,
            Error::HasSnapshots { .. } => BODY,
            Error::LimitExceeded { .. } | Error::OutOfSpace { .. } => QUOTA,
            Error::Busy { .. } => LOCKED,
            Error::ReadOnly { .. } => POLICY,
            Error::Unsupported(_) => UNSUPPORTED,
            Error::Locked
            | Error::Closed
            | Error::Cancelled { .. }
            | Error::OutOfMemory { .. }
            | Error::Target { .. } => UNAVAILABLE,
            Error::Refused { .. } => BODY,
            Error::Corrupt(_) | Error::Io { .. } | Error::Poisoned => INTERNAL,
        };
        // What is wrong inside is the operator's business.
        let detail = if code == INTERNAL { String::new() } else { error.to_string() };
        Self::new(code, detail)
    }
}

fn argument(rule: Violation, field: &str) -> Code {
    match rule {
        Violation::Malformed
        | Violation::Missing
        | Violation::Metadata
        | Violation::ReservedName
        | Violation::Range
        | Violation::Id
        | Violation::Ambiguous
        | Violation::Page
        | Violation::Filter => BODY,
        Violation::WrongType => TYPE,
        Violation::NothingToChange => NOTHING,
        Violation::Project => TENANT,
        Violation::TooLong if field == "name" => NAME,
        Violation::TooLong if field == "description" => DESCRIPTION,
        Violation::TooLong => BODY,
        Violation::MetadataTooLarge => METADATA_SIZE,
        Violation::Encryption => ENCRYPTION,
        Violation::Passthrough => PASSTHROUGH,
        Violation::FullClone => FULL_CLONE,
        Violation::SourceMetadata => SOURCE_METADATA,
        Violation::Size | Violation::BelowSource => SIZE,
        Violation::BelowBackup => BACKUP_SIZE,
        Violation::NotLarger => NOT_LARGER,
        Violation::SeveralSources => SOURCES,
        Violation::Count => COUNT,
        Violation::CountFromBackup => BACKUP_COUNT,
        Violation::VolumeType => VOLUME_TYPE,
        Violation::VolumeTypeDiffers => SOURCE_TYPE,
        Violation::Zone => ZONE,
        Violation::ZoneDiffers => SOURCE_ZONE,
        Violation::BackupZone => BACKUP_ZONE,
        Violation::Shared => SHAREABLE,
        Violation::SharedImage => SHARED_IMAGE,
        Violation::SortKey => SORT_KEY,
        Violation::SortDirection => SORT_DIR,
        Violation::StatusFilter => STATUS_FILTER,
        Violation::ZoneFilter => ZONE_FILTER,
        Violation::MetadataFilter => METADATA_FILTER,
        Violation::NotSourceVolume => MISMATCH,
    }
}

fn state(object: &str, status: &str, op: &str, rule: StateRule) -> Code {
    match (object, op, rule) {
        ("volume", "delete", _) if status == "backing-up" => BACKING_UP,
        ("volume", "delete", _) => DELETE_VOLUME,
        ("volume", "extend", StateRule::Shared) => EXTEND_SHARED,
        ("volume", "extend", StateRule::Server) => EXTEND_SERVER,
        ("volume", "extend", _) => EXTEND_STATUS,
        ("snapshot", "delete", _) => DELETE_SNAPSHOT,
        ("snapshot", "clone", _) => SNAPSHOT_STATUS,
        ("image", ..) => IMAGE_REF,
        ("backup", ..) => BACKUP_STATUS,
        _ => STATUS,
    }
}
