//! Reading backups: restored into a new volume, over one that is there, and verified.

use super::*;

#[test]
fn verify_finds_every_planted_damage_and_a_restore_refuses_it() {
    let mut rig = Rig::new(6, 8 * PIECE);
    rig.change(20);
    let backup = rig.back_up();
    let volume = rig.pool.create_volume(VolumeSpec::blank(8 * PIECE)).unwrap().id;
    for name in rig.target.names("") {
        let good = rig.target.bytes(&name);
        let mut flipped = good.clone();
        let bit = rig.rng.below(good.len() as u64 * 8);
        flipped[bit as usize / 8] ^= 1 << (bit % 8);
        let longer = [&good[..], &[0]].concat();
        let bad =
            [None, Some(flipped), Some(longer), Some(good[..good.len() - 1].to_vec()), Some(Vec::new())];
        for bad in bad {
            let kind = if bad.is_none() { DamageKind::Lost } else { DamageKind::Damaged };
            rig.target.set(&name, bad);
            let report = rig.pool.verify_backup(backup.id, &mut on).unwrap();
            assert!(!report.is_whole());
            assert_eq!(report.damages.len(), 1, "{name}: {report:?}");
            assert_eq!((&report.damages[0].object, report.damages[0].kind), (&name, kind));
            assert_eq!(
                (report.lost_objects, report.damaged_objects),
                match kind {
                    DamageKind::Lost => (1, 0),
                    _ => (0, 1),
                }
            );
            let spec = VolumeSpec::from_backup(backup.id, 8 * PIECE);
            let refused = rig.pool.create_volume_from_backup(spec, &mut on);
            assert!(matches!(refused, Err(Error::Corrupt(_))), "{name}");
        }
        rig.target.set(&name, Some(good));
    }
    assert!(rig.pool.verify_backup(backup.id, &mut on).unwrap().is_whole());
    assert_eq!(rig.pool.volume(volume).unwrap().status, VolumeStatus::Available);
    rig.check();
}

#[test]
fn a_restore_over_a_volume_is_refused_as_documented_and_changes_nothing() {
    let mut rig = Rig::new(7, 8 * PIECE);
    rig.change(10);
    let backup = rig.back_up();
    let small = rig.pool.create_volume(VolumeSpec::blank(7 * PIECE)).unwrap().id;
    let refused = rig.pool.restore_backup(backup.id, small, &mut on);
    assert!(matches!(refused, Err(Error::InvalidArgument { field: "volume", .. })), "{refused:?}");
    let less = VolumeSpec::from_backup(backup.id, 7 * PIECE);
    let refused = rig.pool.create_volume_from_backup(less, &mut on);
    assert!(matches!(refused, Err(Error::InvalidArgument { field: "size_bytes", .. })), "{refused:?}");
    let disk = rig.disk();
    let refused = rig.pool.restore_backup(backup.id, rig.volume, &mut on);
    assert!(matches!(refused, Err(Error::InvalidState { object: "volume", status: "in-use", .. })));
    drop(disk);
    let nobody = snapvol::BackupId::new(uuid::Uuid::from_u128(1));
    assert!(matches!(rig.pool.restore_backup(nobody, rig.volume, &mut on), Err(Error::NotFound { .. })));
    let no_target = rig.pool.create_backup(rig.volume, BackupSpec::new("nowhere"), &mut on);
    assert!(matches!(no_target, Err(Error::NotFound { object: "backup target", .. })));
    for bad in [spec_with(PIECE / 2), spec_with(3 * PIECE), spec().senders(0), spec().name("n".repeat(256))] {
        assert!(matches!(
            rig.pool.create_backup(rig.volume, bad, &mut on),
            Err(Error::InvalidArgument { .. })
        ));
    }
    assert_eq!(rig.pool.volume(rig.volume).unwrap().status, VolumeStatus::Available);
    assert!(read(&rig.pool, rig.volume) == rig.content);
    assert_eq!(rig.pool.list_backups(&BackupQuery::new()).unwrap().items.len(), 1);
}

