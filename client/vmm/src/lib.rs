//! The KVM machine of Satchel: boots a stock Linux disk in a process that holds nothing but what it was given.
//!
//! The guest is hostile: every address, length and index it names is checked where it enters, nothing it does panics or
//! ends the process, and no work it asks for is without a bound.

pub mod boot;
pub mod control;
pub mod event;
pub mod faults;
mod guest_memory;
pub mod launch;
pub mod machine;
pub mod sandbox;
pub mod virtio;
