//! How a pool is created and opened. Checked once, before anything is touched.

use std::fmt;
use std::sync::Arc;

use crate::commit::Config;
use crate::error::{Error, Result, Violation};
use crate::units::BLOCK_BYTES;

use crate::sources::{Clock, IdSource, SystemClock, SystemIds};

/// Smallest cache in bytes: a path from root to leaf of every tree has to fit.
const MIN_CACHE_BYTES: u64 = 256 << 10;
/// Largest pool in bytes that addresses can name: 1 EiB.
const MAX_POOL_BYTES: u64 = 1 << 60;
const MIN_LOG_BYTES: u64 = 64 << 10;
const MAX_LOG_BYTES: u64 = 16 << 30;

/// How bytes are read from a pool file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ReadMode {
    /// `pread`: a failing medium or a shortened file is an error. The default.
    #[default]
    Pread,
    /// A read-only mapping: cheaper hot reads, but when another program shortens the file, or the medium
    /// fails under a mapped page, the process gets `SIGBUS` instead of an error.
    Mmap,
}

/// Who does the background work: checkpoints, reclaiming what was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Background {
    /// A thread of the pool's own. The default.
    #[default]
    Thread,
    /// The embedder, by calling [`Pool::step`](crate::Pool::step); equal calls then give equal byte streams.
    Manual,
}

/// How a pool is opened.
#[derive(Clone)]
#[non_exhaustive]
pub struct OpenOptions {
    pub(super) cache_bytes: u64,
    pub(super) read_mode: ReadMode,
    pub(super) host_discard: bool,
    pub(super) read_only: bool,
    pub(super) last_good_commit: bool,
    pub(super) background: Background,
    pub(super) ids: Arc<dyn IdSource>,
    pub(super) clock: Arc<dyn Clock>,
}

/// How a pool is created. Sizes of the geometry are fixed from then on.
#[derive(Clone)]
#[non_exhaustive]
pub struct CreateOptions {
    open: OpenOptions,
    limit_bytes: u64,
    initial_bytes: u64,
    log_bytes: u64,
    blocks_per_chunk: u64,
}

macro_rules! shared_setters {
    ($t:ty, $($open:ident)?) => {
        impl $t {
            /// Memory for cached metadata and for changes not yet written, in bytes: at least 256 KiB,
            /// 64 MiB by default.
            #[must_use]
            pub fn cache_bytes(mut self, bytes: u64) -> Self {
                self.$($open.)?cache_bytes = bytes;
                self
            }
            /// How the bytes of a pool *file* are read; without meaning for other devices.
            #[must_use]
            pub fn read_mode(mut self, mode: ReadMode) -> Self {
                self.$($open.)?read_mode = mode;
                self
            }
            /// Whether free space is given back to the host (hole punching, discard). Off by default.
            #[must_use]
            pub fn host_discard(mut self, on: bool) -> Self {
                self.$($open.)?host_discard = on;
                self
            }
            /// Who does the background work.
            #[must_use]
            pub fn background(mut self, background: Background) -> Self {
                self.$($open.)?background = background;
                self
            }
            /// Where fresh ids come from. Random by default.
            #[must_use]
            pub fn id_source(mut self, ids: Arc<dyn IdSource>) -> Self {
                self.$($open.)?ids = ids;
                self
            }
            /// Where times come from. The system's clock by default.
            #[must_use]
            pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
                self.$($open.)?clock = clock;
                self
            }
        }
    };
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            read_mode: ReadMode::default(),
            host_discard: false,
            read_only: false,
            last_good_commit: false,
            background: Background::default(),
            ids: Arc::new(SystemIds),
            clock: Arc::new(SystemClock),
        }
    }
}

impl OpenOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }
    /// Nothing is written, not even what recovery would repair. Off by default.
    #[must_use]
    pub fn read_only(mut self, on: bool) -> Self {
        self.read_only = on;
        self
    }
    /// Falls back to the newest commit that is whole when the last one is damaged. Off by default, because
    /// it gives up commits that were acknowledged as durable.
    #[must_use]
    pub fn last_good_commit(mut self, on: bool) -> Self {
        self.last_good_commit = on;
        self
    }

    fn check(&self) -> Result<()> {
        at_least("cache_bytes", self.cache_bytes, MIN_CACHE_BYTES)
    }

    pub(super) fn config(&self) -> Result<Config> {
        self.check()?;
        let create = CreateOptions::new();
        Ok(self.config_with(&create))
    }

    fn config_with(&self, create: &CreateOptions) -> Config {
        Config {
            cache_bytes: self.cache_bytes,
            log_bytes: create.log_bytes,
            limit_bytes: create.limit_bytes,
            blocks_per_chunk: create.blocks_per_chunk,
            initial_bytes: create.initial_bytes,
            read_only: self.read_only,
            last_good: self.last_good_commit,
            host_discard: self.host_discard,
            background: self.background == Background::Thread,
            ids: Arc::clone(&self.ids),
            clock: Arc::clone(&self.clock),
        }
    }
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            open: OpenOptions::default(),
            limit_bytes: 1 << 40,
            initial_bytes: 0,
            log_bytes: 32 << 20,
            blocks_per_chunk: 1024,
        }
    }
}

