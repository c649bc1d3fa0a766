//! Making backups: what is read, what is sent, and what is seen meanwhile.

use super::*;

#[test]
fn each_backup_of_a_chain_restores_to_what_the_volume_was_then() {
    let seed = seed("chain", 1);
    for round in 0..4 {
        let mut rig = Rig::new(seed + round, 30 * PIECE + 3 * BLOCK);
        let mut points = Vec::new();
        for n in 0..6 {
            let times = rig.rng.below(5);
            rig.change(times);
            if n == 3 {
                let size = rig.content.len() as u64 + 2 * PIECE;
                rig.pool.extend(rig.volume, size).unwrap();
                rig.content.resize(size as usize, 0);
                rig.change(3);
            }
            let backup = rig.back_up();
            assert_eq!(backup.status, BackupStatus::Available);
            assert_eq!(backup.is_incremental, n > 0);
            assert_eq!(backup.size_bytes, rig.content.len() as u64);
            points.push((backup.id, rig.content.clone()));
        }
        for (n, (id, content)) in points.iter().enumerate() {
            assert!(rig.restored(*id) == *content, "backup {n} of round {round}");
            let backup = rig.pool.backup(*id).unwrap();
            assert_eq!(backup.parent, n.checked_sub(1).map(|n| points[n].0));
            assert_eq!(backup.has_dependent_backups, n < 5);
        }
        // A full one of the same content is made of the same objects: only its manifest is new.
        rig.target.puts();
        let full = rig.pool.create_backup(rig.volume, spec().full(true), &mut on).unwrap();
        assert!(!full.is_incremental && rig.target.puts().len() == 1);
        assert!(rig.restored(full.id) == rig.content);
        assert_eq!(assert_available_are_whole(&rig.pool), 7);
        rig.check();
    }
}

#[test]
fn an_incremental_backup_sends_what_has_changed_and_no_more() {
    // Three tables of 4,096 pieces, most of them holes.
    let size = 3 * 4096 * PIECE;
    let rig = Rig::new(2, size);
    let at = |table: u64, piece: u64| (table * 4096 + piece) * PIECE;
    let disk = rig.disk();
    for (table, piece) in [(0, 0), (0, 9), (1, 7)] {
        disk.write_at(&[table as u8 + 1; 8192], at(table, piece) + 4096).unwrap();
    }
    disk.write_at(&[3; 8192], size - 8192).unwrap();
    drop(disk);
    let kinds = |puts: Vec<String>| {
        ["pieces", "tables", "backups"].map(|k| puts.iter().filter(|p| p.starts_with(k)).count())
    };
    let first = rig.back_up();
    // The pieces (0, 0) and (0, 9) are one object.
    assert_eq!(kinds(rig.target.puts()), [3, 3, 1]);
    assert_eq!((first.stored_bytes, first.object_count), (4 * 8192, 8));
    let disk = rig.disk();
    disk.write_at(&[9; 4096], at(1, 7)).unwrap();
    drop(disk);
    let second = rig.back_up();
    assert_eq!(kinds(rig.target.puts()), [1, 1, 1]);
    // A discard over tables that are there and tables that are not.
    rig.disk().discard(at(0, 5), size - at(0, 5) - 4096).unwrap();
    let third = rig.back_up();
    assert_eq!(kinds(rig.target.puts()), [1, 2, 1]);
    assert_eq!((third.stored_bytes, third.object_count), (8192 + 4096, 5));
    let expect = |backup: &Backup, offset: u64, byte: u8| {
        let made =
            rig.pool.create_volume_from_backup(VolumeSpec::from_backup(backup.id, size), &mut on).unwrap();
        let disk = rig.pool.attach(made.id, AttachOptions::default()).unwrap();
        let mut seen = [0xEE; 4096];
        disk.read_at(&mut seen, offset).unwrap();
        assert_eq!(seen, [byte; 4096], "at {offset}");
        let mapped: u64 = disk
            .extents(0..size)
            .map(|e| e.unwrap())
            .map(|e| match e.kind {
                snapvol::ExtentKind::Data => e.range.end - e.range.start,
                _ => 0,
            })
            .sum();
        assert_eq!(mapped, backup.stored_bytes, "no zeroes were written");
    };
    expect(&first, at(1, 7), 0);
    expect(&second, at(1, 7), 9);
    expect(&second, at(0, 9) + 4096, 1);
    expect(&third, at(0, 9) + 4096, 0);
    expect(&third, size - 4096, 3);
}

