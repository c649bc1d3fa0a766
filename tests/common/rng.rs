//! SplitMix64: equal seeds give equal workloads, on every machine and in every version of every crate.

#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Bytes that no other stamp gives: what a test writes, so that every stray block is recognised.
    pub(crate) fn stamp_bytes(stamp: u64, len: usize) -> Vec<u8> {
        let mut rng = Rng::new(stamp.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x5a5a);
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&rng.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// The seed of this run: `SNAPVOL_SEED` when it is set, else `default`. Printed, so that a failure can be repeated.
pub(crate) fn seed(test: &str, default: u64) -> u64 {
    let seed = std::env::var("SNAPVOL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    println!("{test}: SNAPVOL_SEED={seed}");
    seed
}
