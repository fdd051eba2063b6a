//! The client of Satchel: publishes images, mounts desktops lazily as copy-on-write disks, runs and syncs them.

pub mod cache;
pub mod overlay;
pub mod volume;
