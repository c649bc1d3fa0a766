use std::io::ErrorKind;

use super::*;

fn read(sim: &SimDevice, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0xee; len];
    sim.read_at(&mut buf, offset).map(|()| buf)
}

#[test]
fn reads_see_what_is_not_synced_and_a_crash_loses_it() {
    let sim = SimDevice::new();
    sim.write_at(b"durable", 0).unwrap();
    sim.sync().unwrap();
    sim.write_at(b"pending", 0).unwrap();
    assert_eq!(read(&sim, 0, 7).unwrap(), b"pending");
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"durable");
    assert_eq!(sim.crash(|_| Fate::Kept).view(), b"pending");
    sim.sync().unwrap();
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"pending");
    assert_eq!(sim.op_count(), 4);
}

#[test]
fn reads_past_the_end_are_errors() {
    let sim = SimDevice::from_image(vec![1; 10]);
    assert_eq!(sim.len().unwrap(), 10);
    assert_eq!(read(&sim, 9, 2).unwrap_err().kind(), ErrorKind::UnexpectedEof, "D3");
    assert!(read(&sim, u64::MAX, 2).is_err());
    sim.allocate(5, 15).unwrap();
    assert_eq!(read(&sim, 9, 3).unwrap(), [1, 0, 0]);
    sim.set_len(3).unwrap();
    assert_eq!(read(&sim, 3, 1).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    sim.set_len(5).unwrap();
    assert_eq!(sim.view(), [1, 1, 1, 0, 0]);
}

#[test]
fn every_kind_of_call_is_counted_and_can_fail() {
    use CallKind::*;
    let run = |sim: &SimDevice| {
        [
            sim.lock().map(drop),
            sim.len().map(drop),
            sim.write_at(b"new", 0),
            read(sim, 0, 3).map(drop),
            sim.allocate(0, 100),
            sim.set_len(50),
            sim.discard(0, 2),
            sim.sync(),
            sim.drop_cache(),
        ]
    };
    let kinds = [Lock, Len, Write, Read, Allocate, SetLen, Discard, Sync, DropCache];
    let clean = SimDevice::from_image(b"old".to_vec());
    assert!(run(&clean).iter().all(Result::is_ok));
    assert_eq!(clean.calls(), kinds);
    for (index, kind) in kinds.into_iter().enumerate() {
        for by_kind in [false, true] {
            let sim = SimDevice::from_image(b"old".to_vec());
            if by_kind {
                sim.fail_kind_at(kind, 0, Fault::Eio, false);
            } else {
                sim.fail_at(index, Fault::Eio, false);
            }
            let results = run(&sim);
            let failed: Vec<usize> = (0..results.len()).filter(|&i| results[i].is_err()).collect();
            assert_eq!(failed, [index]);
            assert_eq!(results[index].as_ref().unwrap_err().raw_os_error(), Some(5));
            assert_eq!(sim.call_count(), 9, "the failed call is counted too");
            // A failed sync is recorded, as one without effect; other failed calls leave no operation.
            let recorded = matches!(kind, Write | Allocate | SetLen | Discard);
            assert_eq!(sim.op_count(), clean.op_count() - usize::from(recorded), "S2: {kind:?}");
        }
    }
}

#[test]
fn repeating_faults_go_on_until_they_are_cleared() {
    let sim = SimDevice::new();
    sim.fail_at(1, Fault::Enospc, true);
    sim.write_at(b"a", 0).unwrap();
    for _ in 0..3 {
        assert_eq!(sim.write_at(b"b", 0).unwrap_err().kind(), ErrorKind::StorageFull);
    }
    sim.clear_faults();
    assert_eq!(sim.view(), b"a");
    sim.write_at(b"c", 0).unwrap();
    sim.fail_kind_at(CallKind::Write, 6, Fault::Interrupted, true);
    sim.write_at(b"d", 0).unwrap();
    sim.sync().unwrap();
    assert_eq!(sim.write_at(b"e", 0).unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(sim.write_at(b"e", 0).unwrap_err().kind(), ErrorKind::Interrupted);
    sim.sync().unwrap();
    assert_eq!(sim.view(), b"d");
}

#[test]
fn short_transfers_move_half_and_fail() {
    let sim = SimDevice::from_image(b"oldold".to_vec());
    sim.fail_kind_at(CallKind::Write, 0, Fault::ShortWrite, false);
    sim.fail_kind_at(CallKind::Read, 0, Fault::ShortRead, false);
    sim.fail_kind_at(CallKind::Sync, 0, Fault::ShortWrite, false);
    assert_eq!(sim.write_at(b"newnew", 0).unwrap_err().kind(), ErrorKind::WriteZero);
    assert_eq!(sim.view(), b"newold");
    let mut buf = *b"......";
    assert_eq!(sim.read_at(&mut buf, 0).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert_eq!(&buf, b"new...");
    assert_eq!(sim.sync().unwrap_err().raw_os_error(), Some(5), "a fault that does not fit is EIO");
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"oldold");
}

#[test]
fn failed_after_effect_is_not_undone() {
    let sim = SimDevice::new();
    sim.fail_at(0, Fault::EioAfterEffect, true);
    sim.write_at(b"x", 0).unwrap_err();
    sim.sync().unwrap_err();
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"x");
}

#[test]
fn failed_sync_keeps_pending_writes_pending() {
    let sim = SimDevice::new();
    sim.write_at(b"x", 0).unwrap();
    sim.fail_at(1, Fault::Eio, false);
    sim.sync().unwrap_err();
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"");
    assert_eq!(sim.crash(|_| Fate::Kept).view(), b"x");
    sim.drop_cache().unwrap();
    assert_eq!(sim.view(), b"x", "dirty pages stay");
    sim.sync().unwrap();
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"x");
}

