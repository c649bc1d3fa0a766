//! The documented rules, asked of the native calls: every status against every operation, refusals that leave no
//! trace, projects, quotas, profiles, attachments, images, and what a crash leaves of work that takes its time.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::Shape;
use common::crash::kill;
use proptest::prelude::*;
use snapvol::device::sim::{Fate, SimDevice};
use snapvol::{
    AttachOptions, AttachmentSpec, BACKUP_SNAPSHOT_PREFIX, Error, ImageContent, ImageQuery, ImageSpec,
    ImageStatus, Limited, Limits, Pool, RollbackOptions, ServerState, SnapshotId, SnapshotQuery,
    SnapshotSpec, SnapshotStatus, SnapshotUpdate, Snapshots, SortKey, SortOrder, StateRule, Trigger,
    Violation, VolumeId, VolumeQuery, VolumeSpec, VolumeStatus, VolumeUpdate, Warning,
};

const GIB: u64 = 1 << 30;
const SIZE: u64 = 16 << 10;

fn pool() -> Pool {
    Pool::create_in_memory(Shape::SMALL.limit(64 << 20).create().log_bytes(1 << 20)).unwrap()
}

fn blank(pool: &Pool) -> VolumeId {
    pool.create_volume(VolumeSpec::blank(SIZE)).unwrap().id
}

/// All that any listing shows: equal before and after a refused call.
fn face(pool: &Pool) -> String {
    let volumes = pool.list_volumes(&VolumeQuery::new().with_total(true)).unwrap();
    let snapshots = pool.list_snapshots(&SnapshotQuery::new().with_total(true)).unwrap();
    let images = pool.list_images(&ImageQuery::new().with_total(true)).unwrap();
    let projects = pool.projects().unwrap();
    let usage: Vec<_> = projects.iter().map(|p| pool.usage(&p.id).unwrap()).collect();
    format!("{volumes:#?}{snapshots:#?}{images:#?}{projects:?}{usage:?}{:?}", pool.zones().unwrap())
}

fn rule(error: &Error) -> Violation {
    match error {
        Error::InvalidArgument { rule, .. } => *rule,
        other => panic!("{other:?}"),
    }
}

/// What the table of the documents says about a volume: all its columns, and the native calls beside them.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Op {
    Extend,
    Snapshot,
    SnapshotForced,
    Rollback,
    Delete,
    AttachHandle,
    AttachServer,
    Detach,
    Backup,
    Restore,
    Clone,
    Update,
    Bootable,
    ReadOnly,
    Reserve,
}

const OPS: [Op; 15] = [
    Op::Extend,
    Op::Snapshot,
    Op::SnapshotForced,
    Op::Rollback,
    Op::Delete,
    Op::AttachHandle,
    Op::AttachServer,
    Op::Detach,
    Op::Backup,
    Op::Restore,
    Op::Clone,
    Op::Update,
    Op::Bootable,
    Op::ReadOnly,
    Op::Reserve,
];

fn allowed(status: VolumeStatus, op: Op) -> bool {
    use VolumeStatus as S;
    match (op, status) {
        (Op::Update | Op::Bootable, S::Deleting) => false,
        (Op::Update | Op::Bootable, _) => true,
        (Op::Detach, S::Available) => false,
        (_, S::Available) => true,
        (Op::Extend | Op::SnapshotForced | Op::Detach | Op::Backup | Op::Clone, S::InUse) => true,
        (Op::Delete, S::Error | S::ErrorExtending | S::ErrorRestoring | S::ErrorRollbacking) => true,
        (Op::Rollback, S::ErrorRollbacking) => true,
        _ => false,
    }
}

