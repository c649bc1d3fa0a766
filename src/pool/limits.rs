//! The limits of a profile, the ceilings of the format, and the one place that checks arguments against them.
//!
//! A profile belongs to a handle of the pool ([`Pool::limited`](super::Pool::limited)), not to the pool: the
//! same volumes can be served under the rules of one cloud and used natively without them.

use std::collections::BTreeMap;

use crate::error::{Error, Limited, Result, Violation};
use crate::units::{BLOCK_BYTES, MAX_VOLUME_BYTES};

use super::projects::Usage;

/// Most bytes (UTF-8) in a name or description without a profile, and in a metadata key or value.
pub const MAX_TEXT_BYTES: usize = 255;
/// Most bytes (UTF-8) in the keys and values of one object's metadata together: 1 MiB.
pub const MAX_METADATA_BYTES: usize = 1 << 20;
/// Most items in one page of a listing.
pub const MAX_PAGE: u32 = 1000;
/// Most volumes that one call creates.
pub const MAX_VOLUMES_PER_CALL: u32 = 100;
/// Most attachments of one shared volume; any other volume has at most one.
pub const MAX_ATTACHMENTS: u32 = 16;
/// How names of snapshots begin that a backup makes. Behaviour follows
/// [`Snapshot::backup_owned`](super::Snapshot::backup_owned), never the name.
pub const BACKUP_SNAPSHOT_PREFIX: &str = "autobk_snapshot_";

/// Most characters that a profile may allow in a name or description, and bytes that they may take.
pub(super) const MAX_TEXT_CHARS: usize = 255;
pub(crate) const MAX_STORED_TEXT_BYTES: usize = 4 * MAX_TEXT_CHARS;
/// Most bytes of a placement hint.
pub(super) const MAX_PLACEMENT_BYTES: usize = 4096;
/// Most bytes of a name that becomes part of a key: of a project, for example.
pub(super) const MAX_KEY_TEXT_BYTES: usize = 60;

const GIB: u64 = 1 << 30;

/// How long a text may be, and in what that is counted. Nothing is ever cut off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TextLimit {
    /// At most this many bytes of UTF-8, up to 255.
    Bytes(usize),
    /// At most this many Unicode scalar values, up to 255.
    Chars(usize),
}

impl TextLimit {
    /// The same limit for a text to which `bytes` of ASCII are going to be added.
    fn less(self, bytes: usize) -> Self {
        match self {
            Self::Bytes(n) => Self::Bytes(n.saturating_sub(bytes)),
            Self::Chars(n) => Self::Chars(n.saturating_sub(bytes)),
        }
    }

    fn check(self, field: &'static str, text: &str) -> Result<()> {
        let (given, limit, unit) = match self {
            Self::Bytes(n) => (text.len(), n.min(MAX_TEXT_BYTES), "bytes"),
            Self::Chars(n) => (text.chars().count(), n.min(MAX_TEXT_CHARS), "characters"),
        };
        if given > limit {
            let why = format!("at most {limit} {unit} are allowed, {given} given");
            return Err(Error::invalid(field, Violation::TooLong, why));
        }
        Ok(())
    }
}

/// What a caller may ask for: the rules of one documented cloud, or only those of the format.
///
/// [`Limits::native`] is the default of a pool. The others are the numbers of the documents; each can be changed.
///
/// ```
/// # use snapvol::{CreateOptions, Limits, Pool, VolumeSpec};
/// # let pool = Pool::create_in_memory(CreateOptions::new().limit_bytes(1 << 30))?;
/// let evs = pool.limited(Limits::evs().volumes(Some(50)));
/// assert!(evs.create_volume(VolumeSpec::blank(4096)).is_err()); // whole GiB there
/// assert!(pool.create_volume(VolumeSpec::blank(4096)).is_ok());
/// # Ok::<(), snapvol::Error>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
#[non_exhaustive]
pub struct Limits {
    pub(super) name: TextLimit,
    pub(super) description: TextLimit,
    pub(super) snapshots_per_volume: Option<u64>,
    pub(super) volumes: Option<u64>,
    pub(super) volume_bytes: Option<u64>,
    pub(super) step_bytes: u64,
    pub(super) max_bytes: u64,
    pub(super) max_system_bytes: u64,
    pub(super) volume_types: Option<Vec<String>>,
    pub(super) system_metadata: bool,
    pub(super) refuse_backup_prefix: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self::native()
    }
}