#[test]
fn without_its_snapshot_or_its_backup_the_next_one_is_full() {
    let mut rig = Rig::new(3, 10 * PIECE);
    rig.change(9);
    let snapshots =
        |rig: &Rig| rig.pool.list_snapshots(&SnapshotQuery::new().volume(rig.volume)).unwrap().items;
    let first = rig.back_up();
    let base = snapshots(&rig).remove(0);
    assert_eq!(base.name.as_deref(), Some(format!("autobk_snapshot_{}", base.id).as_str()));
    assert!(base.backup_owned);
    assert_eq!(Some(base.id), first.snapshot);
    assert!(rig.back_up().is_incremental);
    let newest = snapshots(&rig);
    assert_eq!(newest.len(), 1, "only the newest is kept");
    let _ = rig.pool.delete_snapshot(newest[0].id).unwrap();
    assert!(!rig.back_up().is_incremental);
    let last = rig.back_up();
    assert!(last.is_incremental);
    rig.pool.delete_backup(last.id).unwrap();
    assert!(snapshots(&rig).is_empty());
    assert!(!rig.back_up().is_incremental);
    // Neither does a manifest that the target has lost leave anything to begin from.
    let lost = rig.back_up();
    rig.target.set(&format!("backups/{}/{}", rig.pool.uuid(), lost.id), None);
    assert!(!rig.back_up().is_incremental);
    assert!(
        !rig.pool.create_backup(rig.volume, spec().piece_bytes(2 * PIECE), &mut on).unwrap().is_incremental
    );
    assert!(matches!(rig.pool.verify_backup(lost.id, &mut on).unwrap().damages[0].kind, DamageKind::Lost));
    // Backups outlive their volume.
    rig.pool.delete_volume(rig.volume, Snapshots::Delete).unwrap().wait().unwrap();
    assert!(rig.restored(first.id) == rig.content);
    rig.check();
}

#[test]
fn what_the_target_has_lost_is_sent_again_by_the_next_backup_for_all_that_need_it() {
    let mut rig = Rig::new(5, 12 * PIECE);
    rig.change(12);
    let first = rig.back_up();
    rig.change(1);
    rig.back_up();
    let names: Vec<_> = [rig.target.names("pieces/"), rig.target.names("tables/")].concat();
    let mut healed = 0;
    for name in &names {
        for cut in [None, Some(1000)] {
            let good = rig.target.bytes(name);
            let bad = cut.map(|n| good[..n.min(good.len() - 1)].to_vec());
            rig.target.set(name, bad);
            let before = rig.pool.verify_backup(first.id, &mut on).unwrap().is_whole();
            rig.target.puts();
            let next = rig.back_up();
            assert!(next.is_incremental);
            assert!(rig.pool.verify_backup(next.id, &mut on).unwrap().is_whole(), "{name}");
            let after = rig.pool.verify_backup(first.id, &mut on).unwrap().is_whole();
            if rig.target.puts().contains(name) {
                assert!(after && rig.target.bytes(name) == good);
                healed += u32::from(!before);
            } else {
                // Only what the volume has not any more cannot be sent again.
                rig.target.set(name, Some(good));
            }
            rig.pool.delete_backup(next.id).unwrap();
            rig.back_up();
        }
    }
    assert!(healed > 4, "{healed}");
}

#[test]
fn statuses_are_seen_while_a_call_runs_and_refuse_what_the_documents_say() {
    let mut rig = Rig::new(10, 8 * PIECE);
    rig.change(20);
    let base = rig.back_up();
    rig.disk().write_at(&[3; 4096], 0).unwrap();
    let (pool, volume) = (rig.pool.clone(), rig.volume);
    let disk = rig.disk();
    let mut looked = 0;
    let mut look = |_: BackupProgress| {
        looked += 1;
        assert_eq!(pool.volume(volume).unwrap().status, VolumeStatus::BackingUp);
        let listed = pool.list_backups(&BackupQuery::new().volume(volume)).unwrap().items;
        assert_eq!((listed[0].status, listed[0].fail_reason.as_deref()), (BackupStatus::Creating, None));
        let snapshot = pool.snapshot(listed[0].snapshot.unwrap()).unwrap();
        assert_eq!(snapshot.status, SnapshotStatus::BackingUp);
        // I/O goes on; the backup does not see it.
        disk.write_at(&[looked; 4096], 4096).unwrap();
        let state = |e: Option<Error>| matches!(e, Some(Error::InvalidState { .. } | Error::Busy { .. }));
        assert!(state(pool.extend(volume, 9 * PIECE).err()));
        assert!(state(pool.create_snapshot(volume, SnapshotSpec::new().force(true)).err()));
        assert!(state(pool.create_backup(volume, spec(), &mut on).err()));
        assert!(state(pool.delete_volume(volume, Snapshots::Delete).err()));
        assert!(state(pool.attach(volume, AttachOptions::default()).err()));
        assert!(state(pool.delete_snapshot(snapshot.id).err()));
        assert!(state(pool.delete_backup(listed[0].id).err()));
        assert!(state(pool.verify_backup(listed[0].id, &mut on).err()));
        ControlFlow::Continue(())
    };
    let backup = pool.create_backup(volume, spec(), &mut look).unwrap();
    assert!(looked > 2);
    rig.content[..4096].fill(3);
    assert!(rig.restored(backup.id) == rig.content);
    assert_eq!(pool.volume(volume).unwrap().status, VolumeStatus::InUse);
    drop(disk);
    let mut look = |_: BackupProgress| {
        assert_eq!(pool.volume(volume).unwrap().status, VolumeStatus::RestoringBackup);
        assert_eq!(pool.backup(base.id).unwrap().status, BackupStatus::Restoring);
        let state = |e: Option<Error>| matches!(e, Some(Error::InvalidState { .. }));
        assert!(state(pool.attach(volume, AttachOptions::default()).err()));
        assert!(state(pool.delete_volume(volume, Snapshots::Delete).err()));
        assert!(state(pool.delete_backup(base.id).err()));
        // One at a time from one backup.
        let again = pool.create_volume_from_backup(VolumeSpec::from_backup(base.id, 8 * PIECE), &mut on);
        assert!(state(again.err()));
        ControlFlow::Continue(())
    };
    pool.restore_backup(base.id, volume, &mut look).unwrap();
}

