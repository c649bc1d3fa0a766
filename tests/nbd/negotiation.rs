//! Names, listings, options, contexts: what is said before a volume is used.

use super::*;

#[test]
fn an_id_always_names_its_object_and_a_name_does_while_it_is_the_only_one() {
    let rig = Rig::new();
    let a = rig.volume("a", MIB);
    let twin_1 = rig.volume("twin", 2 * MIB);
    let twin_2 = rig.volume("twin", 3 * MIB);
    let odd = rig.volume("with@sign", 4 * MIB);
    let daily = rig.snapshot(a, "daily");
    let daily_2 = rig.snapshot(twin_1, "daily");
    let nightly = rig.snapshot(odd, "night@ly");
    let usurper = rig.volume(&a.to_string(), 5 * MIB);
    let point = |name: &str| find_export(&rig.pool, name).map(|e| e.point);
    for (name, object) in [
        (a.to_string(), Point::Volume(a)),
        (usurper.to_string(), Point::Volume(usurper)),
        (twin_2.to_string(), Point::Volume(twin_2)),
        (daily.to_string(), Point::Snapshot(daily)),
        ("a".into(), Point::Volume(a)),
        ("with@sign".into(), Point::Volume(odd)),
        ("a@daily".into(), Point::Snapshot(daily)),
        ("twin@daily".into(), Point::Snapshot(daily_2)),
        (format!("{twin_1}@daily"), Point::Snapshot(daily_2)),
        ("night@ly".into(), Point::Snapshot(nightly)),
        ("with@sign@night@ly".into(), Point::Snapshot(nightly)),
    ] {
        assert_eq!(point(&name).unwrap(), object, "{name}");
        let mut client = rig.open(&name);
        assert_eq!(client.size, find_export(&rig.pool, &name).unwrap().size_bytes);
        client.read(0, 512);
        client.disconnect();
    }
    for name in ["twin", "daily", ""] {
        assert!(matches!(point(name), Err(Error::InvalidArgument { field: "name", .. })), "{name:?}");
    }
    for name in ["b", "a@", "@daily", "a@night@ly", "twin@twin", "0f0f0f0f-0f0f-0f0f-0f0f-0f0f0f0f0f0f"] {
        assert!(matches!(point(name), Err(Error::NotFound { .. })), "{name}");
        let mut client = Client::hello(&rig.path(), 3);
        assert_eq!(client.go(name).unwrap_err().0, ERR_UNKNOWN);
        assert_eq!(client.verdict(2, &[]), ACK, "it may go on after that");
    }
    rig.end();
}

#[test]
fn the_empty_name_is_the_only_volume() {
    let rig = Rig::new();
    assert!(matches!(find_export(&rig.pool, ""), Err(Error::NotFound { .. })));
    let only = rig.volume("only", MIB);
    rig.snapshot(only, "snapshots do not count");
    assert_eq!(rig.open("").size, MIB);
    rig.volume("another", MIB);
    assert_eq!(Client::hello(&rig.path(), 3).go("").unwrap_err().0, ERR_UNKNOWN);
    rig.end();
}

#[test]
fn every_object_is_listed_once_under_a_name_that_finds_it() {
    let rig = Rig::new();
    // More than one page of each kind.
    let mut all = Vec::new();
    for i in 0..150 {
        let volume = rig.volume(&format!("v{}", i / 2), 4096);
        all.push(volume.raw());
        all.push(rig.snapshot(volume, &format!("s{i}")).raw());
    }
    for name in ["", "a\0b", &all[0].to_string()] {
        let volume = rig.volume(name, 4096);
        all.push(volume.raw());
        all.push(rig.snapshot(volume, name).raw());
    }
    all.push(rig.pool.create_volume(VolumeSpec::blank(4096)).unwrap().id.raw());
    let listed: Vec<_> = exports(&rig.pool).unwrap().map(Result::unwrap).collect();
    let mut ids: Vec<_> = listed.iter().map(|e| e.id()).collect();
    for export in &listed {
        let found = find_export(&rig.pool, &export.name).unwrap();
        assert_eq!((found.id(), found.size_bytes, found.read_only), (export.id(), 4096, export.read_only));
        assert_eq!(export.read_only, matches!(export.point, Point::Snapshot(_)));
    }
    ids.sort();
    all.sort();
    assert_eq!(ids, all);
    let names: Vec<&str> = listed.iter().map(|e| e.name.as_str()).collect();
    assert!(names.contains(&"v0@s1") && !names.contains(&"v0"), "v0 is the name of two volumes");

    let mut client = Client::hello(&rig.path(), 3);
    let replies = client.option(3, &[]);
    let said: Vec<String> = replies[..replies.len() - 1]
        .iter()
        .map(|(kind, payload)| {
            assert_eq!(*kind, 2);
            let len = be32(payload) as usize;
            assert!(payload.len() > 4 + len, "a description for people follows");
            String::from_utf8(payload[4..4 + len].to_vec()).unwrap()
        })
        .collect();
    assert_eq!(said, names);
    drop(client);
    rig.end();
}