impl Limits {
    /// What the format allows: any number of snapshots, sizes of whole blocks up to 1 EiB, 255 bytes of name and
    /// of description, any volume type.
    pub fn native() -> Self {
        Self {
            name: TextLimit::Bytes(MAX_TEXT_BYTES),
            description: TextLimit::Bytes(MAX_TEXT_BYTES),
            snapshots_per_volume: None,
            volumes: None,
            volume_bytes: None,
            step_bytes: BLOCK_BYTES,
            max_bytes: MAX_VOLUME_BYTES,
            max_system_bytes: MAX_VOLUME_BYTES,
            volume_types: None,
            system_metadata: false,
            refuse_backup_prefix: false,
        }
    }

    /// EVS: 7 snapshots of a volume, whole GiB up to 32,768 (1,024 for a volume from an image), the five volume
    /// types `SATA`, `SAS`, `SSD`, `GPSSD` and `ESSD`, metadata keys with a meaning are checked.
    pub fn evs() -> Self {
        Self {
            snapshots_per_volume: Some(7),
            step_bytes: GIB,
            max_bytes: 32_768 * GIB,
            max_system_bytes: 1_024 * GIB,
            volume_types: Some(["SATA", "SAS", "SSD", "GPSSD", "ESSD"].map(String::from).to_vec()),
            system_metadata: true,
            ..Self::native()
        }
    }

    /// CBS: names of at most 60 characters, whole GiB.
    pub fn cbs() -> Self {
        Self { name: TextLimit::Chars(60), step_bytes: GIB, ..Self::native() }
    }

    /// UCloud: names of at most 30 characters, remarks of at most 100, whole GiB.
    pub fn ucloud() -> Self {
        let (name, description) = (TextLimit::Chars(30), TextLimit::Chars(100));
        Self { name, description, step_bytes: GIB, ..Self::native() }
    }

