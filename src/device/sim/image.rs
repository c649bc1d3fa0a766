//! Contents of a simulated medium, cheap to copy.

use std::sync::Arc;

/// Bytes in one page, the unit that copies of an image share.
const PAGE: usize = 4096;

type Page = [u8; PAGE];

/// Bytes of a device. Copies share pages until one of them changes a page, so that an image of a few MiB is
/// copied in microseconds: this is what lets a crash test make thousands of states in a second.
///
/// - G1 Pages past the end of `pages`, and absent ones, read zero.
/// - G2 Bytes past `len` are zero, so that a longer length shows zeroes.
#[derive(Clone, Default)]
pub(super) struct Image {
    len: u64,
    pages: Vec<Option<Arc<Page>>>,
}

impl Image {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let page_of = |chunk: &[u8]| {
            let used = chunk.iter().any(|&b| b != 0);
            used.then(|| {
                let mut page = [0; PAGE];
                page[..chunk.len()].copy_from_slice(chunk);
                Arc::new(page)
            })
        };
        Self { len: bytes.len() as u64, pages: bytes.chunks(PAGE).map(page_of).collect() }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        for (chunk, page) in bytes.chunks_mut(PAGE).zip(&self.pages) {
            if let Some(page) = page {
                chunk.copy_from_slice(&page[..chunk.len()]);
            }
        }
        bytes
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf` from `offset`. The caller has checked the range against `len`.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) {
        debug_assert!(offset + buf.len() as u64 <= self.len);
        let mut at = offset as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let inside = at % PAGE;
            let (part, tail) = rest.split_at_mut(rest.len().min(PAGE - inside));
            match self.pages.get(at / PAGE) {
                Some(Some(page)) => part.copy_from_slice(&page[inside..][..part.len()]),
                _ => part.fill(0),
            }
            at += part.len();
            rest = tail;
        }
    }

    /// Writes `bytes` at `offset`, extending the image when they pass its end.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        self.extend(offset + bytes.len() as u64);
        let mut at = offset as usize;
        let mut rest = bytes;
        while !rest.is_empty() {
            let inside = at % PAGE;
            let (part, tail) = rest.split_at(rest.len().min(PAGE - inside));
            let slot = self.slot(at / PAGE);
            if let Ok(whole) = <&Page>::try_from(part) {
                // The old page is not needed: do not copy it just to overwrite all of it.
                match slot.as_mut().and_then(Arc::get_mut) {
                    Some(page) => *page = *whole,
                    None => *slot = Some(Arc::new(*whole)),
                }
            } else {
                let page = slot.get_or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(page)[inside..][..part.len()].copy_from_slice(part);
            }
            at += part.len();
            rest = tail;
        }
    }

    /// Makes the image at least `end` bytes long.
    pub(super) fn extend(&mut self, end: u64) {
        self.len = self.len.max(end);
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, (len.next_multiple_of(PAGE as u64) - len).min(self.len - len));
            self.pages.truncate(len.div_ceil(PAGE as u64) as usize);
        }
        self.len = len;
    }

    /// Zeroes the part of the range that lies below `len`.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.len).min((self.pages.len() * PAGE) as u64) as usize;
        let mut at = offset as usize;
        while at < end {
            let inside = at % PAGE;
            let part = (end - at).min(PAGE - inside);
            let slot = &mut self.pages[at / PAGE];
            if part == PAGE {
                *slot = None;
            } else if let Some(page) = slot {
                Arc::make_mut(page)[inside..][..part].fill(0);
            }
            at += part;
        }
    }

    /// Flips one bit of the byte at `offset`; nothing where the image ends before it.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        if offset < self.len {
            let at = offset as usize;
            let page = self.slot(at / PAGE).get_or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[at % PAGE] ^= 1 << bit;
        }
    }

    fn slot(&mut self, page: usize) -> &mut Option<Arc<Page>> {
        if page >= self.pages.len() {
            self.pages.resize(page + 1, None);
        }
        &mut self.pages[page]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_behaves_as_a_vector_of_bytes() {
        let mut image = Image::default();
        let mut model: Vec<u8> = Vec::new();
        let mut seed = 1_u64;
        let mut random = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % limit
        };
        for round in 0..3_000_u32 {
            let before = image.clone();
            let copy = before.to_bytes();
            let (offset, len) = (random(20_000), random(9_000));
            let end = (offset + len) as usize;
            match random(5) {
                0 | 1 => {
                    let bytes = vec![round as u8; len as usize];
                    image.write(&bytes, offset);
                    if len > 0 {
                        model.resize(model.len().max(end), 0);
                        model[offset as usize..end].fill(round as u8);
                    }
                }
                2 => {
                    image.set_len(offset);
                    model.resize(offset as usize, 0);
                }
                3 => {
                    image.zero(offset, len);
                    let (start, end) = ((offset as usize).min(model.len()), end.min(model.len()));
                    model[start..end].fill(0);
                }
                _ => {
                    image.flip(offset, 3);
                    if let Some(byte) = model.get_mut(offset as usize) {
                        *byte ^= 8;
                    }
                }
            }
            assert_eq!(image.to_bytes(), model, "round {round}");
            assert_eq!(before.to_bytes(), copy, "a copy changed in round {round}");
            assert_eq!(Image::from_bytes(&model).to_bytes(), model);
            let mut buf = vec![0xee; model.len() / 2];
            image.read(&mut buf, (model.len() / 3) as u64);
            assert_eq!(buf, model[model.len() / 3..][..buf.len()]);
        }
    }
}
