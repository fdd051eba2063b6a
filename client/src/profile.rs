//! Boot profiles: which chunks a start of a version touches, and in which order. The publisher records them on its own
//! machine and signs them; clients fetch by them and never tell anyone what they read.

mod attach;
mod carry;
mod link;
mod map;
mod merge;
mod reading;
mod record;
mod store;
mod stream;
mod successors;

pub use attach::{AttachError, Attached, Attacher};
pub use link::{BadLink, LinkShape};
pub use map::{BothImages, MapError, Mapper};
pub use merge::{Merged, merge};
pub use reading::{Reading, ReadingError, disks_of};
pub use record::{RecordError, Recorded, Recorder, Step};
pub(crate) use store::UnjudgedProfile;
pub use store::{ProfileError, ProfileStore, SignedProfile, fetch_profile};
pub use stream::{StreamError, StreamProgress, encode_streams};