fn perform(pool: &Pool, id: VolumeId, snapshot: SnapshotId, op: Op) -> Result<(), Error> {
    match op {
        Op::Extend => pool.extend(id, 2 * SIZE).map(drop),
        Op::Snapshot => pool.create_snapshot(id, SnapshotSpec::new()).map(drop),
        Op::SnapshotForced => pool.create_snapshot(id, SnapshotSpec::new().force(true)).map(drop),
        Op::Rollback => pool.rollback(snapshot).map(drop),
        Op::Delete => pool.delete_volume(id, Snapshots::Delete).map(drop),
        Op::AttachHandle => pool.attach(id, AttachOptions::new()).map(drop),
        Op::AttachServer => pool.attach_server(id, AttachmentSpec::new("another")).map(drop),
        Op::Detach => pool.detach_server(id, None).map(drop),
        Op::Backup => pool.begin_backup(id, SnapshotSpec::new()).map(drop),
        Op::Restore => pool.begin_restore(id).and_then(|filling| filling.finish()).map(drop),
        Op::Clone => pool.create_volume(VolumeSpec::from_volume(id)).map(drop),
        Op::Update => pool.rename_volume(id, "renamed").map(drop),
        Op::Bootable => pool.set_bootable(id, true).map(drop),
        Op::ReadOnly => pool.set_read_only(id, true).map(drop),
        Op::Reserve => pool.reserve(id),
    }
}

#[test]
fn every_status_of_a_volume_allows_what_the_documents_say_and_nothing_else() {
    use VolumeStatus as S;
    for &status in VolumeStatus::ALL {
        for op in OPS {
            let pool = pool();
            let id = blank(&pool);
            let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
            let mut job = None;
            match status {
                S::Available => {}
                S::InUse => drop(pool.attach_server(id, AttachmentSpec::new("server")).unwrap()),
                error if error.is_error() => drop(pool.reset_volume_status(id, error).unwrap()),
                S::Detaching => {
                    pool.attach_server(id, AttachmentSpec::new("server")).unwrap();
                    job = Some(pool.begin_volume_job(id, status).unwrap());
                }
                transient => job = Some(pool.begin_volume_job(id, transient).unwrap()),
            }
            assert_eq!(pool.volume(id).unwrap().status, status);
            let before = face(&pool);
            let done = perform(&pool, id, snapshot, op);
            // A handle may use the attachment that a server has.
            let allowed = allowed(status, op) || (status, op) == (S::InUse, Op::AttachHandle);
            match done {
                Ok(()) => assert!(allowed, "{status} must not allow {op:?}"),
                Err(Error::InvalidState { object: "volume", status: found, .. }) => {
                    assert!(!allowed, "{status} must allow {op:?}");
                    assert_eq!(found, status.as_str(), "{op:?}");
                    assert_eq!(before, face(&pool), "{status} {op:?} left a trace");
                }
                Err(other) => panic!("{status} {op:?}: {other:?}"),
            }
            drop(job);
        }
    }
}

#[test]
fn every_status_of_a_snapshot_allows_what_the_documents_say_and_nothing_else() {
    use SnapshotStatus as S;
    for &status in SnapshotStatus::ALL {
        for op in ["clone", "rollback", "delete", "update", "attach", "cascade"] {
            let pool = pool();
            let id = blank(&pool);
            let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
            let mut job = None;
            match status {
                S::Available => {}
                S::Error | S::ErrorDeleting => drop(pool.reset_snapshot_status(snapshot, status).unwrap()),
                transient => job = Some(pool.begin_snapshot_job(snapshot, transient).unwrap()),
            }
            assert_eq!(pool.snapshot(snapshot).unwrap().status, status);
            let before = face(&pool);
            let done = match op {
                "clone" => pool.create_volume(VolumeSpec::from_snapshot(snapshot)).map(drop),
                "rollback" => pool.rollback(snapshot).map(drop),
                "delete" => pool.delete_snapshot(snapshot).map(drop),
                "update" => pool.rename_snapshot(snapshot, "renamed").map(drop),
                "attach" => pool.attach_snapshot(snapshot).map(drop),
                _ => pool.delete_volume(id, Snapshots::Delete).map(drop),
            };
            let allowed = match (op, status) {
                ("update", other) => other != S::Deleting,
                (_, S::Available) | ("delete" | "cascade", S::Error) | ("attach", S::BackingUp) => true,
                _ => false,
            };
            match done {
                Ok(()) => assert!(allowed, "{status} must not allow {op}"),
                Err(Error::InvalidState { object: "snapshot", status: found, .. }) => {
                    assert!(!allowed, "{status} must allow {op}");
                    assert_eq!(found, status.as_str());
                    assert_eq!(before, face(&pool), "{status} {op} left a trace");
                }
                Err(other) => panic!("{status} {op}: {other:?}"),
            }
            drop(job);
        }
    }
}

