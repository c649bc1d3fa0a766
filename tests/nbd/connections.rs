//! Connections: many at once, stalled, cut off, and what closing does to them.

use super::*;

#[test]
fn sixty_four_connections_share_one_attachment_that_ends_with_the_last() {
    let rig = Rig::new();
    let id = rig.volume("v", 4 * MIB);
    let mut clients: Vec<Client> = (0..64).map(|_| rig.open("v")).collect();
    assert_eq!(rig.pool.volume(id).unwrap().attachments.len(), 1);
    assert_eq!(rig.server.as_ref().unwrap().connections(), 64);
    // All of them at once, and each sees what the others were acknowledged.
    thread::scope(|scope| {
        for (i, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || {
                for round in 0..8 {
                    client.write(i as u64 * 65_536, &pattern(i as u64 * 100 + round, 65_536));
                    client.flush();
                }
            });
        }
    });
    for (i, client) in (0_u64..).zip(&mut clients) {
        let other = (i + 31) % 64;
        assert!(client.read(other * 65_536, 65_536) == pattern(other * 100 + 7, 65_536));
    }
    let last = clients.pop().unwrap();
    clients.into_iter().for_each(Client::disconnect);
    assert_eq!(rig.status(id), VolumeStatus::InUse);
    last.disconnect();
    assert_eq!(rig.status(id), VolumeStatus::Available);
    rig.end();
}

#[test]
fn one_connection_too_many_is_closed_and_the_place_of_a_closed_one_is_free() {
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let rig = Rig::of(pool, |b| b.connections(2));
    rig.volume("v", MIB);
    let (first, mut second) = (rig.open("v"), rig.open("v"));
    let mut refused = UnixStream::connect(rig.path()).unwrap();
    assert_eq!(refused.read(&mut [0; 8]).unwrap_or(0), 0);
    first.disconnect();
    second.write(0, b"goes on");
    assert_eq!(rig.open("v").read(0, 7), b"goes on");
    drop(second);
    rig.end();
}

/// A device whose syncs wait while the gate is shut.
struct Gated(MemoryDevice, Arc<Gate>);

#[derive(Default)]
struct Gate {
    /// Whether it is shut, and how many wait before it.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        self.state.lock().unwrap().0 = shut;
        self.changed.notify_all();
    }
    fn wait_for_someone(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |s| s.1 == 0).unwrap());
    }
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        self.changed.wait_while(state, |s| s.0).unwrap().1 -= 1;
    }
}

impl Device for Gated {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync()
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }
    fn lock(&self) -> io::Result<bool> {
        self.0.lock()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.0.drop_cache()
    }
}

fn gated(tune: impl FnOnce(Builder) -> Builder) -> (Rig, Arc<Gate>) {
    let gate = Arc::new(Gate::default());
    let device = Gated(MemoryDevice::new(), Arc::clone(&gate));
    let pool = Pool::create_on(device, CreateOptions::new()).unwrap();
    (Rig::of(pool, tune), gate)
}

#[test]
fn a_request_that_waits_for_the_device_does_not_hold_up_those_behind_it() {
    let (rig, gate) = gated(|b| b);
    rig.volume("v", MIB);
    let mut client = rig.open("v");
    client.write(0, b"seen");
    gate.set(true);
    client.send(&request(0, FLUSH, 77, 0, 0));
    gate.wait_for_someone();
    assert_eq!(client.read(0, 4), b"seen", "answered while the flush still waits");
    gate.set(false);
    assert_eq!(client.answer(0, FLUSH, 77, 0, 0).error, 0);
    drop(client);
    rig.end();
}

