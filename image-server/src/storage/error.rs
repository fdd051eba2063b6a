//! Why the object store did not do what it was asked.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use object_store::Error as StoreError;
use object_store::client::HttpError;
use object_store::path::Path;

use super::KEPT_FREE_BYTES;
use super::bucket::Bucket;

/// HTTP's status for want of space (RFC 4918, section 11.5), which is what other programs than Amazon's may answer.
const INSUFFICIENT_STORAGE: u16 = 507;
const RANGE_NOT_SATISFIABLE: u16 = 416;

/// Why the object store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The directory of the local store cannot be used.
    #[error("cannot open the object store {}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StoreError,
    },
    /// The bucket cannot be used.
    #[error(
        "cannot use {bucket}: it must be there, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role of this \
         instance or container, must allow to list, read, write and delete in it; this \
         failed: to {action}"
    )]
    Bucket {
        /// The bucket.
        bucket: Bucket,
        /// What was tried.
        action: &'static str,
        /// The store's words.
        #[source]
        source: StoreError,
    },
    /// The bucket lies within another server's.
    #[error("{bucket} lies within {outer}, which belongs to the server {owner}: name one beside it")]
    BucketWithin {
        /// The bucket.
        bucket: Bucket,
        /// Whose the outer one is.
        owner: String,
        /// Where that one's begins.
        outer: Box<Bucket>,
    },
    /// Something is in the bucket that is to become a server's.
    #[error(
        "{bucket} is not empty: it holds {path}. Name an empty bucket, or a prefix under which nothing lies; an \
         `owner` alone, left by an `init` that was given up, may be deleted"
    )]
    BucketNotEmpty {
        /// The bucket.
        bucket: Bucket,
        /// One object of it.
        path: String,
    },
    /// A variable would have requests that nobody encrypts leave this machine.
    #[error(
        "{variable} is set, which would have a proxy read what goes to {bucket}: unset it, or name an https:// endpoint"
    )]
    Proxied {
        /// The bucket.
        bucket: Bucket,
        /// The variable.
        variable: &'static str,
    },
    /// A variable holds what no key, token or path of one is.
    #[error("{variable} holds other characters than one line of ASCII: set it anew")]
    Environment {
        /// The variable.
        variable: &'static str,
    },
    /// The bucket is another server's.
    #[error(
        "{bucket} does not say that it is this server's, but {}: name no other's bucket, and put back what was in it",
        owner.as_ref().map_or_else(|| "nothing".to_owned(), |owner| format!("that of the server {owner}"))
    )]
    BucketNotOurs {
        /// The bucket.
        bucket: Bucket,
        /// Whose it is.
        owner: Option<String>,
    },
    /// The directory of the local store is another server's.
    #[error(
        "{} says that it is that of the server {owner}, and not this one's: put back what was there, or have the volume \
         mounted that belongs there", path.display()
    )]
    DirectoryNotOurs {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// The directory of the local store holds nothing, and should.
    #[error(
        "{} holds no objects, though the database knows of some: is the volume mounted that belongs there? If they are lost, \
         restore them from a backup", path.display()
    )]
    NotMounted {
        /// The directory.
        path: PathBuf,
    },
    /// The program behind the bucket replaces what it was told to create.
    #[error(
        "what serves {bucket} does not honour `If-None-Match: *` when it writes: two servers could overwrite each \
         other's objects"
    )]
    BucketOverwrites {
        /// The bucket.
        bucket: Bucket,
    },
    /// There is no such object.
    #[error("there is no object {path}")]
    NotFound {
        /// Its path in the store.
        path: String,
    },
    /// There is no room to write.
    #[error("no space left in the object store, trying to {action} {path}")]
    Full {
        /// What was tried.
        action: &'static str,
        /// The object's path in the store.
        path: String,
        /// The store's words.
        #[source]
        source: StoreError,
    },
    /// There is room, and it is kept.
    #[error(
        "no space left for uploads in the object store: of the {free_bytes} bytes there, {KEPT_FREE_BYTES}, or a 64th of the \
         file system where that is less, are kept for the database and for what makes room"
    )]
    Kept {
        /// What is left, bytes.
        free_bytes: u64,
    },
    /// A bucket does not answer, or with a failure of its own, or refuses everything.
    #[error("cannot reach the object store to {action} {path}")]
    Unreachable {
        /// What was tried.
        action: &'static str,
        /// The object's path in the store.
        path: String,
        /// The store's words.
        #[source]
        source: StoreError,
    },
    /// Anything else.
    #[error("the object store failed to {action} {path}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// The object's path in the store.
        path: String,
        /// The store's words.
        #[source]
        source: StoreError,
    },
}