#[test]
fn the_eighth_snapshot_is_refused_under_evs_and_those_of_backups_do_not_count() {
    let evs = pool().limited(Limits::evs());
    let id = evs.create_volume(VolumeSpec::blank(GIB)).unwrap().id;
    evs.begin_backup(id, SnapshotSpec::new()).unwrap().finish().unwrap();
    let seven: Vec<_> = (0..7).map(|_| evs.create_snapshot(id, SnapshotSpec::new()).unwrap().id).collect();
    let before = face(&evs);
    let eighth = evs.create_snapshot(id, SnapshotSpec::new()).unwrap_err();
    assert!(matches!(eighth, Error::LimitExceeded { what: Limited::Snapshots, limit: 7 }), "{eighth}");
    assert_eq!(before, face(&evs));
    // A handle without the profile goes on, and deleting makes room.
    let native = evs.limited(Limits::native());
    let more = native.create_snapshot(id, SnapshotSpec::new()).unwrap().id;
    for id in [more, seven[0]] {
        drop(evs.delete_snapshot(id).unwrap());
    }
    evs.create_snapshot(id, SnapshotSpec::new()).unwrap();
}

#[test]
fn profiles_bound_names_sizes_types_and_quotas() {
    let native = pool();
    let evs = native.limited(Limits::evs().volumes(Some(3)).volume_bytes(Some(10 * GIB)));
    let spec = || VolumeSpec::blank(GIB);
    for (want, bad) in [
        (Violation::Size, VolumeSpec::blank(4096)),
        (Violation::Size, VolumeSpec::blank(32_769 * GIB)),
        (Violation::VolumeType, spec().volume_type("TAPE")),
        (Violation::Zone, spec().zone("az9")),
        (Violation::TooLong, spec().name("x".repeat(256))),
        (Violation::TooLong, spec().description("€".repeat(86))),
        (Violation::FullClone, spec().metadata("full_clone", "no")),
        (Violation::Project, spec().project("")),
        (Violation::Project, spec().project("p".repeat(61))),
    ] {
        let before = face(&evs);
        assert_eq!(rule(&evs.create_volume(bad).unwrap_err()), want);
        assert_eq!(before, face(&evs));
    }
    let id = evs.create_volume(spec().volume_type("SSD").project("p")).unwrap().id;
    let over = evs.create_volumes(spec().project("p"), 3).unwrap_err();
    assert!(matches!(over, Error::LimitExceeded { what: Limited::Volumes, limit: 3 }), "{over}");
    let over = evs.extend(id, 11 * GIB).unwrap_err();
    assert!(matches!(over, Error::LimitExceeded { what: Limited::VolumeBytes, .. }), "{over}");
    // Another project has a quota of its own.
    assert_eq!(evs.create_volumes(spec().project("q"), 3).unwrap().len(), 3);
    assert_eq!(evs.usage("p").unwrap().volumes, 1);
    evs.extend(id, 10 * GIB).unwrap();
    assert_eq!(evs.usage("p").unwrap().volume_bytes, 10 * GIB);
    drop(evs.delete_volume(id, Snapshots::Refuse).unwrap());
    assert_eq!(evs.usage("p").unwrap(), snapvol::Usage::default());
    // Characters, not bytes.
    let ucloud = native.limited(Limits::ucloud());
    let volume = blank(&native);
    let remark = |n: usize| SnapshotSpec::new().description("硬".repeat(n));
    let kept = ucloud.create_snapshot(volume, remark(100)).unwrap();
    assert_eq!(kept.description.unwrap().chars().count(), 100);
    assert_eq!(rule(&ucloud.create_snapshot(volume, remark(101)).unwrap_err()), Violation::TooLong);
}