#[test]
fn closing_finishes_what_is_served_and_answers_the_rest_with_eshutdown() {
    let (mut rig, gate) = gated(|b| b.threads(1));
    rig.volume("v", MIB);
    let mut client = rig.open("v");
    let mut haggling = Client::hello(&rig.path(), 3);
    client.write(0, b"kept");
    gate.set(true);
    client.send(&request(0, FLUSH, 1, 0, 0));
    gate.wait_for_someone();
    // There is one thread, and it waits. These stay in the socket, the payload too.
    client.send(&[request(0, READ, 2, 0, 4), request(0, WRITE, 3, 0, 4), b"lost".to_vec()].concat());
    let server = rig.server.take().unwrap();
    let closing = thread::spawn(move || server.shutdown());
    // Once the other connection has ended, the server is closing.
    assert!(haggling.is_closed());
    assert!(UnixStream::connect(rig.path()).is_err(), "nobody is let in any more");
    gate.set(false);
    assert_eq!(client.answer(0, FLUSH, 1, 0, 0).error, 0);
    assert_eq!(client.answer(0, READ, 2, 0, 4).error, ESHUTDOWN);
    assert_eq!(client.answer(0, WRITE, 3, 0, 4).error, ESHUTDOWN);
    assert!(client.is_closed());
    closing.join().unwrap();
    let disk = rig.pool.attach(find_volume(&rig.pool), AttachOptions::default()).unwrap();
    let mut seen = [0; 4];
    disk.read_at(&mut seen, 0).unwrap();
    assert_eq!(&seen, b"kept");
}

fn find_volume(pool: &Pool) -> VolumeId {
    let volumes: Vec<Volume> = pool.list_volumes(&Default::default()).unwrap().items;
    volumes[0].id
}

#[test]
fn closing_cuts_off_a_client_that_does_not_take_its_replies() {
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let mut rig = Rig::of(pool, |b| b.shutdown_grace(Duration::ZERO));
    let id = rig.volume("v", 64 * MIB);
    let mut client = rig.open("v");
    for cookie in 0..64 {
        client.send(&request(DF, READ, cookie, 0, 32 << 20));
    }
    // The first reply has begun, and is longer than any socket's buffer.
    client.bytes(1);
    rig.server.take().unwrap().shutdown();
    assert_eq!(rig.status(id), VolumeStatus::Available);
}

#[test]
fn a_client_that_stalls_loses_its_connection_and_one_that_is_idle_does_not() {
    let limit = Duration::from_millis(150);
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let rig = Rig::of(pool, |b| b.stall_limit(limit));
    rig.volume("v", 64 * MIB);
    let mut idle = rig.open("v");
    idle.write(0, b"idle");
    // Silent in the handshake, in an option, in a request, in a payload.
    let mut silent = Client::hello(&rig.path(), 3);
    let mut in_option = Client::hello(&rig.path(), 3);
    in_option.send(&option(3, b"four")[..18]);
    let mut in_request = rig.open("v");
    in_request.send(&request(0, READ, 0, 0, 1)[..27]);
    let mut in_payload = rig.open("v");
    in_payload.send(&request(0, WRITE, 0, 0, 4096));
    in_payload.send(&[0xee; 4095]);
    // Does not take its replies.
    let mut deaf = rig.open("v");
    for cookie in 0..64 {
        deaf.send(&request(DF, READ, cookie, 0, 32 << 20));
    }
    for client in [&mut silent, &mut in_option, &mut in_request, &mut in_payload] {
        assert!(client.is_closed());
    }
    // Only the idle one is left, before anybody has read a byte of those replies.
    while rig.server.as_ref().unwrap().connections() > 1 {
        thread::yield_now();
    }
    let mut rest = Vec::new();
    let _ = deaf.stream.read_to_end(&mut rest);
    assert!(rest.len() < 32 << 20, "the reply was cut off");
    assert_eq!(idle.read(0, 5), b"idle\0", "the idle one is there, and no part of the payload is");
    drop((silent, in_option, in_request, in_payload, deaf, idle));
    rig.end();
}

