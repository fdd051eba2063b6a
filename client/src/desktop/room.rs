//! Room on a full disk: what the cache holds can be fetched again, and goes first.

use super::store::DesktopError;
use crate::cache::Cache;
use crate::disk::SPACE_STEP_BYTES;

/// Does something that takes space on the disk. Where there is none, it is done once more after the cache has given some back.
///
/// # Errors
/// Those of what is done.
pub(crate) fn with_room<T>(
    cache: &Cache,
    doing: impl Fn() -> Result<T, DesktopError>,
) -> Result<T, DesktopError> {
    match doing() {
        Err(error) if error.is_full() && cache.give_back(SPACE_STEP_BYTES) > 0 => doing(),
        done => done,
    }
}
