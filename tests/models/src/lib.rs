//! Models of what threads do to each other in `snapvol`: the engine itself, with its locks and atomics replaced by
//! those of shuttle, run in thousands of orders of its threads. See the tests; `README.md` says how to run them.

use std::io;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use snapvol::device::Device;
use snapvol::device::sim::SimDevice;

/// A simulated device on which every call takes time: other threads run before it and after it.
pub struct Paced(pub SimDevice);

impl Paced {
    fn paced<T>(&self, call: impl FnOnce(&SimDevice) -> T) -> T {
        shuttle::thread::yield_now();
        let done = call(&self.0);
        shuttle::thread::yield_now();
        done
    }
}

impl Device for Paced {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.paced(|device| device.read_at(buf, offset))
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.paced(|device| device.write_at(buf, offset))
    }
    fn sync(&self) -> io::Result<()> {
        self.paced(Device::sync)
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

/// Runs a model in `orders` orders: half of them wholly by chance, half with few changes of thread at places of
/// chance (PCT), which find what takes a rare order of a few events. `SNAPVOL_MODEL_ORDERS` multiplies that. A
/// failure prints a schedule, which `shuttle::replay` takes.
pub fn run(name: &str, orders: usize, model: impl Fn() + Send + Sync + 'static) {
    let times = std::env::var("SNAPVOL_MODEL_ORDERS").map_or(1, |n| n.parse().expect("a number"));
    let half = orders * times / 2;
    let model = std::sync::Arc::new(model);
    let chance = std::sync::Arc::clone(&model);
    let mut config = shuttle::Config::new();
    // The engine has whole blocks on its stack.
    config.stack_size = 1 << 20;
    config.max_steps = shuttle::MaxSteps::FailAfter(10_000_000);
    shuttle::Runner::new(RandomScheduler::new(half), config.clone()).run(move || chance());
    shuttle::Runner::new(PctScheduler::new(3, half), config).run(move || model());
    println!("{name}: {} orders", 2 * half);
}