#[test]
fn projects_are_numbered_in_order_of_use_and_isolated() {
    let pool = pool();
    let home = blank(&pool);
    assert_eq!(pool.volume(home).unwrap().project.number, 0);
    let refused = pool.create_volume(VolumeSpec::blank(1).project("never"));
    assert!(refused.is_err() && pool.project("never").is_err());
    let of = |id: &str| pool.create_volume(VolumeSpec::blank(SIZE).project(id)).unwrap();
    let (b, a, b2) = (of("b"), of("a"), of("b"));
    assert_eq!((b.project.number, a.project.number, b2.project.number), (1, 2, 1));
    let snapshot = pool.create_snapshot(a.id, SnapshotSpec::new()).unwrap();
    assert_eq!(snapshot.project, a.project);
    assert!(matches!(pool.volume_in("b", a.id), Err(Error::NotFound { object: "volume", .. })));
    assert!(matches!(pool.snapshot_in("b", snapshot.id), Err(Error::NotFound { object: "snapshot", .. })));
    assert!(pool.volume_in("a", a.id).is_ok() && pool.snapshot_in("a", snapshot.id).is_ok());
    // What is made from something follows it, and nothing crosses.
    let clone = pool.create_volume(VolumeSpec::from_snapshot(snapshot.id)).unwrap();
    assert_eq!(clone.project.id, "a");
    let crossed = pool.create_volume(VolumeSpec::from_snapshot(snapshot.id).project("b")).unwrap_err();
    assert!(matches!(crossed, Error::NotFound { object: "snapshot", .. }), "{crossed}");
    let ids = |query: VolumeQuery| -> BTreeSet<VolumeId> {
        let page = pool.list_volumes(&query.clone().with_total(true)).unwrap();
        assert_eq!(page.total, Some(page.items.len() as u64));
        let sorted = pool.list_volumes(&query.sort(SortKey::Id, SortOrder::Ascending)).unwrap();
        assert!(sorted.items.is_sorted_by_key(|v| v.id));
        let found: BTreeSet<_> = page.items.iter().map(|v| v.id).collect();
        assert_eq!(found, sorted.items.iter().map(|v| v.id).collect());
        found
    };
    assert_eq!(ids(VolumeQuery::new().project("b")), BTreeSet::from([b.id, b2.id]));
    assert_eq!(ids(VolumeQuery::new().project("b").project("a")).len(), 4);
    assert_eq!(ids(VolumeQuery::new().project("nobody")), BTreeSet::new());
    assert_eq!(ids(VolumeQuery::new().project("b").ids([a.id, b.id])), BTreeSet::from([b.id]));
    let foreign = pool.list_volumes(&VolumeQuery::new().project("b").marker(a.id));
    assert!(matches!(foreign, Err(Error::NotFound { .. })));
    // The default project gets an id that nobody else has.
    assert!(matches!(pool.set_default_project("a"), Err(Error::AlreadyExists { object: "project", .. })));
    pool.set_default_project("first").unwrap();
    assert_eq!(pool.volume(home).unwrap().project.id, "first");
    assert_eq!(pool.create_project("default").unwrap().number, 3);
    pool.name_project("b", Some("B team".into())).unwrap();
    assert_eq!(pool.project_by_number(1).unwrap().name.as_deref(), Some("B team"));
    assert_eq!(pool.projects().unwrap().len(), 4);
}

#[test]
fn a_stored_attachment_lasts_and_a_handle_uses_it() {
    let device = snapvol::device::MemoryDevice::new();
    let pool = Pool::create_on(device.share(), Shape::SMALL.create()).unwrap();
    let id = blank(&pool);
    pool.reserve(id).unwrap();
    assert_eq!(pool.volume(id).unwrap().status, VolumeStatus::Attaching);
    assert!(pool.attach(id, AttachOptions::new()).is_err());
    let spec = || AttachmentSpec::new("vm-1").host_name("h").device("/dev/vdb").server_kind("VM");
    let attached = pool.attach_server(id, spec()).unwrap();
    let shown = pool.volume(id).unwrap();
    assert_eq!((shown.status, &shown.attachments[..]), (VolumeStatus::InUse, &[attached.clone()][..]));
    assert!(matches!(
        pool.attach_server(id, AttachmentSpec::new("vm-2")),
        Err(Error::InvalidState { rule: StateRule::Attached, .. })
    ));
    let disk = pool.attach(id, AttachOptions::new()).unwrap();
    assert_eq!((pool.volume(id).unwrap().attachments.len(), pool.volume(id).unwrap().handles), (1, 1));
    for (state, ok) in [
        (ServerState::Other, false),
        (ServerState::Paused, true),
        (ServerState::Suspended, true),
        (ServerState::Shutoff, true),
        (ServerState::Active, true),
    ] {
        pool.set_server_state(id, attached.id, state).unwrap();
        let size = pool.volume(id).unwrap().size_bytes;
        match pool.extend(id, size + 4096) {
            Ok(_) => assert!(ok),
            Err(Error::InvalidState { rule: StateRule::Server, .. }) => assert!(!ok),
            Err(other) => panic!("{other:?}"),
        }
    }
    drop(disk);
    pool.close().unwrap();
    let pool = Pool::open_on(device.share(), Shape::SMALL.open()).unwrap();
    assert_eq!(pool.volume(id).unwrap().attachments.len(), 1);
    pool.begin_detaching(id).unwrap();
    assert_eq!(pool.volume(id).unwrap().status, VolumeStatus::Detaching);
    pool.detach_server(id, Some(attached.id)).unwrap();
    assert_eq!(pool.volume(id).unwrap().status, VolumeStatus::Available);
    // A handle shows itself, and a server that only reads lends no writing.
    let disk = pool.attach(id, AttachOptions::new()).unwrap();
    let shown = pool.volume(id).unwrap();
    assert!(shown.attachments.len() == 1 && !shown.attachments[0].stored);
    assert!(matches!(pool.detach_server(id, None), Err(Error::NotFound { object: "attachment", .. })));
    drop(disk);
    pool.attach_server(id, spec().read_only(true)).unwrap();
    assert!(pool.attach(id, AttachOptions::new()).unwrap().is_read_only());
}

