//! The documented statuses of volumes and snapshots, spelled as the documents spell them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Violation};

macro_rules! statuses {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$doc])*
        // The numbers are on disk, never renumber.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant = $code,)*
        }

        impl $name {
            /// Every status, in the documents' order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The documented spelling.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
            pub(super) const fn code(self) -> u8 {
                self as u8
            }
            pub(super) fn from_code(code: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|s| s.code() == code)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                let known = Self::ALL.iter().copied().find(|s| s.as_str() == text);
                known.ok_or_else(|| Error::invalid("status", Violation::StatusFilter, format!("{text:?} is no documented status")))
            }
        }
    };
}

statuses! {
    /// Status of a volume. The engine finishes what it does before it answers, so that only `available`,
    /// `in-use` and error statuses are ever seen; the others are there for the documented dialects.
    VolumeStatus {
        /// Being created.
        Creating = 1, "creating";
        /// At home: not attached, ready for everything.
        Available = 2, "available";
        /// Attached at least once.
        InUse = 3, "in-use";
        /// Its creation failed.
        Error = 4, "error";
        /// An attachment is being made.
        Attaching = 5, "attaching";
        /// An attachment is being ended.
        Detaching = 6, "detaching";
        /// Being extended.
        Extending = 7, "extending";
        /// An extension failed.
        ErrorExtending = 8, "error_extending";
        /// A backup runs.
        BackingUp = 9, "backing-up";
        /// A backup is being restored into it.
        RestoringBackup = 10, "restoring-backup";
        /// A restore failed.
        ErrorRestoring = 11, "error_restoring";
        /// Being rolled back.
        Rollbacking = 12, "rollbacking";
        /// A rollback failed after it began: roll back again, or delete.
        ErrorRollbacking = 13, "error_rollbacking";
        /// Being exported to an image.
        Uploading = 14, "uploading";
        /// Being filled from an image.
        Downloading = 15, "downloading";
        /// Being deleted.
        Deleting = 16, "deleting";
        /// A delete failed.
        ErrorDeleting = 17, "error_deleting";
        /// Waits to be taken over by another owner.
        AwaitingTransfer = 18, "awaiting-transfer";
    }
}

statuses! {
    /// Status of a snapshot. As with volumes, transient ones are there for the dialects.
    SnapshotStatus {
        /// Being made.
        Creating = 1, "creating";
        /// Ready for everything.
        Available = 2, "available";
        /// Its volume is being rolled back to it.
        Rollbacking = 3, "rollbacking";
        /// Its creation failed: delete it.
        Error = 4, "error";
        /// A delete failed.
        ErrorDeleting = 5, "error_deleting";
        /// Being deleted.
        Deleting = 6, "deleting";
        /// A backup reads it.
        BackingUp = 7, "backing-up";
    }
}

impl SnapshotStatus {
    /// Whether a snapshot in this status may be deleted.
    pub(super) const fn allows_delete(self) -> bool {
        matches!(self, Self::Available | Self::Error)
    }
}

statuses! {
    /// Status of a backup. Only `available` and `error` are stored; the others are seen while a call runs.
    BackupStatus {
        /// Being made.
        Creating = 1, "creating";
        /// Whole, and ready to be restored.
        Available = 2, "available";
        /// Not whole: its creation failed or was cut off, or its deletion was. Delete it.
        Error = 3, "error";
        /// Being restored or verified.
        Restoring = 4, "restoring";
        /// Being deleted.
        Deleting = 5, "deleting";
        /// A restore failed. Never seen here: a restore does not change the backup.
        ErrorRestoring = 6, "error_restoring";
    }
}

impl BackupStatus {
    /// Whether a record may say this.
    pub(super) const fn is_stored(self) -> bool {
        matches!(self, Self::Available | Self::Error)
    }
}

impl VolumeStatus {
    /// Whether it says that something failed.
    pub const fn is_error(self) -> bool {
        use VolumeStatus as S;
        matches!(
            self,
            S::Error | S::ErrorExtending | S::ErrorRestoring | S::ErrorRollbacking | S::ErrorDeleting
        )
    }

    /// Whether a copy of a volume in this status may be made.
    pub(super) const fn allows_clone(self) -> bool {
        matches!(self, Self::Available | Self::InUse)
    }

    /// Whether a volume in this status, not attached, may be deleted.
    pub(super) const fn allows_delete(self) -> bool {
        use VolumeStatus as S;
        matches!(self, S::Available | S::Error | S::ErrorExtending | S::ErrorRestoring | S::ErrorRollbacking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_survives_its_text_and_its_number() {
        assert_eq!((VolumeStatus::ALL.len(), SnapshotStatus::ALL.len()), (18, 7));
        for s in VolumeStatus::ALL {
            assert_eq!(s.to_string().parse::<VolumeStatus>().unwrap(), *s);
            assert_eq!(VolumeStatus::from_code(s.code()), Some(*s));
        }
        for s in SnapshotStatus::ALL {
            assert_eq!(s.to_string().parse::<SnapshotStatus>().unwrap(), *s);
            assert_eq!(SnapshotStatus::from_code(s.code()), Some(*s));
        }
        assert!("in_use".parse::<VolumeStatus>().is_err());
        assert_eq!((VolumeStatus::from_code(0), SnapshotStatus::from_code(8)), (None, None));
    }
}
