//! Operation lists that once failed, as the model test had shrunk them, each with its story.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use common::ops::{Kind, Limits, Op};
use common::{Rig, Shape};
use snapvol::device::MemoryDevice;

const fn op(kind: Kind, a: u32, b: u32, c: u32) -> Op {
    Op::new(kind, a, b, c)
}

/// Runs the list on a new pool and on the model, telling each step.
fn replay(shape: Shape, limits: Limits, ops: &[Op]) {
    let mut rig = Rig::create(MemoryDevice::new(), shape).unwrap();
    for op in ops {
        let action = rig.resolve(*op, limits);
        println!("{action:?}");
        rig.must(action);
        common::observe::assert_equals(rig.pool(), &rig.model, &rig.disks);
    }
    rig.verify();
}

/// A block that the volume had given up (by discard, here) in the same checkpoint interval in which the snapshot
/// that shared it was deleted was not counted among the bytes that the deletion freed.
#[test]
fn deletion_counts_blocks_that_its_volume_gave_up_just_before() {
    let limits = Limits { volumes: 9, snapshots: 3, blocks: 6 };
    let mut ops = vec![op(Kind::Create, 0, 20, 0), op(Kind::Create, 0, 5, 0)];
    ops.extend([
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Write, 1211411118, 0, 944859445),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::CloneSnapshot, 0, 0, 0),
        op(Kind::Snapshot, 0, 0, 0),
        op(Kind::Snapshot, 185357335, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Discard, 679244210, 3771965664, 650298030),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Snapshot, 2137164510, 14463981, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Flush, 0, 0, 0),
        op(Kind::Write, 249732324, 92114152, 1397850860),
        op(Kind::Rollback, 459477925, 0, 0),
        op(Kind::Drain, 0, 0, 0),
        op(Kind::Discard, 454742402, 291096306, 3651054835),
        op(Kind::DeleteSnapshot, 487956912, 0, 3318192156),
    ]);
    replay(Shape::SMALL.limit(64 << 20), limits, &ops);
}