#[test]
fn dropping_failed_sync_throws_data_away_although_later_syncs_succeed() {
    for then in [FailedSync::KeptClean, FailedSync::Dropped] {
        let sim = SimDevice::from_image(vec![b'o'; 8192]);
        sim.on_failed_sync(then);
        sim.write_at(&[b'n'; 8200], 0).unwrap();
        sim.fail_at(1, Fault::Eio, false);
        sim.sync().unwrap_err();
        let seen = if then == FailedSync::Dropped { b'o' } else { b'n' };
        assert_eq!(sim.view()[4095], seen, "{then:?}");
        sim.write_at(b"!", 1).unwrap();
        sim.sync().unwrap();
        let medium = sim.crash(|_| Fate::Lost).view();
        assert_eq!(medium.len(), 8200, "lengths are kept");
        // The first page was written once more, and goes out as the cache has it; the second one is lost.
        assert_eq!(medium[..3], [seen, b'!', seen], "{then:?}");
        assert_eq!((medium[4095], medium[4096]), (seen, b'o'), "{then:?}");
        assert_eq!(sim.view()[4096], seen, "{then:?}");
        let trace = sim.trace();
        assert_eq!((0..=4).map(|k| trace.pending_at(k)).collect::<Vec<_>>(), [0, 1, 1, 2, 0]);
        sim.drop_cache().unwrap();
        assert_eq!(sim.view(), medium, "{then:?}: and now reads see the medium");
    }
}

#[test]
fn what_a_failing_sync_brings_waits_for_the_next_one() {
    let sim = SimDevice::from_image(vec![b'o'; 3 * 4096]);
    sim.on_failed_sync(FailedSync::KeptClean);
    sim.failed_sync_brings(|i| [Fate::Kept, Fate::TornPrefix(1), Fate::Lost][i].clone());
    for page in 0..3 {
        sim.write_at(&[b'n'; 4096], page * 4096).unwrap();
    }
    sim.fail_at(3, Fault::Eio, false);
    sim.sync().unwrap_err();
    assert!(sim.view().iter().all(|&byte| byte == b'n'));
    sim.evict();
    let seen = |bytes: Vec<u8>| [0, 4096, 4096 + 512, 8192].map(|at| bytes[at]);
    assert_eq!(seen(sim.view()), *b"nnoo");
    assert_eq!(seen(sim.crash(|_| Fate::Lost).view()), *b"oooo", "it may still be lost");
    sim.sync().unwrap();
    assert_eq!(seen(sim.crash(|_| Fate::Lost).view()), *b"nnoo");
}

