//! Deleting and sweeping, in any order, beside everything else and beside other pools.

use super::*;

#[test]
fn backups_are_deleted_in_any_order_and_harm_no_other() {
    let mut rig = Rig::new(4, 12 * PIECE);
    let mut points = Vec::new();
    for _ in 0..4 {
        rig.change(3);
        points.push((rig.back_up().id, rig.content.clone()));
    }
    let kept = rig.target.copy();
    for order in 0..24 {
        // A pool of its own that knows the same backups, over a copy of the target.
        let target = kept.copy();
        rig.pool.connect_backup_target("t", target.connect()).unwrap();
        for id in points.iter().map(|p| p.0) {
            rig.pool.forget_backup(id).unwrap();
        }
        assert_eq!(rig.pool.import_backups("t").unwrap().len(), 4);
        let (mut left, mut order) = (points.clone(), order);
        while !left.is_empty() {
            let (gone, _) = left.remove(order % left.len());
            order /= left.len() + 1;
            rig.pool.delete_backup(gone).unwrap();
            rig.pool.sweep_backups("t", &mut on).unwrap();
            assert!(matches!(rig.pool.backup(gone), Err(Error::NotFound { object: "backup", .. })));
            for (id, content) in &left {
                assert!(rig.restored(*id) == *content);
            }
        }
        assert_eq!(target.names(""), Vec::<String>::new(), "nothing is left behind");
        rig.target = kept.copy();
        rig.pool.connect_backup_target("t", rig.target.connect()).unwrap();
        rig.pool.import_backups("t").unwrap();
    }
}

#[test]
fn two_pools_in_one_target_do_not_touch_each_other() {
    let target = MemoryTarget::new();
    let mut rigs: Vec<Rig> = (0..2).map(|n| Rig::with_target(20 + n, 6 * PIECE, target.clone())).collect();
    // The very same content in both.
    let bytes = Rng::stamp_bytes(1, 3 * PIECE as usize);
    for rig in &mut rigs {
        rig.disk().write_at(&bytes, 0).unwrap();
        rig.content[..bytes.len()].copy_from_slice(&bytes);
    }
    let backups: Vec<Backup> = rigs.iter().map(Rig::back_up).collect();
    let [one, two] = &rigs[..] else { unreachable!() };
    // The second pool takes up what the first has made.
    let found = two.pool.import_backups("t").unwrap();
    assert_eq!((found.len(), found[0].id, found[0].pool), (1, backups[0].id, one.pool.uuid()));
    assert!(two.restored(backups[0].id) == one.content);
    let refused = two.pool.delete_backup(backups[0].id);
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    two.pool.forget_backup(backups[0].id).unwrap();
    one.pool.delete_backup(backups[0].id).unwrap();
    assert!(one.pool.sweep_backups("t", &mut on).unwrap().objects > 0);
    assert!(target.names("").iter().all(|n| n.contains(&two.pool.uuid().to_string())));
    assert_eq!(assert_available_are_whole(&two.pool), 1);
}

#[test]
fn a_sweep_beside_a_running_backup_takes_nothing_that_it_needs() {
    let mut rig = Rig::new(12, 12 * PIECE);
    rig.change(20);
    rig.back_up();
    rig.change(2);
    let mut deletions = 0;
    for steps in 0..40 {
        let pool = rig.pool.clone();
        let mut n = 0;
        let made = pool.create_backup(rig.volume, spec().full(steps % 2 == 1), &mut |_| {
            if n == steps / 2 {
                // Everything that came before goes: what the backup has not reached yet included.
                for old in
                    pool.list_backups(&BackupQuery::new().status(BackupStatus::Available)).unwrap().items
                {
                    pool.delete_backup(old.id).unwrap();
                    deletions += 1;
                }
                pool.sweep_backups("t", &mut on).unwrap();
            }
            n += 1;
            ControlFlow::Continue(())
        });
        let made = made.unwrap();
        assert!(rig.pool.verify_backup(made.id, &mut on).unwrap().is_whole(), "step {steps}");
        assert!(rig.restored(made.id) == rig.content);
        rig.change(1);
    }
    assert!(deletions > 10, "{deletions}");
    // The other way round: a backup that is made while a sweep runs, and is over before the sweep is.
    rig.change(3);
    rig.back_up();
    for old in rig.pool.list_backups(&BackupQuery::new()).unwrap().items {
        rig.pool.delete_backup(old.id).unwrap();
    }
    let pool = rig.pool.clone();
    let mut made = None;
    pool.sweep_backups("t", &mut |_| {
        made.get_or_insert_with(|| rig.back_up());
        let again = pool.sweep_backups("t", &mut on);
        assert!(matches!(again, Err(Error::Busy { .. })));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(rig.pool.verify_backup(made.unwrap().id, &mut on).unwrap().is_whole());
}
