//! A target that fails, and a process that ends, at any call.

use super::*;

/// The calls of each operation fail one after another; whatever is available then is whole, and the operation
/// succeeds when it is called again.
#[test]
fn a_target_that_fails_at_any_call_harms_nothing() {
    let mut cases = 0;
    for fault in [Fault::Once, Fault::AfterEffect, Fault::ForGood] {
        for op in 0..4 {
            for call in 0.. {
                let mut rig = Rig::new(13, 5 * PIECE);
                rig.change(8);
                let first = rig.back_up();
                let point = rig.content.clone();
                rig.change(2);
                let second = (op > 0).then(|| rig.back_up().id);
                if op == 3 {
                    rig.pool.delete_backup(first.id).unwrap();
                }
                rig.target.fail(call, fault);
                let run = |rig: &Rig| match op {
                    0 => rig.pool.create_backup(rig.volume, spec(), &mut on).map(|_| ()),
                    1 => rig.pool.create_backup(rig.volume, spec().full(true), &mut on).map(|_| ()),
                    2 => rig.pool.delete_backup(first.id),
                    _ => rig.pool.sweep_backups("t", &mut on).map(|_| ()),
                };
                let done = run(&rig);
                let calls = rig.target.heal();
                if done.is_ok() {
                    assert!(calls <= call, "an error was swallowed");
                    break;
                }
                cases += 1;
                assert!(matches!(done, Err(Error::Target { .. })), "{done:?}");
                if op < 2 {
                    let listed = rig.pool.list_backups(&BackupQuery::new().limit(1)).unwrap().items.remove(0);
                    assert_eq!(listed.status, BackupStatus::Error);
                    assert!(listed.fail_reason.unwrap().contains("planted"));
                    rig.pool.delete_backup(listed.id).unwrap();
                }
                assert_available_are_whole(&rig.pool);
                if op == 0 {
                    assert!(rig.restored(first.id) == point);
                }
                run(&rig).unwrap();
                rig.pool.sweep_backups("t", &mut on).unwrap();
                assert_available_are_whole(&rig.pool);
                if let Some(second) = second {
                    assert!(rig.restored(second) == rig.content);
                }
            }
        }
    }
    println!("{cases} failures");
    assert!(cases > 100);
}

/// The process ends at any call of the target, and the target's host loses what was not synced.
#[test]
fn a_crash_at_any_call_leaves_backups_that_are_whole_or_say_that_they_are_not() {
    let seed = seed("crash", 14);
    let mut cases = 0;
    for op in 0..4 {
        for call in 0.. {
            let mut rig = Rig::new(seed, 9 * PIECE);
            rig.change(20);
            let first = rig.back_up();
            rig.change(2);
            if op == 2 {
                rig.pool.delete_backup(first.id).unwrap();
            }
            rig.target.fail(call, Fault::ForGood);
            // The pool as it is at that moment: whatever the process does afterwards has not happened.
            let frozen: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
            let (device, into) = (rig.device.share(), Arc::clone(&frozen));
            rig.target.at_failure(move || *into.lock().unwrap() = Some(image(&device)));
            let done = match op {
                0 => rig.pool.create_backup(rig.volume, spec(), &mut on).map(|_| ()),
                1 => rig.pool.delete_backup(first.id),
                2 => rig.pool.sweep_backups("t", &mut on).map(|_| ()),
                _ => rig.pool.restore_backup(first.id, rig.volume, &mut on).map(|_| ()),
            };
            let calls = rig.target.heal();
            if let Some(image) = frozen.lock().unwrap().take() {
                rig.device = MemoryDevice::from_bytes(image);
            }
            rig.target.lose_power(&mut Rng::new(seed + call));
            rig.reopen();
            cases += 1;
            assert_available_are_whole(&rig.pool);
            let volume = rig.pool.volume(rig.volume).unwrap();
            assert!(matches!(volume.status, VolumeStatus::Available | VolumeStatus::ErrorRestoring));
            if op != 3 {
                assert!(read(&rig.pool, rig.volume) == rig.content);
            } else if volume.status == VolumeStatus::Available && done.is_err() {
                assert!(read(&rig.pool, rig.volume) == rig.content, "the restore had not begun");
            }
            for backup in rig.pool.list_backups(&BackupQuery::new()).unwrap().items {
                match backup.status {
                    BackupStatus::Available => {}
                    BackupStatus::Error => rig.pool.delete_backup(backup.id).unwrap(),
                    other => panic!("{other} after a crash"),
                }
            }
            let snapshots = rig.pool.list_snapshots(&SnapshotQuery::new()).unwrap().items;
            assert!(snapshots.len() <= 1, "{snapshots:?}");
            assert!(snapshots.iter().all(|s| s.status == SnapshotStatus::Available));
            if volume.status == VolumeStatus::Available {
                let content = read(&rig.pool, rig.volume);
                let next = rig.back_up();
                assert!(rig.restored(next.id) == content);
            }
            rig.pool.sweep_backups("t", &mut on).unwrap();
            assert_available_are_whole(&rig.pool);
            rig.check();
            if done.is_ok() {
                assert!(calls <= call);
                break;
            }
        }
    }
    println!("{cases} crashes");
    assert!(cases > 30);
}
