//! What all modes share: options, threads, a line every ten seconds, failures with the command that repeats them.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// A campaign is given up after so many failures: they are likely one.
const MOST_FAILURES: u64 = 20;

/// How long a campaign goes on, and where it begins.
pub(crate) struct Campaign {
    pub(crate) mode: &'static str,
    pub(crate) minutes: Option<f64>,
    pub(crate) seed: u64,
    pub(crate) runs: u64,
    pub(crate) threads: usize,
}

impl Campaign {
    /// Options that every mode has; `other` takes those that it has alone.
    pub(crate) fn parse(
        mode: &'static str,
        minutes: Option<f64>,
        args: &mut lexopt::Parser,
        mut other: impl FnMut(&str, &mut lexopt::Parser) -> Outcome<bool>,
    ) -> Outcome<Self> {
        use lexopt::ValueExt;
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let mut campaign = Self {
            mode,
            minutes,
            seed: clock.as_secs(),
            runs: u64::MAX,
            threads: thread::available_parallelism().map_or(2, usize::from),
        };
        let mut timed = false;
        while let Some(arg) = args.next()? {
            let lexopt::Arg::Long(name) = arg else { return Err(arg.unexpected().into()) };
            match name.to_string().as_str() {
                "minutes" => {
                    campaign.minutes = Some(args.value()?.parse()?);
                    timed = true;
                }
                "seed" => campaign.seed = args.value()?.parse()?,
                "runs" => {
                    campaign.runs = args.value()?.parse()?;
                    if !timed {
                        campaign.minutes = None;
                    }
                }
                "threads" => campaign.threads = args.value()?.parse::<usize>()?.max(1),
                name if other(name, args)? => {}
                name => return Err(format!("{mode} does not take --{name}").into()),
            }
        }
        Ok(campaign)
    }

    /// Runs `job` with the numbers from 0 on, each once, on all threads, until the time is over. `opened` says how many
    /// media have been opened, `replay` how to repeat one job. Returns the number of failures.
    pub(crate) fn run(
        &self,
        opened: impl Fn() -> u64 + Sync,
        job: impl Fn(u64) + Sync,
        replay: impl Fn(u64) -> String + Sync,
        mut every_ten_seconds: impl FnMut() -> Outcome<()>,
    ) -> Outcome<u64> {
        println!("torture {}: seed {}, {} threads", self.mode, self.seed, self.threads);
        let clock = Clock::start();
        let (next, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        let over = || {
            let late = self.minutes.is_some_and(|minutes| clock.seconds() > minutes * 60.0);
            late || failures.load(Ordering::Relaxed) >= MOST_FAILURES
        };
        let line = || {
            let (states, failed) = (opened(), failures.load(Ordering::Relaxed));
            let (seconds, core_seconds) = (clock.seconds(), clock.core_seconds());
            let (rate, per_core) = (states as f64 / seconds, states as f64 / core_seconds);
            println!(
                "{seconds:7.0} s  {} runs  {states} states  {rate:.0}/s  {per_core:.0}/s of a core's time  {failed} failures",
                next.load(Ordering::Relaxed).min(self.runs)
            );
        };
        thread::scope(|scope| {
            let (done, all_done) = channel::<()>();
            for _ in 0..self.threads {
                let done = done.clone();
                let (next, failures, job, replay, over) = (&next, &failures, &job, &replay, &over);
                scope.spawn(move || {
                    let _done = done;
                    while !over() {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.runs {
                            return;
                        }
                        if catch_unwind(AssertUnwindSafe(|| job(number))).is_err() {
                            failures.fetch_add(1, Ordering::Relaxed);
                            println!("FAILED. Again: {}", replay(number));
                        }
                    }
                });
            }
            drop(done);
            while all_done.recv_timeout(Duration::from_secs(10)) == Err(RecvTimeoutError::Timeout) {
                line();
                every_ten_seconds()?;
            }
            Outcome::Ok(())
        })?;
        every_ten_seconds()?;
        line();
        Ok(failures.into_inner())
    }

    /// The command that repeats one run of a seeded mode.
    pub(crate) fn replay_by_seed(&self, number: u64) -> String {
        format!(
            "cargo run --release --features sim --example torture -- {} --runs 1 --threads 1 --seed {}",
            self.mode,
            self.seed_of(number)
        )
    }

    /// Run number 0 has the seed of the campaign, so that it can be repeated alone.
    pub(crate) fn seed_of(&self, number: u64) -> u64 {
        self.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9))
    }
}

/// Wall-clock time, and the time that the process has had a core.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }

    fn core_seconds(&self) -> f64 {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
    }
}
