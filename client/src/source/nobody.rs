//! The source of who contacts nobody.

use std::ops::Range;

use futures_util::future::BoxFuture;

use super::{ChunkSource, FailureKind, ObjectBody, ObjectPath, SourceError};

/// Has nothing and cannot be reached: what is not on this machine waits.
#[derive(Clone, Copy, Debug)]
pub struct NoSource;

impl ChunkSource for NoSource {
    fn origin(&self) -> String {
        "nowhere".to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        _: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(std::future::ready(Err(SourceError {
            origin: self.origin(),
            object: path.to_string(),
            kind: FailureKind::Unreachable,
            retry_after: None,
            cause: "this desktop was opened with --offline".into(),
        })))
    }
}