impl StorageError {
    /// Whether it says nothing of the object that was asked for: all would be answered so.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::BucketNotOurs { .. })
    }
}

/// The same of a call that writes: it needs nothing that could be lost.
pub(super) fn not_written(action: &'static str, path: &Path) -> impl FnOnce(StoreError) -> StorageError {
    let path = path.clone();
    move |source| match source {
        source @ StoreError::NotFound { .. } => {
            StorageError::Unreachable { action, path: path.to_string(), source }
        }
        source => failed(action, &path)(source),
    }
}

/// Names what was tried and sorts out the failures that are nobody's fault.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(StoreError) -> StorageError {
    let path = path.to_string();
    move |source| match source {
        StoreError::NotFound { .. } => StorageError::NotFound { path },
        source if is_full(&source) => StorageError::Full { action, path, source },
        source if is_away(&source) => StorageError::Unreachable { action, path, source },
        source => StorageError::Failed { action, path, source },
    }
}

fn is_full(error: &StoreError) -> bool {
    let is_local = |error: &(dyn StdError + 'static)| {
        let error = error.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(error, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    };
    status(error) == Some(INSUFFICIENT_STORAGE) || causes(error).any(is_local)
}

/// Whether a bucket could not be asked, or failed by itself: what may be otherwise when it is asked again.
fn is_away(error: &StoreError) -> bool {
    match status(error) {
        Some(status) => status >= 500 || status == 429 || status == 408,
        // Some of its failures come in an answer that says that all is well.
        None => {
            error.to_string().contains(FAILED_IN_ANSWER) || causes(error).any(|error| error.is::<HttpError>())
        }
    }
}

/// Whether a bucket says that a range lies past its object's end.
pub(super) fn is_past_the_end(error: &StoreError) -> bool {
    status(error) == Some(RANGE_NOT_SATISFIABLE)
}

const FAILED_IN_ANSWER: &str = "Server returned error response: ";

/// What a bucket answered in the end. The library tells it in words alone, before those of the bucket.
fn status(error: &StoreError) -> Option<u16> {
    const BEFORE: &str = "Server returned non-2xx status code: ";
    let text = error.to_string();
    let (_, answer) = text.split_once(BEFORE)?;
    answer.get(..3)?.parse().ok()
}

fn causes(error: &StoreError) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |error| (*error).source())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use object_store::aws::{AmazonS3, AmazonS3Builder};
    use object_store::{ObjectStoreExt, RetryConfig};

    use super::*;

    fn at(port: u16) -> AmazonS3 {
        let _ = rustls::crypto::ring::default_provider().install_default();
        AmazonS3Builder::new()
            .with_bucket_name("desktops")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_endpoint(format!("http://127.0.0.1:{port}"))
            .with_allow_http(true)
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()
            .unwrap()
    }

    /// What the library makes of a bucket that gives this answer to the one request it gets.
    async fn answered(answer: &'static str) -> StoreError {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let store = at(listener.local_addr().unwrap().port());
        let bucket = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 4096]).unwrap();
            let body = "<Error>status code: 507</Error>";
            let head = format!("HTTP/1.1 {answer}\r\ncontent-length: {}\r\n\r\n", body.len());
            socket.write_all(head.as_bytes()).and_then(|()| socket.write_all(body.as_bytes())).unwrap();
        });
        let error = store.get(&Path::from("a")).await.unwrap_err();
        bucket.join().unwrap();
        error
    }

    #[tokio::test]
    async fn what_a_bucket_answers_is_told_apart() {
        let kind = async |answer| failed("read", &Path::from("a"))(answered(answer).await);
        assert!(matches!(kind("507 Insufficient Storage").await, StorageError::Full { .. }));
        for answer in ["500 Internal Server Error", "503 Slow Down", "429 Too Many Requests"] {
            assert!(matches!(kind(answer).await, StorageError::Unreachable { .. }), "{answer}");
        }
        for answer in ["400 Bad Request", "403 Forbidden", "401 Unauthorized"] {
            assert!(matches!(kind(answer).await, StorageError::Failed { .. }), "{answer}");
        }
        assert!(matches!(kind("404 Not Found").await, StorageError::NotFound { .. }));
        assert!(is_past_the_end(&answered("416 Range Not Satisfiable").await));
        assert!(!is_past_the_end(&answered("400 Bad Request").await));
    }

    #[tokio::test]
    async fn a_bucket_that_does_not_answer_is_out_of_reach() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = at(port).get(&Path::from("a")).await.unwrap_err();
        assert!(matches!(failed("read", &Path::from("a"))(error), StorageError::Unreachable { .. }));
    }
}
