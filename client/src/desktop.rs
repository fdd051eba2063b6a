//! A desktop on this machine: its record, its overlays, its versions.
//!
//! ```text
//! desktop.json         the record: what the desktop is made of
//! MANIFEST-ID.json     the versions the record names, with their signatures beside them (.sig)
//! overlay-ROLE-N.data  overlays, one pair of files a disk and generation (.map)
//! segments/ cache/     what was fetched, and space set aside for a full disk; worth nothing, may be deleted
//! sources.json         where its chunks come from beside its server; may hold secrets
//! cache-serve.json     what its cache is served with, once it was: a certificate, its key, a token
//! lock                 held by the process that has the desktop open
//! control              the socket that process listens on
//! ```

mod attempt;
mod open;
mod record;
mod room;
mod store;

pub use attempt::AttemptError;
pub(crate) use open::layouts;
pub use open::{OpenDesktop, Origins, PinError};
pub use record::{DesktopRecord, KeptNote, Pending, Version};
pub(crate) use room::with_room;
pub use store::{DesktopError, DesktopStore, DiskLayout, NewDesktop};
