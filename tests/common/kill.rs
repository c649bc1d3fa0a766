//! Processes that are killed (SIGKILL) while they use a pool, and what they leave.
//!
//! Both sides draw the same operations from the same seed: the other process runs them on a pool in a file, with
//! the worker in the background; this one runs them on the model and looks for the state that it finds.

use std::fmt;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use snapvol::device::sim::SimDevice;
use snapvol::{CreateOptions, OpenOptions, Pool};

use super::model::Model;
use super::ops::{Action, Kind, Limits, Op};
use super::rng::Rng;
use super::{Rig, Shape, assert_sound, observe};

const LIMITS: Limits = Limits { volumes: 4, snapshots: 7, blocks: 40 };
/// Small, so that the log turns and checkpoints come often.
fn create() -> CreateOptions {
    CreateOptions::new().blocks_per_chunk(64).log_bytes(256 << 10).limit_bytes(96 << 20).cache_bytes(2 << 20)
}

fn open() -> OpenOptions {
    OpenOptions::new().cache_bytes(2 << 20)
}

/// The operations of one process, each with a number that makes its ids and bytes.
struct Stream {
    rng: Rng,
    serial: u64,
}

impl Stream {
    fn new(seed: u64, round: u64) -> Self {
        Self { rng: Rng::new(seed ^ (round + 1).wrapping_mul(0x51_7c_c1)), serial: (round + 1) * 1_000_000 }
    }

    fn next(&mut self, model: &Model) -> Action {
        let op = loop {
            let op = Op::random(&mut self.rng);
            // To close and open again is what the killing does.
            if op.kind != Kind::Reopen {
                break op;
            }
        };
        self.serial += 1;
        Action::resolve(op, model, LIMITS, self.serial)
    }
}

/// What a process has left: how many of its operations, and which half of the one that was under way.
#[derive(Clone, Copy)]
struct Left {
    done: usize,
    half: Option<usize>,
}

/// All processes so far, as text for the next one.
fn write_history(history: &[Left]) -> String {
    let mut text = String::new();
    for left in history {
        let half = left.half.map_or(String::new(), |half| format!("+{half}"));
        let _ = write!(text, "{}{half},", left.done);
    }
    text
}

fn read_history(text: &str) -> Vec<Left> {
    let left = |item: &str| {
        let (done, half) = item.split_once('+').map_or((item, None), |(done, half)| (done, Some(half)));
        Left { done: done.parse().unwrap(), half: half.map(|half| half.parse().unwrap()) }
    };
    text.split_terminator(',').map(left).collect()
}

/// The state behind an action. A refused one may have closed a disk beforehand.
fn behind(model: &Model, action: &Action) -> Model {
    model.after(action).unwrap_or_else(|_| {
        let mut model = model.clone();
        match action {
            Action::DeleteVolume { id, detach: true, .. } => drop(model.attached.remove(id)),
            Action::Rollback { snapshot, detach: true, .. } => {
                let volume = model.snapshots.get(snapshot).map(|snapshot| snapshot.volume);
                volume.map(|id| model.attached.remove(&id));
            }
            _ => {}
        }
        model
    })
}

/// The state that these processes have left.
fn replay(seed: u64, history: &[Left]) -> Model {
    let mut model = Model::default();
    for (round, left) in (0..).zip(history) {
        let mut stream = Stream::new(seed, round);
        for _ in 0..left.done {
            let action = stream.next(&model);
            model = behind(&model, &action);
        }
        if let Some(half) = left.half {
            let action = stream.next(&model);
            model = model.halfway(&action).swap_remove(half);
        }
        model.attached.clear();
    }
    model
}

/// Where the process that is going to be killed finds its orders.
pub(crate) const ORDER: &str = "SNAPVOL_KILLED_CHILD";

/// What that process does. Returns at once in any other.
pub(crate) fn work_until_killed() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let [path, seed, history] = order.split('|').collect::<Vec<_>>().try_into().unwrap();
    let (seed, history) = (seed.parse().unwrap(), read_history(history));
    let model = replay(seed, &history);
    let pool = Pool::open(path, open()).unwrap();
    // The medium of the rig is not used: the pool lies in the file.
    let mut rig = Rig::over(pool, SimDevice::new(), Shape::SMALL, model);
    let mut stream = Stream::new(seed, history.len() as u64);
    let mut out = std::io::stdout();
    writeln!(out, "\nopen").unwrap();
    for done in 1.. {
        let action = stream.next(&rig.model);
        let refused = rig.model.after(&action).is_err();
        // The worker reclaims beside us: what a deletion frees is exact only when nothing else is under way.
        rig.reclaiming = true;
        rig.must(action.clone());
        if action.is_durable() && !refused {
            writeln!(out, "durable {done}").unwrap();
        }
    }
}

