//! Reading the strings and numbers of a record: nothing is trusted with memory before it was seen.

use std::collections::BTreeMap;

use crate::error::{Corruption, Result};

/// The strings behind the head, taken one after another.
pub(super) struct Texts<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) structure: &'static str,
}

impl Texts<'_> {
    pub(super) fn bad(&self, field: &'static str, expected: &str, found: impl ToString) -> Corruption {
        Corruption::new(self.structure, 0, field, expected, found)
    }

    pub(super) fn take(&mut self, len: usize, field: &'static str) -> Result<String, Corruption> {
        let Some((text, rest)) = self.bytes.split_at_checked(len) else {
            return Err(self.bad(field, &format!("{len} bytes"), format!("{} bytes", self.bytes.len())));
        };
        let text = std::str::from_utf8(text).map_err(|e| self.bad(field, "UTF-8", e))?;
        self.bytes = rest;
        Ok(text.to_owned())
    }

    pub(super) fn optional(
        &mut self,
        present: bool,
        len: u16,
        field: &'static str,
    ) -> Result<Option<String>, Corruption> {
        if !present && len != 0 {
            return Err(self.bad(field, "no bytes without its flag", len));
        }
        let text = self.take(usize::from(len), field)?;
        Ok(present.then_some(text))
    }

    /// Nothing may follow the last string.
    pub(super) fn end(&self) -> Result<(), Corruption> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        Err(self.bad("length", "no bytes behind the last string", self.bytes.len()))
    }

    pub(super) fn pairs(&mut self, count: u32) -> Result<BTreeMap<String, String>, Corruption> {
        // The count is not trusted with memory: each pair is read before room is made for it.
        let mut out = BTreeMap::new();
        for _ in 0..count {
            let Some(([key, value], rest)) = self.bytes.split_first_chunk::<2>() else {
                return Err(self.bad("metadata", &format!("{count} pairs"), out.len()));
            };
            let (key, value) = (usize::from(*key), usize::from(*value));
            self.bytes = rest;
            let key = self.take(key, "metadata key")?;
            let value = self.take(value, "metadata value")?;
            if out.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(self.bad("metadata key", "ascending keys", key));
            }
            out.insert(key, value);
        }
        Ok(out)
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut le = [0; 4];
    le.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(le)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut le = [0; 8];
    le.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(le)
}

pub(super) fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    id
}