    /// How long names of volumes and snapshots may be.
    #[must_use]
    pub fn name(mut self, limit: TextLimit) -> Self {
        self.name = limit;
        self
    }
    /// How long descriptions of volumes and snapshots may be.
    #[must_use]
    pub fn description(mut self, limit: TextLimit) -> Self {
        self.description = limit;
        self
    }
    /// Most snapshots of one volume, those that belong to backups not counted; `None`: any number.
    #[must_use]
    pub fn snapshots_per_volume(mut self, most: Option<u64>) -> Self {
        self.snapshots_per_volume = most;
        self
    }
    /// Most volumes of one project; `None`: any number.
    #[must_use]
    pub fn volumes(mut self, most: Option<u64>) -> Self {
        self.volumes = most;
        self
    }
    /// Most bytes, by virtual size, in the volumes of one project; `None`: any number.
    #[must_use]
    pub fn volume_bytes(mut self, most: Option<u64>) -> Self {
        self.volume_bytes = most;
        self
    }
    /// Sizes are multiples of this many bytes, and at least this many: a multiple of 4,096, rounded up to one.
    #[must_use]
    pub fn step_bytes(mut self, bytes: u64) -> Self {
        self.step_bytes = bytes.max(1).checked_next_multiple_of(BLOCK_BYTES).unwrap_or(MAX_VOLUME_BYTES);
        self
    }
    /// Largest volume in bytes, at most 1 EiB.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes.min(MAX_VOLUME_BYTES);
        self
    }
    /// Largest bootable volume, and volume from an image, in bytes, at most 1 EiB.
    #[must_use]
    pub fn max_system_bytes(mut self, bytes: u64) -> Self {
        self.max_system_bytes = bytes.min(MAX_VOLUME_BYTES);
        self
    }
    /// The volume types that may be named; `None`: any text of at most 255 bytes.
    #[must_use]
    pub fn volume_types(mut self, types: Option<Vec<String>>) -> Self {
        self.volume_types = types;
        self
    }
    /// Whether the EVS metadata keys with a meaning (`__system__encrypted`, `__system__cmkid`, `hw:passthrough`,
    /// `full_clone`) are checked. They are kept and shown either way.
    #[must_use]
    pub fn system_metadata(mut self, on: bool) -> Self {
        self.system_metadata = on;
        self
    }
    /// Whether a snapshot name that begins with [`BACKUP_SNAPSHOT_PREFIX`] is refused; off everywhere unless set.
    #[must_use]
    pub fn refuse_backup_prefix(mut self, on: bool) -> Self {
        self.refuse_backup_prefix = on;
        self
    }

    /// Most snapshots of one volume.
    pub fn most_snapshots_per_volume(&self) -> Option<u64> {
        self.snapshots_per_volume
    }
    /// Most volumes of one project.
    pub fn most_volumes(&self) -> Option<u64> {
        self.volumes
    }
    /// Most bytes in the volumes of one project.
    pub fn most_volume_bytes(&self) -> Option<u64> {
        self.volume_bytes
    }
    /// The volume types that may be named.
    pub fn known_volume_types(&self) -> Option<&[String]> {
        self.volume_types.as_deref()
    }

    /// A name to which `reserve_bytes` of ASCII are going to be added.
    pub(super) fn check_name(&self, text: Option<&str>, reserve_bytes: usize) -> Result<()> {
        text.map_or(Ok(()), |text| self.name.less(reserve_bytes).check("name", text))
    }

    pub(super) fn check_description(&self, text: Option<&str>) -> Result<()> {
        text.map_or(Ok(()), |text| self.description.check("description", text))
    }

    pub(crate) fn check_size(&self, size_bytes: u64, system: bool) -> Result<()> {
        let (step, most) = (
            self.step_bytes,
            if system { self.max_system_bytes.min(self.max_bytes) } else { self.max_bytes },
        );
        if size_bytes == 0 || size_bytes > most || !size_bytes.is_multiple_of(step) {
            let why = format!(
                "a size is a multiple of {step} bytes, above 0 and at most {most} bytes, {size_bytes} given"
            );
            return Err(Error::invalid("size_bytes", Violation::Size, why));
        }
        Ok(())
    }

    pub(super) fn check_volume_type(&self, volume_type: Option<&str>) -> Result<()> {
        let Some(volume_type) = volume_type else { return Ok(()) };
        check_label("volume_type", Violation::VolumeType, volume_type)?;
        match &self.volume_types {
            Some(known) if !known.iter().any(|k| k == volume_type) => {
                let why = format!("it is one of {}, {volume_type:?} given", known.join(", "));
                Err(Error::invalid("volume_type", Violation::VolumeType, why))
            }
            _ => Ok(()),
        }
    }

    /// The quota of a project that has `usage` and is to get so much more.
    pub(super) fn check_quota(&self, usage: &Usage, volumes: u64, bytes: u64) -> Result<()> {
        let exceeded = |what, have: u64, more: u64, most: Option<u64>| match most {
            Some(limit) if more > 0 && have.saturating_add(more) > limit => {
                Err(Error::LimitExceeded { what, limit })
            }
            _ => Ok(()),
        };
        exceeded(Limited::Volumes, usage.volumes, volumes, self.volumes)?;
        exceeded(Limited::VolumeBytes, usage.volume_bytes, bytes, self.volume_bytes)
    }

    /// What the EVS documents say about metadata keys with a meaning.
    pub(super) fn check_system_metadata(
        &self,
        metadata: &BTreeMap<String, String>,
        copies_snapshot_or_image: bool,
    ) -> Result<()> {
        if !self.system_metadata {
            return Ok(());
        }
        let invalid = |rule, why: String| Err(Error::invalid("metadata", rule, why));
        let value = |key: &str| metadata.get(key).map(String::as_str);
        if copies_snapshot_or_image {
            for key in ["__system__encrypted", "__system__cmkid", "hw:passthrough"] {
                if metadata.contains_key(key) {
                    let why = format!("{key} cannot be chosen for a volume from a snapshot or image");
                    return invalid(Violation::SourceMetadata, why);
                }
            }
        }
        if let Some(bad) = value("full_clone")
            && !["0", "1"].contains(&bad)
        {
            return invalid(Violation::FullClone, format!("full_clone is \"0\" or \"1\", {bad:?} given"));
        }
        if let Some(bad) = value("hw:passthrough")
            && !["true", "false"].contains(&bad)
        {
            let why = format!("hw:passthrough is \"true\" or \"false\", {bad:?} given");
            return invalid(Violation::Passthrough, why);
        }
        if let Some(key) = value("__system__cmkid")
            && key.len() != 36
        {
            let why = format!("__system__cmkid has 36 bytes, {} given", key.len());
            return invalid(Violation::Encryption, why);
        }
        match value("__system__encrypted") {
            None | Some("0") => Ok(()),
            Some("1") => Err(Error::Unsupported("volumes are not encrypted".into())),
            Some(bad) => {
                let why = format!("__system__encrypted is \"0\" or \"1\", {bad:?} given");
                invalid(Violation::Encryption, why)
            }
        }
    }
}

/// A short text that is not empty: the name of a zone, type, server.
pub(super) fn check_label(field: &'static str, rule: Violation, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > MAX_TEXT_BYTES {
        let why = format!("1 to {MAX_TEXT_BYTES} bytes are needed, {} given", text.len());
        return Err(Error::invalid(field, rule, why));
    }
    Ok(())
}

/// A text that becomes part of a key of the catalogue.
pub(super) fn check_key_text(field: &'static str, rule: Violation, text: &str) -> Result<()> {
    if text.is_empty() || text.len() > MAX_KEY_TEXT_BYTES {
        let why = format!("1 to {MAX_KEY_TEXT_BYTES} bytes are needed, {} given", text.len());
        return Err(Error::invalid(field, rule, why));
    }
    Ok(())
}