#[test]
fn a_shared_volume_takes_sixteen_servers_and_goes_only_when_all_have_left() {
    let pool = pool();
    let id = pool.create_volume(VolumeSpec::blank(SIZE).multiattach(true)).unwrap().id;
    for n in 0..16 {
        pool.attach_server(id, AttachmentSpec::new(format!("vm-{n}"))).unwrap();
    }
    let before = face(&pool);
    let over = pool.attach_server(id, AttachmentSpec::new("vm-16")).unwrap_err();
    assert!(matches!(over, Error::LimitExceeded { what: Limited::Attachments, limit: 16 }));
    let extend = pool.extend(id, 2 * SIZE).unwrap_err();
    assert!(matches!(extend, Error::InvalidState { rule: StateRule::Shared, .. }));
    assert_eq!(rule(&pool.detach_server(id, None).unwrap_err()), Violation::Missing);
    assert_eq!(before, face(&pool));
    for attachment in pool.volume(id).unwrap().attachments {
        assert!(pool.delete_volume(id, Snapshots::Delete).is_err());
        pool.detach_server(id, Some(attachment.id)).unwrap();
    }
    drop(pool.delete_volume(id, Snapshots::Delete).unwrap());
}

#[test]
fn an_image_hands_on_its_content_and_outlives_nothing() {
    let pool = pool();
    let base = blank(&pool);
    pool.attach(base, AttachOptions::new()).unwrap().write_at(b"boot", 0).unwrap();
    let queued = pool.create_image(ImageSpec::new().name("os").min_disk_bytes(2 * SIZE).tag("t")).unwrap();
    assert_eq!((queued.status, queued.size_bytes, queued.checksum), (ImageStatus::Queued, None, None));
    let early = pool.create_volume(VolumeSpec::from_image(queued.id)).unwrap_err();
    assert!(matches!(early, Error::InvalidState { object: "image", status: "queued", .. }), "{early}");
    let content = || ImageContent::new().size_bytes(5).checksum("d972013792949d0d3ba628f8e8685bce");
    let active = pool.activate_image(queued.id, base, content()).unwrap();
    assert_eq!((active.size_bytes, active.virtual_bytes), (Some(5), Some(SIZE)));
    assert!(pool.activate_image(queued.id, base, content()).is_err());
    drop(pool.delete_volume(base, Snapshots::Delete).unwrap());
    let made = pool.create_volume(VolumeSpec::from_image(queued.id)).unwrap();
    assert_eq!((made.bootable, made.size_bytes), (true, 2 * SIZE));
    for (want, bad) in [
        (Violation::BelowSource, VolumeSpec::from_image(queued.id).size(SIZE)),
        (Violation::SharedImage, VolumeSpec::from_image(queued.id).multiattach(true)),
    ] {
        assert_eq!(rule(&pool.create_volume(bad).unwrap_err()), want);
    }
    pool.update_image(queued.id, snapvol::ImageUpdate::new().protected(true)).unwrap();
    assert!(matches!(pool.delete_image(queued.id), Err(Error::Busy { object: "image", .. })));
    pool.update_image(queued.id, snapvol::ImageUpdate::new().protected(false)).unwrap();
    pool.delete_image(queued.id).unwrap().wait().unwrap();
    let mut bytes = [0; 4];
    pool.attach(made.id, AttachOptions::new()).unwrap().read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"boot");
    common::assert_sound(&pool);
}

