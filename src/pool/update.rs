//! What to change about a volume or a snapshot.

use std::collections::BTreeMap;

use crate::error::{Error, Result, Violation};

use super::limits::{Limits, check_metadata};
use super::records::Common;

macro_rules! update {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        #[non_exhaustive]
        #[must_use]
        pub struct $name {
            /// The new name; `Some(None)` removes it.
            pub name: Option<Option<String>>,
            /// The new description; `Some(None)` removes it.
            pub description: Option<Option<String>>,
            /// The new metadata, in place of all there was.
            pub metadata: Option<BTreeMap<String, String>>,
            /// Metadata keys that go. Each has to be there, or the update is refused with `NotFound`.
            pub remove_metadata: Vec<String>,
            /// Metadata pairs that are added, or take the place of those with the same key; the last step.
            pub merge_metadata: BTreeMap<String, String>,
        }

        impl $name {
            /// Changes nothing yet.
            pub fn new() -> Self {
                Self::default()
            }
            /// A new name, within the limits of the profile; `None` removes it.
            pub fn name(mut self, name: Option<String>) -> Self {
                self.name = Some(name);
                self
            }
            /// A new description, within the limits of the profile; `None` removes it.
            pub fn description(mut self, description: Option<String>) -> Self {
                self.description = Some(description);
                self
            }
            /// New metadata in place of all there was: keys and values of at most 255 bytes, 1 MiB in all.
            pub fn metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
                self.metadata = Some(metadata);
                self
            }
            /// Metadata pairs to add to what there is.
            pub fn merge_metadata(mut self, metadata: BTreeMap<String, String>) -> Self {
                self.merge_metadata.extend(metadata);
                self
            }
            /// A metadata key to remove.
            pub fn remove_metadata(mut self, key: impl Into<String>) -> Self {
                self.remove_metadata.push(key.into());
                self
            }

            /// What can be said without looking at the object.
            pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
                limits.check_name(self.name.as_ref().and_then(|n| n.as_deref()), 0)?;
                limits.check_description(self.description.as_ref().and_then(|d| d.as_deref()))?;
                check_metadata(&self.merge_metadata)?;
                limits.check_system_metadata(&self.merge_metadata, false)?;
                if let Some(metadata) = &self.metadata {
                    check_metadata(metadata)?;
                    limits.check_system_metadata(metadata, false)?;
                }
                if *self == Self::new() {
                    let why = "there is nothing to change";
                    return Err(Error::invalid("update", Violation::NothingToChange, why));
                }
                Ok(())
            }

            /// Changes the copy of a record that the caller has; the result is checked again as a whole.
            pub(super) fn apply(self, common: &mut Common) -> Result<()> {
                if let Some(name) = self.name {
                    common.name = name;
                }
                if let Some(description) = self.description {
                    common.description = description;
                }
                if let Some(metadata) = self.metadata {
                    common.metadata = metadata;
                }
                for key in self.remove_metadata {
                    if common.metadata.remove(&key).is_none() {
                        return Err(Error::NotFound { object: "metadata key", id: key });
                    }
                }
                common.metadata.extend(self.merge_metadata);
                check_metadata(&common.metadata)
            }
        }
    };
}

update!(
    /// What to change about a volume; what is not said stays. An update of metadata happens as a whole: the
    /// new map first, then what goes, then what is added.
    VolumeUpdate
);
update!(
    /// What to change about a snapshot; what is not said stays. An update of metadata happens as a whole: the
    /// new map first, then what goes, then what is added.
    SnapshotUpdate
);