fn spec_with(piece_bytes: u64) -> BackupSpec {
    spec().piece_bytes(piece_bytes)
}

#[test]
fn a_restored_volume_equals_the_backup_and_stays_shared_where_it_did_before() {
    let mut rig = Rig::new(8, 16 * PIECE);
    rig.change(20);
    let backup = rig.back_up();
    let want = rig.content.clone();
    let snapshot = rig.pool.create_snapshot(rig.volume, SnapshotSpec::new()).unwrap().id;
    let changed = [7; 4096];
    rig.disk().write_at(&changed, 0).unwrap();
    rig.target.puts();
    let mut moved = 0;
    let volume = rig.pool.restore_backup(backup.id, rig.volume, &mut |p| {
        moved = p.moved_bytes;
        ControlFlow::Continue(())
    });
    assert_eq!(volume.unwrap().status, VolumeStatus::Available);
    assert!(read(&rig.pool, rig.volume) == want);
    assert!(moved <= PIECE + 4096, "only the piece that differs was got, not {moved} bytes");
    // Into a larger volume full of something else: behind the backup it reads zero.
    let other = rig.pool.create_volume(VolumeSpec::blank(20 * PIECE)).unwrap().id;
    let disk = rig.pool.attach(other, AttachOptions::default()).unwrap();
    disk.write_at(&vec![0xAB; 20 * PIECE as usize], 0).unwrap();
    drop(disk);
    rig.pool.restore_backup(backup.id, other, &mut on).unwrap();
    let bytes = read(&rig.pool, other);
    assert!(bytes[..want.len()] == want[..] && bytes[want.len()..].iter().all(|b| *b == 0));
    let changes = rig.pool.diff(snapshot, rig.volume).unwrap().map(|c| c.unwrap());
    let data = changes.filter(|c| c.kind == snapvol::ExtentKind::Data).map(|c| c.range.end - c.range.start);
    assert!(data.sum::<u64>() <= PIECE, "the rest is shared still");
    rig.check();
}

#[test]
fn a_restore_that_fails_leaves_error_restoring_or_no_volume() {
    let mut rig = Rig::new(9, 8 * PIECE);
    rig.change(20);
    let backup = rig.back_up();
    rig.disk().write_at(&vec![5; 8 * PIECE as usize], 0).unwrap();
    // The manifest and the table are got; a piece is not.
    rig.target.fail(2, Fault::ForGood);
    let volumes = rig.pool.list_volumes(&snapvol::VolumeQuery::new()).unwrap();
    let failed = rig.pool.create_volume_from_backup(VolumeSpec::from_backup(backup.id, 8 * PIECE), &mut on);
    assert!(matches!(failed, Err(Error::Target { op: "get", .. })), "{failed:?}");
    assert_eq!(rig.pool.list_volumes(&snapvol::VolumeQuery::new()).unwrap(), volumes);
    rig.target.fail(2, Fault::ForGood);
    let failed = rig.pool.restore_backup(backup.id, rig.volume, &mut on);
    assert!(matches!(failed, Err(Error::Target { op: "get", .. })), "{failed:?}");
    rig.target.heal();
    assert_eq!(rig.pool.backup(backup.id).unwrap().status, BackupStatus::Available);
    assert_eq!(rig.pool.volume(rig.volume).unwrap().status, VolumeStatus::ErrorRestoring);
    let refused = rig.pool.attach(rig.volume, AttachOptions::default());
    assert!(matches!(refused, Err(Error::InvalidState { status: "error_restoring", .. })));
    rig.pool.delete_volume(rig.volume, Snapshots::Delete).unwrap().wait().unwrap();
    rig.check();
}

#[test]
fn a_backup_is_restored_after_its_zone_got_another_name() {
    let mut rig = Rig::new(12, 4 * PIECE);
    rig.change(10);
    let backup = rig.back_up();
    let zone = rig.pool.volume(rig.volume).unwrap().zone;
    rig.pool.rename_zone(&zone, "elsewhere").unwrap();
    assert!(rig.restored(backup.id) == rig.content);
}