#[test]
fn snapshots_of_backups_keep_their_distance() {
    let pool = pool();
    let id = blank(&pool);
    let named =
        pool.create_snapshot(id, SnapshotSpec::new().name(format!("{BACKUP_SNAPSHOT_PREFIX}mine"))).unwrap();
    assert_eq!((named.warning(), named.backup_owned), (Some(Warning::BackupPrefix), false));
    assert!(pool.rollback(named.id).is_ok());
    let strict = pool.limited(Limits::evs().refuse_backup_prefix(true));
    let refused = strict.create_snapshot(id, SnapshotSpec::new().name(BACKUP_SNAPSHOT_PREFIX)).unwrap_err();
    assert_eq!(rule(&refused), Violation::ReservedName);

    let run = pool.begin_backup(id, SnapshotSpec::new()).unwrap();
    assert_eq!(pool.volume(id).unwrap().status, VolumeStatus::BackingUp);
    assert_eq!(pool.snapshot(run.snapshot()).unwrap().status, SnapshotStatus::BackingUp);
    assert!(pool.attach_snapshot(run.snapshot()).is_ok());
    assert!(matches!(
        pool.delete_volume(id, Snapshots::Delete),
        Err(Error::InvalidState { status: "backing-up", .. })
    ));
    let first = run.finish().unwrap();
    assert!(first.name.unwrap().starts_with(BACKUP_SNAPSHOT_PREFIX));
    assert_eq!((first.backup_owned, first.trigger), (true, Trigger::Automatic));
    assert!(matches!(pool.rollback(first.id), Err(Error::Unsupported(_))));
    let clone = pool.create_volume(VolumeSpec::from_snapshot(first.id)).unwrap_err();
    assert!(matches!(clone, Error::InvalidState { rule: StateRule::BackupOwned, .. }), "{clone}");
    assert_eq!(pool.backup_base(id).unwrap().unwrap().id, first.id);
    // Only the newest is kept, and one that is given up leaves nothing.
    let second = pool.begin_backup(id, SnapshotSpec::new()).unwrap().finish().unwrap();
    assert!(pool.snapshot(first.id).is_err());
    drop(pool.begin_backup(id, SnapshotSpec::new()).unwrap());
    assert_eq!(pool.backup_base(id).unwrap().unwrap().id, second.id);
    assert_eq!(pool.volume(id).unwrap().status, VolumeStatus::Available);
    let deletion = pool.delete_snapshot(second.id).unwrap();
    assert_eq!(deletion.warnings(), [Warning::NextBackupIsFull]);
    assert!(pool.backup_base(id).unwrap().is_none());
}

#[test]
fn rolling_back_names_its_volume_and_metadata_change_as_a_whole() {
    let pool = pool();
    let (a, b) = (blank(&pool), blank(&pool));
    let snapshot = pool.create_snapshot(a, SnapshotSpec::new().metadata("k", "v")).unwrap().id;
    let before = face(&pool);
    let wrong = pool.rollback_with(snapshot, RollbackOptions::new().volume(b)).unwrap_err();
    assert_eq!(rule(&wrong), Violation::NotSourceVolume);
    let missing = SnapshotUpdate::new().remove_metadata("k").remove_metadata("no");
    let missing = pool.update_snapshot(snapshot, missing).unwrap_err();
    assert!(matches!(missing, Error::NotFound { object: "metadata key", .. }));
    assert_eq!(before, face(&pool));
    pool.rollback_with(snapshot, RollbackOptions::new().volume(a)).unwrap();
    let merged = [("x".to_string(), "1".to_string())].into();
    let update = VolumeUpdate::new().merge_metadata(merged);
    pool.update_volume(a, update.clone()).unwrap();
    let volume = pool.update_volume(a, update.remove_metadata("x")).unwrap();
    assert_eq!(volume.metadata.len(), 1);
}

