//! What happens inside, for operators: events through the `tracing` facade when the feature of that name is
//! on, and nothing at all when it is off. No event is on the path of a single block.

/// An event at debug level; fields as `tracing` takes them.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($($all:tt)*) => { tracing::debug!(target: "snapvol", $($all)*) };
}

/// An event at warning level: something failed that the caller may not see at once.
#[cfg(feature = "tracing")]
macro_rules! alarm {
    ($($all:tt)*) => { tracing::warn!(target: "snapvol", $($all)*) };
}

#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($($all:tt)*) => {};
}

#[cfg(not(feature = "tracing"))]
macro_rules! alarm {
    ($($all:tt)*) => {};
}

pub(crate) use {alarm, event};