#[test]
fn a_listing_goes_on_where_objects_are_deleted_under_it() {
    let rig = Rig::new();
    for i in 0..200 {
        rig.volume(&format!("v{i:03}"), 4096);
    }
    let mut listing = exports(&rig.pool).unwrap();
    let mut seen: Vec<String> = listing.by_ref().take(64).map(|e| e.unwrap().name).collect();
    // Newest first: these are the last ones of the first page, and some of the second.
    for i in 120..140 {
        let gone = find_export(&rig.pool, &format!("v{i:03}")).unwrap();
        let Point::Volume(id) = gone.point else { panic!("not a volume") };
        let _ = rig.pool.delete_volume(id, Snapshots::Refuse).unwrap();
    }
    seen.extend(listing.map(|e| e.unwrap().name));
    let want: Vec<String> =
        (0..200).rev().filter(|i| !(120..136).contains(i)).map(|i| format!("v{i:03}")).collect();
    assert_eq!(seen, want);
    rig.end();
}

#[test]
fn options_are_answered_as_the_protocol_says() {
    let rig = Rig::new();
    rig.volume("v", MIB);
    let mut client = Client::hello(&rig.path(), 3);
    // Unknown, withdrawn and TLS: refused, and the next one is understood.
    for unknown in [0, 4, 5, 11, 12, 0xffff_ffff] {
        assert_eq!(client.verdict(unknown, b"whatever"), ERR_UNSUP);
    }
    assert_eq!(client.verdict(3, b"data"), ERR_INVALID);
    assert_eq!(client.verdict(8, b"data"), ERR_INVALID);
    // Lengths that lie.
    for data in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\x09v\0\0",
        b"\xff\xff\xff\xffv\0\0",
        b"\0\0\0\x01v\0\x01",
        b"\0\0\0\x01v\0\0more",
        b"\0\0\0\x01\xff\0\0",
    ] {
        assert_eq!(client.verdict(6, data), ERR_INVALID, "{data:?}");
        assert_eq!(client.verdict(7, data), ERR_INVALID, "{data:?}");
    }
    assert_eq!(client.verdict(6, &vec![0; (128 << 10) + 1]), ERR_TOO_BIG);
    // INFO, then GO with the same wishes.
    let wishes = info_data("v", &[0, 1, 2, 3, 77]);
    let mut info = client.option(6, &wishes);
    let part = |info: &[(u32, Vec<u8>)], kind| {
        info.iter().find(|(k, p)| *k == 3 && be16(p) == kind).map(|(_, p)| p[2..].to_vec()).unwrap()
    };
    let export = part(&info, 0);
    assert_eq!((be64(&export), be16(&export[8..])), (MIB, 0b1101_0110_1101));
    assert_eq!(part(&info, 1), b"v");
    assert!(part(&info, 2).starts_with(b"volume "));
    let sizes = part(&info, 3);
    assert_eq!((be32(&sizes), be32(&sizes[4..]), be32(&sizes[8..])), (1, 4096, 32 << 20));
    assert_eq!(info.len(), 5);
    let mut go = client.option(7, &wishes);
    info.sort();
    go.sort();
    assert_eq!(info, go);
    assert_eq!(client.read(0, 1), [0]);
    client.disconnect();
    // DF is offered with structured replies only.
    let mut client = Client::hello(&rig.path(), 3);
    client.structured();
    client.go("v").unwrap();
    assert_eq!(client.flags, 0b1101_1110_1101);
    // What is not asked for is not told.
    drop(client);
    assert_eq!(Client::hello(&rig.path(), 3).go("v").unwrap().len(), 2);
    rig.end();
}

#[test]
fn info_attaches_nothing_and_go_does() {
    let rig = Rig::new();
    let id = rig.volume("v", MIB);
    let mut client = Client::hello(&rig.path(), 3);
    assert_eq!(client.verdict(6, &info_data("v", &[])), ACK);
    assert_eq!(rig.status(id), VolumeStatus::Available);
    let disk = rig.pool.attach(id, AttachOptions::default()).unwrap();
    let (kind, why) = client.go("v").unwrap_err();
    assert_eq!(kind, ERR_UNKNOWN);
    assert!(why.contains("in-use"), "{why}");
    drop(disk);
    client.go("v").unwrap();
    assert_eq!(rig.status(id), VolumeStatus::InUse);
    drop(client);
    rig.end();
}

