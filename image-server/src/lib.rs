//! The image server of Satchel: an HTTPS interface (`docs/api.md`) over an object store and a database.
//!
//! [`init()`] makes a server's directory, [`Server`] serves it, [`tokens`] lets people in, [`verify`] re-reads all that is
//! stored, [`repair`] has what is damaged sent again, [`retention`] decides which versions are kept, [`removal`] removes desktops, and [`gc`] deletes what no kept one needs. The program `satchel-server` is a thin shell around these.
//!
//! What is stored, and in which order, is the heart of it. Objects (packs, segments, locators, manifests) lie in the
//! object store under the paths clients read them by; rows in the database say which of them count. An object is durable
//! before its row is written, and a version's row is written last, in one transaction that compares its parent with the
//! head. So a crash at any moment leaves at worst objects nobody refers to.

mod access;
mod app;
mod cause;
mod clock;
mod database;
pub mod gc;
mod http;
mod identity;
mod init;
mod layout;
mod limits;
mod locating;
pub mod metrics;
pub mod mirrors;
mod pack_check;
pub mod policy;
mod presence;
pub mod removal;
pub mod repair;
pub mod retention;
mod role;
mod routes;
mod secret;
mod server;
mod shares;
mod storage;
#[cfg(test)]
mod testing;
mod tls;
pub mod tokens;
pub mod verify;

pub use cause::chain;
pub use clock::format_ms;
pub use database::DatabaseError;
pub use init::{InitError, Initialised, init};
pub use layout::LayoutError;
pub use limits::Limits;
pub use role::{Role, UnknownRole};
pub use secret::{NoRandomness, Secret};
pub use server::{Config, Server, ServerError, certificate};
pub use storage::{Bucket, BucketError, Leftovers, StorageError};
pub use tls::{Certificate, Fingerprint, Reloader, TlsError};