#[test]
fn zones_and_types_stay_with_what_is_made_from_a_snapshot() {
    let pool = pool();
    pool.rename_zone("az1", "az1.dc1").unwrap();
    pool.set_zone("az2", true).unwrap();
    let spec = VolumeSpec::blank(SIZE).zone("az2").volume_type("SSD");
    let id = pool.create_volume(spec).unwrap().id;
    let snapshot = pool.create_snapshot(id, SnapshotSpec::new()).unwrap();
    assert_eq!((snapshot.zone.as_str(), snapshot.volume_type.as_deref()), ("az2", Some("SSD")));
    let from = || VolumeSpec::from_snapshot(snapshot.id);
    let clone = pool.create_volume(from()).unwrap();
    assert_eq!((clone.zone.as_str(), clone.volume_type.as_deref()), ("az2", Some("SSD")));
    let differs = pool.create_volume(from().zone("az1.dc1")).unwrap_err();
    assert_eq!(rule(&differs), Violation::ZoneDiffers);
    let differs = pool.create_volume(from().volume_type("SAS")).unwrap_err();
    assert_eq!(rule(&differs), Violation::VolumeTypeDiffers);
    pool.set_zone("az2", false).unwrap();
    let closed = pool.create_volume(VolumeSpec::blank(SIZE).zone("az2")).unwrap_err();
    assert_eq!(rule(&closed), Violation::Zone);
    let here = pool.list_snapshots(&SnapshotQuery::new().zone("az2")).unwrap();
    assert_eq!(here.items.len(), 1);
    assert!(pool.list_snapshots(&SnapshotQuery::new().zone("az1.dc1")).unwrap().items.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random calls, many of them senseless: what is refused has changed nothing.
    #[test]
    fn refused_calls_leave_every_listing_equal(calls in proptest::collection::vec((0u8..24, any::<u8>(), any::<u8>()), 1..40)) {
        let native = pool();
        let evs = native.limited(Limits::evs().volumes(Some(4)));
        for (call, a, b) in calls {
            let before = face(&native);
            let volumes: Vec<VolumeId> =
                native.list_volumes(&VolumeQuery::new()).unwrap().items.iter().map(|v| v.id).collect();
            let snapshots: Vec<SnapshotId> =
                native.list_snapshots(&SnapshotQuery::new()).unwrap().items.iter().map(|s| s.id).collect();
            let nobody = uuid::Uuid::from_u128(u128::from(a) << 80);
            let volume = volumes.get(usize::from(a) % (volumes.len() + 1)).copied();
            let volume = volume.unwrap_or(VolumeId::new(nobody));
            let snapshot = snapshots.get(usize::from(b) % (snapshots.len() + 1)).copied();
            let snapshot = snapshot.unwrap_or(SnapshotId::new(nobody));
            let project = ["p", "q", ""][usize::from(b) % 3];
            let pool = if a % 2 == 0 { &native } else { &evs };
            let size = [4096, GIB, 2 * GIB, 5][usize::from(b) % 4];
            let refused = match call {
                0..=2 => pool.create_volume(VolumeSpec::blank(size).project(project)).is_err(),
                3 => pool.create_volumes(VolumeSpec::blank(size).name("n"), u32::from(b % 5)).is_err(),
                4 | 5 => pool.create_volume(VolumeSpec::from_snapshot(snapshot).project(project)).is_err(),
                6 => pool.create_volume(VolumeSpec::from_volume(volume).size(size)).is_err(),
                7..=9 => pool.create_snapshot(volume, SnapshotSpec::new().force(b % 2 == 0)).is_err(),
                10 => pool.rollback_with(snapshot, RollbackOptions::new().volume(volume)).is_err(),
                11 => pool.extend(volume, size).is_err(),
                12 => pool.delete_volume(volume, if b % 2 == 0 { Snapshots::Refuse } else { Snapshots::Delete }).is_err(),
                13 => pool.delete_snapshot(snapshot).is_err(),
                14 | 15 => pool.attach_server(volume, AttachmentSpec::new(project)).is_err(),
                16 => pool.detach_server(volume, None).is_err(),
                17 => pool.rename_volume(volume, "x".repeat(usize::from(b) * 2)).is_err(),
                18 => pool.update_snapshot(snapshot, SnapshotUpdate::new().remove_metadata("k")).is_err(),
                19 => pool.set_read_only(volume, b % 2 == 0).is_err(),
                20 => pool.begin_backup(volume, SnapshotSpec::new()).and_then(|run| run.finish()).is_err(),
                21 => pool.begin_restore(volume).and_then(|filling| filling.finish()).is_err(),
                22 => pool.hold_snapshot(snapshot).is_err(),
                _ => pool.set_zone(project, b % 2 == 0).is_err(),
            };
            if refused {
                prop_assert_eq!(before, face(&native), "call {} {} {} left a trace", call, a, b);
            }
        }
        common::assert_sound(&native);
    }
}

/// Work that takes its time, cut everywhere: nothing transient, nothing half, nothing that belongs to nobody.
#[test]
fn after_a_crash_at_any_write_no_transient_status_persists() {
    let sim = SimDevice::new();
    let pool = Pool::create_on(sim.clone(), Shape::SMALL.create()).unwrap();
    let base = blank(&pool);
    pool.attach(base, AttachOptions::new()).unwrap().write_fua_at(&[7; 4096], 0).unwrap();
    let snapshot = pool.create_snapshot(base, SnapshotSpec::new()).unwrap().id;
    let victim = blank(&pool);
    sim.restart_trace();

    let filling = pool.begin_volume(VolumeSpec::blank(SIZE).project("p"), VolumeStatus::Creating).unwrap();
    filling.disk().unwrap().write_fua_at(&[1; 4096], 0).unwrap();
    let made = filling.finish().unwrap().id;
    let given_up = pool.begin_volume(VolumeSpec::blank(SIZE), VolumeStatus::Downloading).unwrap();
    let given_up_id = given_up.volume();
    given_up.disk().unwrap().write_fua_at(&[2; 4096], 0).unwrap();
    drop(given_up);
    assert!(pool.volume(given_up_id).is_err());
    let run = pool.begin_backup(base, SnapshotSpec::new()).unwrap();
    let owned = run.snapshot();
    pool.flush().unwrap();
    run.finish().unwrap();
    let restore = pool.begin_restore(victim).unwrap();
    restore.disk().unwrap().write_fua_at(&[3; 4096], 0).unwrap();
    restore.finish().unwrap();
    pool.reserve(made).unwrap();
    pool.attach_server(made, AttachmentSpec::new("vm")).unwrap();
    pool.rollback(snapshot).unwrap();
    pool.extend(base, 2 * SIZE).unwrap();
    drop(pool.delete_volume(victim, Snapshots::Delete).unwrap());

    let trace = sim.trace();
    let mut seen = BTreeSet::new();
    for cut in 0..=trace.len() {
        for lost in [false, true] {
            let fate = if lost { Fate::Lost } else { Fate::Kept };
            let device = trace.device_at(cut, |_| fate.clone());
            let pool = Pool::open_on(device.clone(), Shape::SMALL.open()).unwrap();
            for volume in pool.list_volumes(&VolumeQuery::new()).unwrap().items {
                let fits = match volume.status {
                    VolumeStatus::Available => true,
                    VolumeStatus::InUse => volume.id == made,
                    VolumeStatus::ErrorRestoring => volume.id == victim,
                    _ => false,
                };
                assert!(fits, "cut at {cut}: {} is {}", volume.id, volume.status);
                assert_ne!(volume.id, given_up_id, "cut at {cut}: an unfinished volume is there");
                if volume.id == made {
                    let mut first = [0; 4096];
                    let disk = pool.attach(made, AttachOptions::new().read_only(true)).unwrap();
                    disk.read_at(&mut first, 0).unwrap();
                    assert_eq!(first, [1; 4096], "cut at {cut}: a volume that is not whole is there");
                }
                seen.insert((volume.id, volume.status.as_str()));
            }
            for found in pool.list_snapshots(&SnapshotQuery::new()).unwrap().items {
                assert_eq!(found.status, SnapshotStatus::Available, "cut at {cut}");
                assert_eq!(found.backup_owned, found.id == owned);
            }
            let usage = pool.projects().unwrap().iter().map(|p| pool.usage(&p.id).unwrap().volumes).sum();
            assert_eq!(pool.list_volumes(&VolumeQuery::new().with_total(true)).unwrap().total, Some(usage));
            if cut % 8 == 0 {
                common::assert_sound(&pool);
            }
            kill(&device, pool);
        }
    }
    println!("{} cuts, seen: {seen:?}", trace.len() + 1);
    assert!(seen.contains(&(victim, "error_restoring")), "no cut fell into the restore");
    assert!(seen.contains(&(made, "in-use")) && seen.contains(&(made, "available")));
    drop(pool);
}
