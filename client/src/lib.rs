//! The client of Satchel: publishes images, mounts desktops lazily as copy-on-write disks, runs and syncs them.

pub mod cache;
pub mod desktop;
pub mod disk;
pub mod fetch;
pub mod overlay;
pub mod remote;
pub mod source;
pub mod state;
pub mod sync;
pub mod upload;
pub mod upstream;
pub mod volume;
