//! What once went wrong, as small as the model test had shrunk it, each with its story.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use common::ops::Action;
use common::{Rig, Shape};
use snapvol::device::MemoryDevice;
use snapvol::{SnapshotId, VolumeId};
use uuid::Uuid;

/// The volume gives up a block that it shares with a snapshot, and the snapshot is deleted before the next
/// checkpoint. Both let go of the block in the same checkpoint, and the bytes it frees belong to the deletion: nobody
/// else reached the block when it was made. They were counted for nobody.
#[test]
fn deletion_counts_blocks_that_its_volume_gave_up_just_before() {
    let (volume, snapshot) = (VolumeId::new(Uuid::from_u128(9)), SnapshotId::new(Uuid::from_u128(5)));
    for discard in [false, true] {
        let mut rig = Rig::create(MemoryDevice::new(), Shape::SMALL).unwrap();
        rig.must(Action::Create { id: volume, blocks: 3, name: "volume".into() });
        rig.must(Action::Write { volume, offset: 0, len: 3 * 4096, stamp: 1, fua: false });
        rig.must(Action::Snapshot { id: snapshot, volume, force: true, name: "snapshot".into() });
        rig.must(Action::Write { volume, offset: 4096, len: 4096, stamp: 2, fua: false });
        rig.must(Action::Checkpoint);
        rig.must(Action::Drain);
        rig.must(if discard {
            Action::Discard { volume, offset: 0, len: 3 * 4096 }
        } else {
            Action::Write { volume, offset: 0, len: 3 * 4096, stamp: 3, fua: false }
        });
        // The rig compares the freed bytes with the model: three blocks.
        rig.must(Action::DeleteSnapshot { id: snapshot, wait: true });
        rig.verify();
    }
}
