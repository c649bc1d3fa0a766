//! Doors to the inside for the crate's own fuzz targets and models: no part of the API, nothing to rely on.
//!
//! The functions of [`decode`] take any bytes at all. Each puts the checksum right, so that what lies behind it is
//! reached, and calls one decoder. Refused is fine. What is accepted must survive: it encodes, and decodes to the
//! same again (F1 of `format`).

/// One function for each structure of the format.
pub mod decode {
    use xxhash_rust::xxh3::xxh3_64;

    use crate::alloc::{ChecksumPage, IndexNode};
    use crate::commit::laws as catalogue_laws;
    use crate::commit::rest::Pairs;
    use crate::extent::Extents;
    use crate::format::chunk::Counts;
    use crate::format::record;
    use crate::format::superblock::Superblock;
    use crate::format::{BlockKind, NodeHeader, NodeRef, Reader, Writer};
    use crate::node::{Kind, Node};
    use crate::pool::records_law;
    use crate::units::{BLOCK, BlockAddr, Geometry, MAX_BLOCK_ADDR};

    /// The bytes as one block: cut, or followed by zeroes.
    fn block_of(bytes: &[u8]) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let len = bytes.len().min(BLOCK);
        block[..len].copy_from_slice(&bytes[..len]);
        block
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        let mut le = [0; 8];
        le.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(le)
    }

    /// A superblock.
    pub fn superblock(bytes: &[u8]) {
        let mut block = block_of(bytes);
        let sum = xxh3_64(&block[..BLOCK - 8]);
        block[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
        if let Ok(superblock) = Superblock::decode(&block, 0) {
            let mut again = [0xee; BLOCK];
            superblock.encode(&mut again);
            assert!(again == block, "a superblock was accepted and encodes to something else");
        }
    }

    /// A node of any of the three trees, as its kind says.
    pub fn node(bytes: &[u8]) {
        let mut block = block_of(bytes);
        // The reference that a parent would have: what it says of the node is true.
        for at in [24, 32] {
            let address = u64_at(&block, at) & MAX_BLOCK_ADDR;
            block[at..at + 8].copy_from_slice(&address.to_le_bytes());
        }
        let twin = u64_at(&block, 32);
        let reference = NodeRef {
            a: BlockAddr::new(u64_at(&block, 24)),
            b: (twin != 0).then(|| BlockAddr::new(twin)),
            sum: xxh3_64(&block),
            level: block[5],
        };
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[8..24]);
        match block[4] {
            1 | 2 => tree::<Extents>(&block, &reference, &uuid),
            3 | 4 => tree::<Pairs>(&block, &reference, &uuid),
            kind => index(&block, &reference, &uuid, 64 << (kind % 5)),
        }
    }

    fn tree<K: Kind>(block: &[u8; BLOCK], r: &NodeRef, uuid: &[u8; 16])
    where
        K::Item: PartialEq,
    {
        let kind = if r.level == 0 { K::LEAF } else { K::INNER };
        let Ok(header) = NodeHeader::decode(block, kind, uuid, r) else { return };
        let Ok(node) = Node::<K>::decode(block, r, uuid) else { return };
        let mut again = [0; BLOCK];
        let encoded = node.encode(header, &|link| link.home(), &mut again);
        assert!(encoded.is_some(), "children that were read have places");
        let Ok(second) = Node::<K>::decode(&again, r, uuid) else {
            panic!("a {} was accepted, and what it encodes to is refused", kind.name());
        };
        let kids = |node: &Node<K>| -> Vec<_> {
            node.kids.iter().map(|kid| (kid.key.clone(), kid.weight, kid.link.home())).collect()
        };
        assert!(node.items == second.items && kids(&node) == kids(&second), "a {} has changed", kind.name());
    }

    fn index(block: &[u8; BLOCK], r: &NodeRef, uuid: &[u8; 16], blocks_per_chunk: u64) {
        let kind = if r.level == 0 { BlockKind::IndexLeaf } else { BlockKind::IndexInner };
        let geometry =
            Geometry { blocks_per_chunk, log_start_block: 4, log_blocks: 16, first_chunk_block: 20 };
        let Ok(header) = NodeHeader::decode(block, kind, uuid, r) else { return };
        let Ok(node) = IndexNode::decode(block, r, uuid, &geometry, header.base) else { return };
        let mut again = [0; BLOCK];
        node.encode(header, &mut again);
        assert!(again == *block, "a {} was accepted and encodes to something else", kind.name());
        let _ = node.summary(*r);
    }

    /// A page of counts or of checksums: the first byte says which, and how wide, the page follows.
    pub fn page(bytes: &[u8]) {
        let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
        let page = block_of(rest);
        let blocks = 64_usize << ((first >> 2) % 5);
        let mut again = [0xee; BLOCK];
        if first % 2 == 0 {
            let width = [4, 8, 16, 32][(first >> 5) as usize % 4];
            let Ok(mut counts) = Counts::decode(&page, width, blocks, BlockAddr::new(1)) else { return };
            counts.encode(&mut again);
            assert!(again == page, "a count page was accepted and encodes to something else");
            let values = |counts: &Counts| (0..blocks).map(|i| counts.get(i)).collect::<Vec<_>>();
            let (before, free) = (values(&counts), counts.free_and_longest());
            counts.narrow();
            assert_eq!((values(&counts), counts.free_and_longest()), (before, free), "narrowed");
        } else {
            ChecksumPage::decode(&page).encode(&Counts::uniform(BLOCK / 4, 1), &mut again);
            assert!(again == page, "a checksum page encodes to something else");
        }
    }

    /// A log record: one copy, padded with zeroes to whole blocks.
    pub fn record(bytes: &[u8]) {
        let mut copy = bytes.to_vec();
        copy.resize(bytes.len().next_multiple_of(BLOCK).max(BLOCK), 0);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&copy[8..24]);
        copy[120..128].fill(0);
        let sum = xxh3_64(&copy);
        copy[120..128].copy_from_slice(&sum.to_le_bytes());
        let head = record::Record::peek(&copy, &uuid);
        let Ok((read, _)) = record::Record::decode(&copy, &uuid, 0) else { return };
        assert!(head.is_some(), "a record without a head");
        let mut both = Vec::new();
        read.encode(&uuid, &mut both);
        let half = both.len() / 2;
        let again = record::Record::decode(&both[..half], &uuid, 0);
        assert!(again.is_ok_and(|(again, _)| again == read), "a record has changed");
    }

    /// A value of the catalogue, of every table.
    pub fn catalogue(bytes: &[u8]) {
        records_law(bytes);
        catalogue_laws(bytes);
        let mut reader = Reader::new(bytes, "reference", 0);
        if let Ok(reference) = NodeRef::decode(&mut reader) {
            let mut again = [0xee; NodeRef::BYTES];
            NodeRef::encode(reference.as_ref(), &mut Writer::new(&mut again));
            assert_eq!(again, bytes[..NodeRef::BYTES], "a reference encodes to something else");
        }
    }
}

/// One function for each model of a part of the engine; shuttle runs them.
#[cfg(snapvol_shuttle)]
pub mod models {
    pub use crate::commit::models::{frames, hot_blocks, pins};
}
