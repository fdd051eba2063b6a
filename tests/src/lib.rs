//! End-to-end harness of Satchel: the real programs, a network that misbehaves on command, and guests to talk to.
//!
//! A test reads as a story about machines:
//!
//! ```no_run
//! use satchel_tests::{Client, TestServer, images, require};
//!
//! require!(fuse);
//! let server = TestServer::start();
//! let publisher = Client::new("build-machine");
//! publisher.login(&server.access("it", "publisher"));
//! publisher.publish(&images::tiny(), "debian");
//!
//! let laptop = Client::new("laptop");
//! laptop.login(&server.access("alice", "user"));
//! laptop.create("work", "debian", None);
//! let mount = laptop.mount("work");
//! satchel_tests::disk::assert_same(&images::tiny(), &mount.system());
//! mount.unmount();
//! ```
//!
//! The harness panics where a test could only fail, with what the programs last said. What it starts, it ends: child
//! processes and mounts go with the test process, even when that is killed.

mod bucket;
mod client;
pub mod disk;
mod guest;
pub mod images;
pub mod lab;
pub mod model;
mod process;
mod programs;
mod proxy;
mod publication;
mod replay;
mod seed;
mod server;
pub mod skip;
mod small_disk;
mod static_https;
mod storage_daemon;
mod trace;
mod turn;
pub mod wait;

pub use bucket::TestBucket;
pub use client::{Client, Mount, Output, RunOptions, Running};
pub use guest::{Guest, Machine, MachineOptions, ShellOutput};
pub use model::{Model, Zeroing};
pub use process::{Process, Signal, child};
pub use proxy::{
    Class, Counts, Direction, Event, Exchange, Fault, FaultyHttps, Link, Policy, Rule, Shape, Way,
};
pub use publication::Publication;
pub use replay::{Access as ReadAccess, Replay, Replayed};
pub use seed::Rng;
pub use server::{Access, Backup, TestServer};
pub use small_disk::SmallDisk;
pub use static_https::StaticHttps;
pub use storage_daemon::StorageDaemon;
pub use trace::{BlockRead, Trace};
pub use turn::Turn;