#[test]
fn lying_sync_says_ok_and_makes_nothing_durable() {
    let sim = SimDevice::new();
    sim.lying_sync(1);
    sim.write_at(b"a", 0).unwrap();
    sim.sync().unwrap();
    sim.write_at(b"b", 0).unwrap();
    sim.sync().unwrap();
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"a");
    sim.sync().unwrap();
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"b");
}

#[test]
fn flipped_bits_are_seen_now_and_after_a_crash() {
    let sim = SimDevice::from_image(vec![0; 8]);
    sim.write_at(&[0xf0], 1).unwrap();
    sim.flip_bit(0, 0);
    sim.flip_bit(1, 7);
    sim.flip_bit(99, 0);
    assert_eq!(sim.view(), [1, 0x70, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sim.crash(|_| Fate::Kept).view()[..2], [1, 0x70]);
    assert_eq!(sim.crash(|_| Fate::Lost).view()[..2], [1, 0x80]);
    assert_eq!(sim.len().unwrap(), 8);
}

#[test]
fn restarted_trace_keeps_what_is_pending() {
    let sim = SimDevice::new();
    sim.write_at(b"ab", 0).unwrap();
    sim.sync().unwrap();
    sim.write_at(b"c", 0).unwrap();
    sim.restart_trace();
    assert_eq!(sim.op_count(), 1);
    let trace = sim.trace();
    assert_eq!(trace.image_at(0, |_| Fate::Kept), b"ab");
    assert_eq!(trace.image_at(1, |_| Fate::Kept), b"cb");
    assert_eq!(sim.view(), b"cb");
}

#[test]
fn a_trace_is_not_changed_by_later_operations() {
    let sim = SimDevice::from_image(vec![1; 4]);
    let trace = sim.trace();
    sim.write_at(&[2; 4], 0).unwrap();
    sim.sync().unwrap();
    assert!(trace.is_empty());
    assert_eq!(trace.image_at(0, |_| Fate::Kept), [1; 4]);
}

#[test]
fn lock_has_one_holder_and_goes_with_its_handle() {
    let sim = SimDevice::new();
    let user = sim.clone();
    assert!(user.lock().unwrap());
    assert!(user.lock().unwrap());
    assert!(!sim.lock().unwrap());
    drop(user);
    assert!(sim.lock().unwrap());
}

#[test]
fn reopen_frees_the_lock_and_cuts_the_holder_off() {
    let sim = SimDevice::new();
    let killed = sim.clone();
    assert!(killed.lock().unwrap());
    killed.write_at(b"x", 0).unwrap();
    let fresh = sim.reopen();
    assert!(fresh.lock().unwrap());
    let calls = sim.call_count();
    assert!(killed.write_at(b"zombie", 0).is_err());
    assert!(killed.sync().is_err());
    assert_eq!(sim.call_count(), calls);
    drop(killed);
    assert!(!sim.lock().unwrap(), "the drop of the killed handle frees nothing");
    assert_eq!(fresh.view(), b"x", "a killed process loses nothing that it wrote");
    assert_eq!(sim.crash(|_| Fate::Lost).view(), b"", "a loss of power does");
}

#[test]
fn ten_thousand_states_are_made_quickly() {
    let sim = SimDevice::from_image(vec![1; 2 << 20]);
    for i in 0..200_u64 {
        sim.write_at(&[i as u8; 4096], i * 4096).unwrap();
        if i % 20 == 19 {
            sim.sync().unwrap();
        }
    }
    let trace = sim.trace();
    let mut cursor = trace.cursor();
    let start = std::time::Instant::now();
    let mut states = 0_u32;
    loop {
        for seed in 0..48 {
            let device = cursor.device(|i| Fate::TornRandom(seed * 1000 + i as u64));
            assert_eq!(device.len().unwrap(), 2 << 20);
            states += 1;
        }
        if cursor.step().is_none() {
            break;
        }
    }
    let elapsed = start.elapsed();
    println!("{states} states in {elapsed:?}");
    // Generous: shared machines stall. The point is that a state must not cost a copy of the whole medium.
    assert!(states >= 10_000 && elapsed.as_secs() < 10, "{states} states took {elapsed:?}");
}
