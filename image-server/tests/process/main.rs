//! The real program: its commands, its end by kill -9 at any moment, a disk that is really full, and what it
//! tells of itself.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod certificate;
mod commands;
mod crash;
mod disk;
mod metrics;
mod program;
mod read_only;
mod secrets;

#[expect(dead_code, reason = "the library's own tests use more of it")]
#[path = "../../src/testing.rs"]
mod testing;
