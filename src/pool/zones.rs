//! Availability zones: names under which volumes are placed. One pool is in one place; they are labels that
//! callers choose by, and that keep what is made from a snapshot where the snapshot is.
//!
//! Record, little-endian: version 1 (1), 1 if available (1), the name. The default zone, number 0, is `az1` and
//! available until it is given a record.

use serde::Serialize;

use crate::error::{Corruption, Error, Limited, Result, Violation};

use super::batch::Batch;
use super::catalogue::{Table, ZONES};
use super::fields::Texts;
use super::limits::check_label;
use super::pool::Pool;

const DEFAULT_NAME: &str = "az1";
const VERSION: u8 = 1;
const MAX_ZONES: u16 = 1000;

/// A zone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[non_exhaustive]
pub struct Zone {
    /// Its name: 1 to 255 bytes, unique.
    pub name: String,
    /// Whether new volumes may be placed there.
    pub available: bool,
}

fn key(number: u16) -> Vec<u8> {
    let mut key = vec![ZONES];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn decode(bytes: &[u8]) -> Result<Zone> {
    let structure = "zone record";
    let Some(([version, available], rest)) = bytes.split_first_chunk::<2>() else {
        return Err(Corruption::new(structure, 0, "length", "at least 2", bytes.len()).into());
    };
    if (*version, *available) != (VERSION, available & 1) {
        return Err(Corruption::new(structure, 0, "version", VERSION, version).into());
    }
    let mut rest = Texts { bytes: rest, structure };
    let name = rest.take(rest.bytes.len(), "name")?;
    Ok(Zone { name, available: *available == 1 })
}

fn read(table: &dyn Table, number: u16) -> Result<Option<Zone>> {
    match table.get(&key(number))? {
        Some(bytes) => decode(&bytes).map(Some),
        None if number == 0 => Ok(Some(Zone { name: DEFAULT_NAME.into(), available: true })),
        None => Ok(None),
    }
}

/// The zone of a number that some record names.
pub(super) fn by_number(table: &dyn Table, number: u16) -> Result<Zone> {
    match read(table, number)? {
        Some(zone) => Ok(zone),
        None => Err(Corruption::new("zone record", 0, "number", "a known zone", number).into()),
    }
}

/// Numbers are dense: zones are never removed.
fn all(table: &dyn Table) -> Result<Vec<Zone>> {
    let mut zones = Vec::new();
    while let Some(zone) = read(table, zones.len() as u16)? {
        zones.push(zone);
    }
    Ok(zones)
}

/// The number of a zone in which something new may be placed.
pub(super) fn choose(table: &dyn Table, name: &str) -> Result<u16> {
    let zones = all(table)?;
    match zones.iter().position(|z| z.name == name) {
        Some(number) if zones[number].available => Ok(number as u16),
        Some(_) => Err(Error::invalid("zone", Violation::Zone, format!("zone {name:?} is not available"))),
        None => Err(Error::invalid("zone", Violation::Zone, format!("there is no zone {name:?}"))),
    }
}

impl Batch<'_> {
    /// Adds a zone or changes one: see [`Pool::set_zone`].
    ///
    /// # Errors
    /// As [`Pool::set_zone`].
    pub fn set_zone(&mut self, name: &str, available: bool) -> Result<Zone> {
        check_label("zone", Violation::Zone, name)?;
        let zones = all(self.table())?;
        let number = zones.iter().position(|z| z.name == name).unwrap_or(zones.len());
        if number >= usize::from(MAX_ZONES) {
            return Err(Error::LimitExceeded { what: Limited::Zones, limit: MAX_ZONES.into() });
        }
        self.put_zone(number as u16, Zone { name: name.into(), available })
    }

    /// Renames a zone: see [`Pool::rename_zone`].
    ///
    /// # Errors
    /// As [`Pool::rename_zone`].
    pub fn rename_zone(&mut self, name: &str, new_name: &str) -> Result<Zone> {
        check_label("zone", Violation::Zone, new_name)?;
        let zones = all(self.table())?;
        let Some(number) = zones.iter().position(|z| z.name == name) else {
            return Err(Error::not_found("zone", name));
        };
        if zones.iter().any(|z| z.name == new_name) {
            return Err(Error::AlreadyExists { object: "zone", id: new_name.into() });
        }
        self.put_zone(number as u16, Zone { name: new_name.into(), available: zones[number].available })
    }

    fn put_zone(&mut self, number: u16, zone: Zone) -> Result<Zone> {
        let mut value = vec![VERSION, zone.available.into()];
        value.extend_from_slice(zone.name.as_bytes());
        self.stage(|stage| {
            stage.put(key(number), value);
            Ok(())
        })?;
        Ok(zone)
    }
}

impl Pool {
    /// All zones, the default zone first.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, `Closed`.
    pub fn zones(&self) -> Result<Vec<Zone>> {
        all(&*self.inner.engine)
    }

    /// Adds a zone, or changes whether an existing one takes new volumes; those it has stay usable. Durable on
    /// return.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that has not 1 to 255 bytes; `LimitExceeded` beyond 1,000 zones; `ReadOnly`,
    /// `OutOfSpace`, `Io`, `Poisoned`, `Closed`.
    pub fn set_zone(&self, name: &str, available: bool) -> Result<Zone> {
        self.transact(|batch| batch.set_zone(name, available))
    }

    /// Gives a zone another name; what is in it moves along. Durable on return.
    ///
    /// # Errors
    /// As [`set_zone`](Self::set_zone); `NotFound`, `AlreadyExists`.
    pub fn rename_zone(&self, name: &str, new_name: &str) -> Result<Zone> {
        self.transact(|batch| batch.rename_zone(name, new_name))
    }
}