impl CreateOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }
    /// How large the pool may grow, in bytes: 1 TiB by default, at most 1 EiB. The file grows as it fills.
    #[must_use]
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.limit_bytes = bytes;
        self
    }
    /// How large the pool is made at once, in bytes; 0, the default, makes it as small as it can be.
    #[must_use]
    pub fn initial_bytes(mut self, bytes: u64) -> Self {
        self.initial_bytes = bytes;
        self
    }
    /// Size of the log in bytes, a multiple of 4 KiB from 64 KiB to 16 GiB; 32 MiB by default. A larger log
    /// means rarer checkpoints and a longer recovery. One transaction (a batch, a cascade, a record with long
    /// metadata) must fit in somewhat less than half of it, else it is refused with `LimitExceeded`: with the
    /// default log that is far beyond any of these, with the smallest some 14 KiB.
    #[must_use]
    pub fn log_bytes(mut self, bytes: u64) -> Self {
        self.log_bytes = bytes;
        self
    }
    /// Blocks of 4 KiB in one chunk, the unit of space accounting: a power of two from 64 to 1,024, the default.
    #[must_use]
    pub fn blocks_per_chunk(mut self, blocks: u64) -> Self {
        self.blocks_per_chunk = blocks;
        self
    }

    pub(super) fn read_mode_of(&self) -> ReadMode {
        self.open.read_mode
    }

    pub(super) fn config(&self) -> Result<Config> {
        self.open.check()?;
        at_least("log_bytes", self.log_bytes, MIN_LOG_BYTES)?;
        at_most("log_bytes", self.log_bytes, MAX_LOG_BYTES)?;
        if !self.log_bytes.is_multiple_of(BLOCK_BYTES) {
            let why = format!("it must be a multiple of {BLOCK_BYTES} bytes, {} given", self.log_bytes);
            return Err(Error::invalid("log_bytes", Violation::Range, why));
        }
        if !self.blocks_per_chunk.is_power_of_two() || !(64..=1024).contains(&self.blocks_per_chunk) {
            let why = format!("it must be a power of two from 64 to 1024, {} given", self.blocks_per_chunk);
            return Err(Error::invalid("blocks_per_chunk", Violation::Range, why));
        }
        // Below this the engine has no room for its own metadata.
        let least = self.log_bytes + 8 * self.blocks_per_chunk * BLOCK_BYTES;
        at_least("limit_bytes", self.limit_bytes, least)?;
        at_most("limit_bytes", self.limit_bytes, MAX_POOL_BYTES)?;
        at_most("initial_bytes", self.initial_bytes, self.limit_bytes)?;
        Ok(self.open.config_with(self))
    }
}

shared_setters!(OpenOptions,);
shared_setters!(CreateOptions, open);

fn at_least(field: &'static str, value: u64, limit: u64) -> Result<()> {
    if value < limit {
        return Err(Error::invalid(
            field,
            Violation::Range,
            format!("at least {limit} bytes are needed, {value} given"),
        ));
    }
    Ok(())
}

fn at_most(field: &'static str, value: u64, limit: u64) -> Result<()> {
    if value > limit {
        return Err(Error::invalid(
            field,
            Violation::Range,
            format!("at most {limit} bytes are possible, {value} given"),
        ));
    }
    Ok(())
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("cache_bytes", &self.cache_bytes)
            .field("read_mode", &self.read_mode)
            .field("host_discard", &self.host_discard)
            .field("read_only", &self.read_only)
            .field("last_good_commit", &self.last_good_commit)
            .field("background", &self.background)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CreateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateOptions")
            .field("limit_bytes", &self.limit_bytes)
            .field("initial_bytes", &self.initial_bytes)
            .field("log_bytes", &self.log_bytes)
            .field("blocks_per_chunk", &self.blocks_per_chunk)
            .field("open", &self.open)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_option_names_field_limit_and_value() {
        let field = |o: CreateOptions| match o.config().map(|_| ()) {
            Err(Error::InvalidArgument { field, why, .. }) => (field, why),
            other => panic!("{other:?}"),
        };
        let new = CreateOptions::new;
        assert_eq!(field(new().log_bytes(4096)).0, "log_bytes");
        assert_eq!(field(new().log_bytes((64 << 10) + 1)).0, "log_bytes");
        assert_eq!(field(new().blocks_per_chunk(1000)).0, "blocks_per_chunk");
        assert_eq!(field(new().blocks_per_chunk(32)).0, "blocks_per_chunk");
        assert_eq!(field(new().blocks_per_chunk(2048)).0, "blocks_per_chunk");
        assert_eq!(field(new().limit_bytes(1 << 20)).0, "limit_bytes");
        assert_eq!(field(new().limit_bytes(u64::MAX)).0, "limit_bytes");
        assert_eq!(field(new().initial_bytes(2 << 40)).0, "initial_bytes");
        let (name, why) = field(new().cache_bytes(5));
        assert_eq!(name, "cache_bytes");
        assert!(why.contains("262144") && why.contains('5'), "{why}");
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(CreateOptions::new().config().is_ok());
        assert!(OpenOptions::new().config().is_ok());
        assert!(OpenOptions::new().cache_bytes(1).config().is_err());
    }
}
