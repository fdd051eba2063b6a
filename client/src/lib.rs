//! The client of Satchel: publishes images, mounts desktops lazily as copy-on-write disks, runs and syncs them.

pub mod cache;
pub mod control;
pub mod create;
pub mod desktop;
pub mod disk;
pub mod engine;
pub mod fetch;
pub mod fs;
pub mod hint;
pub mod image;
pub mod local;
pub mod mount;
pub mod overlay;
pub mod profile;
pub mod publish;
pub mod remote;
pub mod run;
pub mod session;
pub mod source;
pub mod state;
pub mod status;
pub mod sync;
pub mod upload;
pub mod upstream;
pub mod versions;
pub mod volume;