#[test]
fn what_is_no_request_ends_the_connection_after_the_replies_that_are_due() {
    let rig = Rig::new();
    rig.volume("v", MIB);
    let mut other = rig.open("v");
    let mut client = rig.open("v");
    client.send(&[request(0, WRITE, 5, 0, 4), b"data".to_vec(), vec![0xab; 28]].concat());
    assert_eq!(client.answer(0, WRITE, 5, 0, 4).error, 0);
    assert!(client.is_closed());
    assert_eq!(other.read(0, 4), b"data");
    drop((other, client));
    rig.end();
}

#[test]
fn the_pool_is_used_while_it_is_served() {
    let rig = Rig::new();
    let id = rig.volume("v", 4 * MIB);
    let mut client = rig.open("v");
    client.write(0, b"first");
    let first = rig.snapshot(id, "first");
    client.write(0, b"later");
    let mut then = rig.open("v@first");
    assert_eq!((then.read(0, 5), client.read(0, 5)), (b"first".to_vec(), b"later".to_vec()));
    let fork = rig.pool.create_volume(VolumeSpec::from_volume(id).name("fork")).unwrap().id;
    rig.pool.rollback_with(first, RollbackOptions::new().live(true)).unwrap();
    assert_eq!((client.read(0, 5), rig.open("fork").read(0, 5)), (b"first".to_vec(), b"later".to_vec()));
    rig.pool.extend(id, 8 * MIB).unwrap();
    assert_eq!(client.call(0, READ, 4 * MIB, 1, &[]).error, EINVAL, "a client keeps the size it was told");
    assert_eq!(rig.open("v").size, 8 * MIB);
    assert!(rig.pool.delete_volume(id, Snapshots::Delete).is_err(), "it is in use");
    drop((client, then));
    rig.pool.delete_volume(fork, Snapshots::Refuse).ok();
    rig.end();
}

#[test]
fn many_requests_in_flight_on_several_connections_do_what_they_say() {
    let rig = Rig::new();
    const BLOCKS: u64 = 256;
    rig.volume("v", 4 * BLOCKS * 4096);
    thread::scope(|scope| {
        for part in 0..4 {
            let path = rig.path();
            scope.spawn(move || {
                let mut client = Client::open(&path, "v");
                let base = part * BLOCKS * 4096;
                let mut model = vec![0_u8; (BLOCKS * 4096) as usize];
                let mut seed = part + 1;
                for round in 0..40 {
                    // Requests of one round touch different blocks, so that their order is of no account.
                    let mut sent = Vec::new();
                    let mut bytes = Vec::new();
                    for slot in 0..BLOCKS / 4 {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let (at, cookie) = (slot * 4 * 4096 + seed % 4096, round << 32 | slot);
                        let len = 1 + (seed >> 20) % 12_000;
                        let place = at as usize..(at + len) as usize;
                        let command = match seed >> 60 {
                            0..6 => WRITE,
                            6 => ZEROES,
                            7 => FLUSH,
                            _ => READ,
                        };
                        let (offset, said) = if command == FLUSH { (0, 0) } else { (base + at, len as u32) };
                        bytes.extend(request(0, command, cookie, offset, said));
                        match command {
                            WRITE => {
                                let data = pattern(seed, len as usize);
                                bytes.extend(&data);
                                model[place.clone()].copy_from_slice(&data);
                            }
                            ZEROES => model[place.clone()].fill(0),
                            _ => {}
                        }
                        sent.push((command, cookie, offset, said, place));
                    }
                    let mut stream = client.stream.try_clone().unwrap();
                    thread::scope(|scope| {
                        scope.spawn(move || stream.write_all(&bytes).unwrap());
                        // One chunk each: none of these reads is a mixture of long holes and data.
                        for _ in 0..sent.len() {
                            let (message, _) = client.message(0);
                            let (cookie, data) = match message {
                                Message::Simple { error, cookie } => (assert_eq!(error, 0), (cookie, None)).1,
                                Message::Chunk { done, kind, cookie, payload } => {
                                    assert!(done && (kind == 1 || kind == 2));
                                    let len = be32(&payload[payload.len() - 4..]) as usize;
                                    (
                                        cookie,
                                        Some(if kind == 1 { payload[8..].to_vec() } else { vec![0; len] }),
                                    )
                                }
                            };
                            let which =
                                sent.iter().position(|s| s.1 == cookie).expect("a cookie of ours, once");
                            let (command, _, _, _, place) = sent.swap_remove(which);
                            assert_eq!(command == READ, data.is_some());
                            assert!(
                                data.is_none_or(|data| data == model[place]),
                                "part {part} round {round}"
                            );
                            if sent.is_empty() {
                                break;
                            }
                        }
                    });
                }
                assert!(client.read(base, (BLOCKS * 4096) as u32) == model);
            });
        }
    });
    rig.end();
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    pool.create_volume(VolumeSpec::blank(MIB)).unwrap();
    let serve = || Server::builder(&pool).unix(&path).serve();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a socket that nobody listens on");
    let server = serve().unwrap();
    Client::open(&path, "").disconnect();
    let e = serve().unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::AddrInUse);
    assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
    Client::open(&path, "").disconnect();
    server.shutdown();
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(serve().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(Server::builder(&pool).unix(folder.path().join("no/such/folder")).serve().is_err());
    pool.close().unwrap();
}

