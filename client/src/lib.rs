//! The client of Satchel: publishes images, mounts desktops lazily as copy-on-write disks, runs and syncs them.

pub mod cache;
pub mod disk;
pub mod fetch;
pub mod overlay;
pub mod remote;
pub mod source;
pub mod upstream;
pub mod volume;
