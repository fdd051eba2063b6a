//! A source that is asked only for what it can have.

use std::ops::Range;
use std::sync::Arc;

use chunk_format::Namespace;
use futures_util::future::BoxFuture;

use super::{ChunkSource, FailureKind, Object, ObjectBody, ObjectPath, SourceError};

/// Another source, for the objects of images alone: mirrors and exports hold nothing of a person's.
pub struct ImagesOnly(pub Arc<dyn ChunkSource>);

impl ChunkSource for ImagesOnly {
    fn origin(&self) -> String {
        self.0.origin()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        if matches!(path.namespace, Namespace::Image(_)) {
            return self.0.get(path, range);
        }
        Box::pin(std::future::ready(Err(SourceError {
            origin: self.origin(),
            object: path.to_string(),
            kind: FailureKind::NotFound,
            retry_after: None,
            cause: "it holds images only".into(),
        })))
    }

    fn may_have(&self, object: &Object) -> bool {
        self.0.may_have(object)
    }

    fn probe<'a>(&'a self, path: &'a ObjectPath) -> BoxFuture<'a, Result<(), SourceError>> {
        self.0.probe(path)
    }
}