/// Starts a process, kills it after some lines, and returns the number of the last operation that it told to be
/// durable.
fn run_and_kill(path: &Path, seed: u64, history: &[Left], arguments: &[&str], rng: &mut Rng) -> usize {
    let order = format!("{}|{seed}|{}", path.display(), write_history(history));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(arguments)
        .env(ORDER, order)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut durable = 0;
    let mut listen = |line: Option<Result<String, _>>| {
        let Some(Ok(line)) = line else { return None };
        if let Some(number) = line.strip_prefix("durable ") {
            durable = number.parse().unwrap();
        }
        Some(line)
    };
    while listen(lines.next()).expect("the process opens the pool") != "open" {}
    // Some are killed while they have hardly begun, some after hundreds of operations.
    let most = [2, 20, 150][rng.below(3) as usize];
    for _ in 0..rng.below(most) {
        listen(lines.next()).expect("the process goes on until it is killed");
    }
    // The next line is some operations away: somewhere on the way there.
    for _ in 0..rng.below(400_000) {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    while listen(lines.next()).is_some() {}
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}: not by our hand");
    durable
}

/// Finds which state of the process the pool shows, from the last one told to be durable up to the end of the next
/// durable operation, which may have ended untold.
fn find(pool: &Pool, seed: u64, history: &[Left], durable: usize, story: &str) -> Left {
    let seen = observe::digest(pool).unwrap_or_else(|e| panic!("{story}: reading: {e:?}"));
    let mut model = replay(seed, history);
    let mut stream = Stream::new(seed, history.len() as u64);
    let mut at_durable = model.clone();
    for done in 0.. {
        if done == durable {
            at_durable = model.clone();
        }
        if done >= durable && model.digest() == seen {
            return Left { done, half: None };
        }
        let action = stream.next(&model);
        let next = behind(&model, &action);
        if done >= durable {
            let half = model.halfway(&action).into_iter().position(|half| half.digest() == seen);
            if half.is_some() {
                return Left { done, half };
            }
            // The next durable operation may have ended untold; what follows it had not begun.
            let ends = action.is_durable() && model.after(&action).is_ok();
            if ends && next.digest() != seen {
                break;
            }
        }
        model = next;
    }
    panic!(
        "{story}: operation {durable} was durable; against the state behind it: {:#?}",
        observe::differences(pool, &at_durable)
    );
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Count {
    pub(crate) kills: AtomicU64,
    pub(crate) operations: AtomicU64,
    /// Pools that showed more than was told to be durable, or a part of the write under way.
    pub(crate) beyond: AtomicU64,
    pub(crate) halves: AtomicU64,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [kills, operations, beyond, halves] =
            [&self.kills, &self.operations, &self.beyond, &self.halves].map(|n| n.load(Ordering::Relaxed));
        write!(
            f,
            "{kills} processes killed after {operations} operations; {beyond} pools showed more than was told to \
             be durable, {halves} a part of the write under way"
        )
    }
}

/// Kills the users of one pool, so many after one another: each goes on from what the one before has left. This
/// program, run with `arguments`, must come to [`work_until_killed`].
pub(crate) fn kill_users(path: &Path, seed: u64, kills: usize, arguments: &[&str], count: &Count) {
    let mut rng = Rng::new(seed);
    Pool::create(path, create()).unwrap().close().unwrap();
    let mut history = Vec::new();
    for kill in 0..kills {
        let story = format!("seed {seed}, kill {kill} after {}", write_history(&history));
        let durable = run_and_kill(path, seed, &history, arguments, &mut rng);
        let pool = Pool::open(path, open()).unwrap_or_else(|e| panic!("{story}: open: {e:?}"));
        let left = find(&pool, seed, &history, durable, &story);
        assert_sound(&pool);
        count.kills.fetch_add(1, Ordering::Relaxed);
        count.operations.fetch_add(left.done as u64, Ordering::Relaxed);
        count.beyond.fetch_add(u64::from(left.done > durable), Ordering::Relaxed);
        count.halves.fetch_add(u64::from(left.half.is_some()), Ordering::Relaxed);
        history.push(left);
        if kill % 2 == 0 {
            pool.close().unwrap();
        }
    }
}
