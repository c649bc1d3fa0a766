//! Memory that the process cannot have: every allocation above 64 KiB fails in turn, once and for good. The call
//! returns an error, nothing acknowledged is lost, and with memory again the pool goes on or asks to be reopened.
#![allow(clippy::unwrap_used)]

mod every;
mod scarce;
mod whole;