#[test]
fn tcp_and_given_sockets_are_served_like_the_others() {
    let pool = Pool::create_in_memory(CreateOptions::new()).unwrap();
    let rig = Rig::of(pool, |b| b.tcp((Ipv4Addr::LOCALHOST, 0).into()).tcp((Ipv4Addr::LOCALHOST, 0).into()));
    rig.volume("v", MIB);
    let server = rig.server.as_ref().unwrap();
    for address in server.tcp_addresses() {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[&3_u32.to_be_bytes()[..], &option(1, b"v")].concat()).unwrap();
        stream
            .write_all(&[request(0, WRITE, 1, 0, 3), b"tcp".to_vec(), request(0, DISC, 0, 0, 0)].concat())
            .unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        assert_eq!(said.len(), 18 + 10 + 16);
        assert_eq!(be32(&said[32..]), 0, "no error");
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve_connection(theirs));
        let mut client = Client::over(ours, 3);
        client.go("").unwrap();
        assert_eq!(client.read(0, 3), b"tcp");
        client.disconnect();
        serving.join().unwrap().unwrap();
    });
    rig.end();
}

#[test]
fn a_pool_that_is_open_for_reading_is_exported_for_reading() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p");
    let pool = Pool::create(&path, CreateOptions::new()).unwrap();
    let id = pool.create_volume(VolumeSpec::blank(MIB).name("v")).unwrap().id;
    pool.attach(id, AttachOptions::default()).unwrap().write_at(b"text", 0).unwrap();
    pool.create_snapshot(id, SnapshotSpec::new().name("s")).unwrap();
    pool.close().unwrap();
    let rig = Rig::of(Pool::open(&path, OpenOptions::new().read_only(true)).unwrap(), |b| b);
    let mut client = Client::open_with(&rig.path(), "v", &["qemu:dirty-bitmap:s"]);
    assert_eq!(client.flags & 2, 2);
    assert_eq!(client.read(0, 4), b"text");
    assert_eq!(client.call(0, WRITE, 0, 1, b"x").error, EPERM);
    assert_eq!(client.call(0, STATUS, 0, 4096, &[]).status, [(0, vec![(4096, 0)])]);
    client.flush();
    drop(client);
    rig.end();
}

/// What the fuzzer runs, on the sessions that it may start from and on damaged ones.
#[test]
fn the_fuzz_body_takes_sound_and_damaged_sessions() {
    for seed in 0..300 {
        nbd_session::session(&nbd_generate::sound_session(&mut rng::Rng::new(seed)));
        nbd_session::session(&nbd_generate::mutated_session(&mut rng::Rng::new(seed)));
    }
}
