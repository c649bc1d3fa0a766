//! Lists of operations on a pool and on the model: seven bytes each. The first byte of an input says how small the
//! cache is, and how the pool ends: closed, killed, or with everything lost that was not synced.

use snapvol::Pool;
use snapvol::device::sim::{Fate, SimDevice};

use super::Input;
use crate::common::ops::{Limits, Op, WEIGHT_SUM};
use crate::common::{Rig, Shape, assert_sound, observe};

const LIMITS: Limits = Limits { volumes: 4, snapshots: 6, blocks: 24 };
/// Longer lists find nothing that shorter ones do not.
const MOST: usize = 120;

/// Runs the list. Every answer must be the model's, and so must what is read at the end.
pub(crate) fn operations(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let shape = Shape::SMALL.limit(16 << 20).cache(if flags & 4 == 0 { 4 << 20 } else { 256 << 10 });
    let mut rig = Rig::create(SimDevice::new(), shape.clone()).unwrap();
    let mut durable = vec![rig.model.digest()];
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let op = Op::decode(
            u32::from(input.u8()) % WEIGHT_SUM,
            input.u16().into(),
            input.u16().into(),
            input.u16().into(),
        );
        let action = rig.resolve(op, LIMITS);
        let refused = rig.model.after(&action).is_err();
        rig.must(action.clone());
        if action.is_durable() && !refused {
            durable.clear();
        }
        durable.push(rig.model.digest());
    }
    rig.verify();
    let medium = rig.medium.clone();
    let killed = match flags & 3 {
        0 => medium.crash(|_| Fate::Lost),
        1 => medium.crash(|_| Fate::Kept),
        _ => {
            rig.leave().unwrap().close().unwrap();
            durable = vec![rig.model.digest()];
            medium.reopen()
        }
    };
    let pool = Pool::open_on(killed, shape.open_with_ids(9_999)).unwrap();
    let seen = observe::digest(&pool).unwrap();
    assert!(durable.contains(&seen), "a state between the last durable one and the end");
    assert_sound(&pool);
}