#[test]
fn a_cancelled_backup_leaves_no_record_and_the_next_one_goes_on_where_it_was() {
    let mut rig = Rig::new(11, 16 * PIECE);
    rig.change(30);
    let mut steps = 0;
    let cancelled = rig.pool.create_backup(rig.volume, spec(), &mut |_| {
        steps += 1;
        if steps > 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(cancelled, Err(Error::Cancelled { op: "create_backup" })), "{cancelled:?}");
    assert!(rig.pool.list_backups(&BackupQuery::new()).unwrap().items.is_empty());
    assert!(rig.pool.list_snapshots(&SnapshotQuery::new()).unwrap().items.is_empty());
    assert_eq!(rig.pool.volume(rig.volume).unwrap().status, VolumeStatus::Available);
    let sent = rig.target.puts();
    assert!(!sent.is_empty());
    let backup = rig.back_up();
    let again = rig.target.puts();
    assert!(sent.iter().all(|name| !again.contains(name)), "nothing is sent twice");
    assert!(rig.restored(backup.id) == rig.content);
    rig.check();
}

#[test]
fn listings_filter_page_and_count() {
    let mut rig = Rig::new(15, 4 * PIECE);
    rig.change(5);
    let other = rig.pool.create_volume(VolumeSpec::blank(PIECE)).unwrap().id;
    let mut ids = Vec::new();
    for n in 0..5 {
        let volume = if n == 2 { other } else { rig.volume };
        let spec = spec().name(format!("n{}", n % 2)).description("d");
        ids.push(rig.pool.create_backup(volume, spec, &mut on).unwrap().id);
    }
    let list = |query: BackupQuery| {
        let page = rig.pool.list_backups(&query.with_total(true)).unwrap();
        (
            page.items.iter().map(|b| ids.iter().position(|id| *id == b.id).unwrap()).collect::<Vec<_>>(),
            page.next,
            page.total.unwrap(),
        )
    };
    assert_eq!(list(BackupQuery::new()), (vec![4, 3, 2, 1, 0], None, 5));
    assert_eq!(list(BackupQuery::new().limit(2)), (vec![4, 3], Some(ids[3]), 5));
    assert_eq!(list(BackupQuery::new().marker(ids[3]).limit(3)), (vec![2, 1, 0], None, 5));
    assert_eq!(list(BackupQuery::new().offset(4)), (vec![0], None, 5));
    assert_eq!(list(BackupQuery::new().volume(other)), (vec![2], None, 1));
    assert_eq!(list(BackupQuery::new().name("n1").volume(rig.volume)), (vec![3, 1], None, 2));
    assert_eq!(list(BackupQuery::new().status(BackupStatus::Error)), (vec![], None, 0));
    assert!(matches!(
        rig.pool.list_backups(&BackupQuery::new().limit(0)),
        Err(Error::InvalidArgument { .. })
    ));
    let taken = rig.pool.create_backup(other, spec().id(ids[0]), &mut on);
    assert!(matches!(taken, Err(Error::AlreadyExists { object: "backup", .. })));
}

#[test]
fn a_folder_keeps_backups_across_openings_with_several_senders() {
    let dir = tempfile::tempdir().unwrap();
    let folder = || Arc::new(LocalFolder::open(dir.path()).unwrap());
    let mut rig = Rig::new(16, 40 * PIECE);
    rig.pool.connect_backup_target("t", folder()).unwrap();
    rig.change(60);
    let many = |rig: &Rig| rig.pool.create_backup(rig.volume, spec().senders(8), &mut on).unwrap();
    let first = many(&rig);
    let point = rig.content.clone();
    rig.change(5);
    rig.reopen();
    rig.pool.connect_backup_target("t", folder()).unwrap();
    let second = many(&rig);
    assert!(second.is_incremental);
    assert!(rig.restored(first.id) == point && rig.restored(second.id) == rig.content);
    rig.pool.delete_backup(first.id).unwrap();
    let swept = rig.pool.sweep_backups("t", &mut on).unwrap();
    assert_eq!(swept.kept, second.object_count - 1);
    assert!(rig.pool.verify_backup(second.id, &mut on).unwrap().is_whole());
    assert_eq!(std::fs::read_dir(dir.path().join(".partial")).unwrap().count(), 0);
}