#[test]
fn the_old_way_in_works_and_ends_the_connection_where_it_cannot() {
    let rig = Rig::new();
    rig.volume("v", MIB);
    for (flags, tail) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let mut client = Client::hello(&rig.path(), flags);
        client.send(&option(1, b"v"));
        let said = client.bytes(10 + tail);
        assert_eq!((be64(&said), be16(&said[8..])), (MIB, 0b1101_0110_1101));
        assert!(said[10..].iter().all(|b| *b == 0));
        client.write(7, b"old");
        assert_eq!(client.read(6, 5), b"\0old\0");
        assert_eq!(client.call(DF, READ, 0, 1, &[]).error, EINVAL, "DF was not negotiated");
        client.disconnect();
        let mut client = Client::hello(&rig.path(), flags);
        client.send(&option(1, b"nothing"));
        assert!(client.is_closed());
    }
    for flags in [4, 0x8000_0001] {
        assert!(Client::hello(&rig.path(), flags).is_closed(), "unknown client flags");
    }
    let mut client = Client::hello(&rig.path(), 3);
    assert_eq!(client.verdict(2, b"ignored"), ACK);
    assert!(client.is_closed());
    let mut client = Client::hello(&rig.path(), 3);
    client.send(&option(1, &vec![b'x'; 200 << 10]));
    assert!(client.is_closed());
    rig.end();
}

#[test]
fn contexts_are_listed_and_selected_as_the_protocol_says() {
    let rig = Rig::new();
    let v = rig.volume("v", MIB);
    let other = rig.volume("other", MIB);
    rig.snapshot(v, "one");
    let two = rig.snapshot(v, "two");
    rig.snapshot(other, "elsewhere");
    let mut client = Client::hello(&rig.path(), 3);
    assert_eq!(client.verdict(10, &context_data("v", &["base:allocation"])), ERR_INVALID, "not structured");
    client.structured();
    let mut names = |option: u32, export: &str, queries: &[&str]| -> Vec<String> {
        let mut replies = client.option(option, &context_data(export, queries));
        assert_eq!(replies.pop().unwrap().0, ACK, "{queries:?}");
        let ids: Vec<u32> = replies.iter().map(|r| be32(&r.1)).collect();
        assert!(option == 9 || ids.iter().enumerate().all(|(i, id)| ids[..i].iter().all(|o| o != id)));
        replies
            .iter()
            .map(|(kind, p)| (assert_eq!(*kind, 4), String::from_utf8(p[4..].to_vec()).unwrap()).1)
            .collect()
    };
    let of = |name: &str| format!("qemu:dirty-bitmap:{name}");
    let all = ["base:allocation".into(), of("v@two"), of("v@one")];
    assert_eq!(names(9, "v", &[]), all);
    assert_eq!(names(9, "v@one", &[]), all, "a snapshot has those of its volume");
    assert_eq!(names(9, "v", &["qemu:", "base:"]), all);
    assert_eq!(names(9, "v", &["qemu:dirty-bitmap:"]), all[1..]);
    assert_eq!(names(9, "v", &[&of("elsewhere"), &of("nothing"), "base:nothing"]), [of("elsewhere")]);
    assert_eq!(names(9, "v", &["x-unknown:a", "nbd-server:"]), [""; 0]);
    assert_eq!(names(10, "v", &[]), [""; 0]);
    assert_eq!(names(10, "v", &["base:", "qemu:", "qemu:dirty-bitmap:", "qemu:allocation-depth"]), [""; 0]);
    let by_id = of(&two.to_string());
    let mut both = names(10, "v", &[&by_id, "base:allocation", &by_id]);
    both.sort();
    assert_eq!(both, ["base:allocation", &by_id]);
    for export in ["nothing", ""] {
        assert_eq!(client.verdict(9, &context_data(export, &[])), ERR_UNKNOWN);
        assert_eq!(client.verdict(10, &context_data(export, &["base:allocation"])), ERR_UNKNOWN);
    }
    for data in [&b"\0\0\0\x01v"[..], b"\0\0\0\x01v\0\0\0\x01", b"\0\0\0\x01v\0\0\0\x01\xff\xff\xff\xff", b""]
    {
        assert_eq!(client.verdict(9, data), ERR_INVALID);
        assert_eq!(client.verdict(10, data), ERR_INVALID);
    }
    assert_eq!(client.verdict(10, &context_data("v", &["no colon"])), ERR_INVALID);
    assert_eq!(client.verdict(10, &context_data("v", &["a:b"; 17])), ERR_TOO_BIG);
    // The last selection counts, a failed one too.
    client.go("v").unwrap();
    assert_eq!(client.call(0, STATUS, 0, 4096, &[]).error, EINVAL);
    drop(client);
    // As does the export name that it was made for.
    let mut client = Client::hello(&rig.path(), 3);
    client.structured();
    assert_eq!(client.verdict(10, &context_data("v", &["base:allocation"])), ACK);
    client.go("other").unwrap();
    assert_eq!(client.call(0, STATUS, 0, 4096, &[]).error, EINVAL);
    drop(client);
    // A snapshot that is selected stays.
    let client = Client::open_with(&rig.path(), "v", &[&by_id]);
    assert!(matches!(rig.pool.delete_snapshot(two), Err(Error::Busy { .. } | Error::InvalidState { .. })));
    client.disconnect();
    let _ = rig.pool.delete_snapshot(two).unwrap();
    rig.end();
}