pub(super) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    let mut total = 0;
    for (key, value) in metadata {
        for (what, text) in [("key", key), ("value", value)] {
            if text.len() > MAX_TEXT_BYTES {
                let why = format!("a {what} has at most {MAX_TEXT_BYTES} bytes, {} given", text.len());
                return Err(Error::invalid("metadata", Violation::Metadata, why));
            }
        }
        total += key.len() + value.len();
    }
    if total > MAX_METADATA_BYTES {
        let why = format!("at most {MAX_METADATA_BYTES} bytes in all are allowed, {total} given");
        return Err(Error::invalid("metadata", Violation::MetadataTooLarge, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(result: Result<()>) -> Violation {
        match result {
            Err(Error::InvalidArgument { rule, .. }) => rule,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_limits_count_what_they_say() {
        let bytes = Limits::evs();
        assert!(bytes.check_name(Some(&"é".repeat(127)), 0).is_ok());
        assert_eq!(rule(bytes.check_name(Some(&"é".repeat(128)), 0)), Violation::TooLong);
        assert!(bytes.check_name(Some(&"€".repeat(85)), 0).is_ok());
        assert!(bytes.check_name(Some(&"€".repeat(86)), 0).is_err());
        assert!(bytes.check_name(Some(&"x".repeat(250)), 5).is_ok());
        assert!(bytes.check_name(Some(&"x".repeat(251)), 5).is_err());
        assert!(bytes.check_name(None, 0).is_ok());
        let chars = Limits::ucloud();
        assert!(chars.check_description(Some(&"𝄞".repeat(100))).is_ok());
        assert_eq!(rule(chars.check_description(Some(&"x".repeat(101)))), Violation::TooLong);
    }

    #[test]
    fn sizes_are_whole_steps_above_zero() {
        let native = Limits::native();
        assert!(native.check_size(4096, false).is_ok() && native.check_size(1 << 60, true).is_ok());
        for bad in [0, 1, 4095, 4097, (1 << 60) + 4096, u64::MAX] {
            assert_eq!(rule(native.check_size(bad, false)), Violation::Size);
        }
        let evs = Limits::evs();
        assert!(evs.check_size(GIB, false).is_ok() && evs.check_size(32_768 * GIB, false).is_ok());
        assert!(evs.check_size(32_769 * GIB, false).is_err() && evs.check_size(1025 * GIB, true).is_err());
        assert!(evs.check_size(GIB + 4096, false).is_err());
    }

    #[test]
    fn metadata_is_limited_per_string_and_in_total() {
        let one = |k: usize, v: usize| BTreeMap::from([("k".repeat(k), "v".repeat(v))]);
        assert!(check_metadata(&one(255, 255)).is_ok());
        assert_eq!(rule(check_metadata(&one(256, 1))), Violation::Metadata);
        assert_eq!(rule(check_metadata(&one(1, 256))), Violation::Metadata);
        let many: BTreeMap<_, _> = (0..4096).map(|i| (format!("{i:0>4}"), "v".repeat(252))).collect();
        assert!(check_metadata(&many).is_ok());
        let more: BTreeMap<_, _> = (0..4097).map(|i| (format!("{i:0>4}"), "v".repeat(252))).collect();
        assert_eq!(rule(check_metadata(&more)), Violation::MetadataTooLarge);
    }

    #[test]
    fn metadata_keys_with_a_meaning_are_checked_under_evs_only() {
        let (evs, native) = (Limits::evs(), Limits::native());
        let pairs = |k: &str, v: &str| BTreeMap::from([(k.to_string(), v.to_string())]);
        for (key, value, want) in [
            ("__system__encrypted", "yes", Violation::Encryption),
            ("__system__cmkid", "short", Violation::Encryption),
            ("hw:passthrough", "1", Violation::Passthrough),
            ("full_clone", "2", Violation::FullClone),
        ] {
            assert_eq!(rule(evs.check_system_metadata(&pairs(key, value), false)), want);
            assert!(native.check_system_metadata(&pairs(key, value), true).is_ok());
        }
        let plain = pairs("__system__encrypted", "0");
        assert!(evs.check_system_metadata(&plain, false).is_ok());
        assert_eq!(rule(evs.check_system_metadata(&plain, true)), Violation::SourceMetadata);
        let encrypted = evs.check_system_metadata(&pairs("__system__encrypted", "1"), false);
        assert!(matches!(encrypted, Err(Error::Unsupported(_))));
    }
}
