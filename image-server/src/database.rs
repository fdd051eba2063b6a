//! The database: who may do what, what lies where, which versions there are.
//!
//! SQLite in WAL mode with `synchronous = FULL`: what a request was answered for survives a power cut. Readers have a
//! pool of their own and never wait for a writer; all writes of this process go through one connection, so they queue
//! here, in order, and only writers of other processes are waited for inside SQLite.

pub(crate) mod channels;
pub(crate) mod chunks;
pub(crate) mod garbage;
pub(crate) mod leases;
pub(crate) mod mirrors;
pub(crate) mod namespaces;
mod opening;
pub(crate) mod packs;
pub(crate) mod profiles;
pub(crate) mod removal;
pub(crate) mod retention;
pub(crate) mod segments;
pub(crate) mod settings;
pub(crate) mod standings;
pub(crate) mod starts;
pub(crate) mod tokens;
pub(crate) mod versions;

use std::path::PathBuf;

use chunk_format::PublicKey;
use sqlx::migrate::MigrateError;
use sqlx::sqlite::SqlitePool;
use sqlx::{Sqlite, SqliteConnection, Transaction};

/// SQLite's result codes this module tells apart (<https://sqlite.org/rescode.html>).
const SQLITE_BUSY: i32 = 5;
const SQLITE_READONLY: i32 = 8;
const SQLITE_FULL: i32 = 13;
const SQLITE_CANTOPEN: i32 = 14;
const SQLITE_IOERR_SHMSIZE: i32 = 4874;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// The file cannot be opened.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: sqlx::Error,
    },
    /// The file is there, and neither it nor what lies beside it may be written.
    #[error("cannot write the database {}: whoever runs this must be allowed to write it and its directory", path.display())]
    NotWritable {
        /// The database file.
        path: PathBuf,
        /// The database's words.
        #[source]
        source: sqlx::Error,
    },
    /// A copy that may not be written to cannot be read whole as it lies there.
    #[error(
        "the database {} is not whole without {}-wal, which cannot be read where nothing may be written: check a copy that may \
         be written to", path.display(), path.display()
    )]
    Unfolded {
        /// The database file.
        path: PathBuf,
        /// The database's words.
        #[source]
        source: sqlx::Error,
    },
    /// There is a file, and no database in it that `init` made.
    #[error(
        "the database {} is empty: it has none of a server's tables. Nothing was changed; restore it from a backup, with \
         the -wal file beside it if there is one",
        path.display()
    )]
    Empty {
        /// The database file.
        path: PathBuf,
    },
    /// The tables were made by a newer program.
    #[error("the database {} was made by a newer satchel-server: use that one", path.display())]
    Newer {
        /// The database file.
        path: PathBuf,
    },
    /// The tables could not be brought up to date.
    #[error("cannot bring the database {} up to date", path.display())]
    Migrate {
        /// The database file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: MigrateError,
    },
    /// There is no room to write.
    #[error("no space left for the database, trying to {action}")]
    Full {
        /// What was tried.
        action: &'static str,
        /// The database's words.
        #[source]
        source: sqlx::Error,
    },
    /// Others held it for too long.
    #[error("the database is busy, trying to {action}")]
    Busy {
        /// What was tried.
        action: &'static str,
        /// The database's words.
        #[source]
        source: sqlx::Error,
    },
    /// Anything else.
    #[error("the database failed to {action}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// The database's words.
        #[source]
        source: sqlx::Error,
    },
    /// A stored value is not what this program writes.
    #[error("the database holds a {what} that cannot be read: {found}")]
    Value {
        /// The kind of value.
        what: &'static str,
        /// The value.
        found: String,
    },
}

/// Names what was tried and sorts out the failures that are nobody's fault.
pub(crate) fn failed(action: &'static str) -> impl FnOnce(sqlx::Error) -> DatabaseError {
    move |source| match code(&source) {
        Some(SQLITE_FULL | SQLITE_IOERR_SHMSIZE) => DatabaseError::Full { action, source },
        // The primary code is the low byte of an extended one.
        Some(code) if code & 0xff == SQLITE_BUSY => DatabaseError::Busy { action, source },
        None if matches!(source, sqlx::Error::PoolTimedOut) => DatabaseError::Busy { action, source },
        _ => DatabaseError::Failed { action, source },
    }
}

fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Whether SQLite could not write: the file, or what it keeps beside it.
fn is_refused(error: &sqlx::Error) -> bool {
    code(error).is_some_and(|code| matches!(code & 0xff, SQLITE_READONLY | SQLITE_CANTOPEN))
}

/// An open database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl Database {
    /// Connections to ask questions on.
    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Starts a transaction that holds the write lock from the start: what it reads stays true until it commits.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, DatabaseError> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed("begin a transaction"))
    }

    /// Starts a transaction that reads: all it sees is of one moment.
    pub(crate) async fn snapshot(&self) -> Result<Transaction<'static, Sqlite>, DatabaseError> {
        self.readers.begin().await.map_err(failed("begin to read"))
    }

    /// Whether questions are answered.
    pub(crate) async fn ping(&self) -> Result<(), DatabaseError> {
        sqlx::query("SELECT 1 FROM users LIMIT 1")
            .fetch_optional(&self.readers)
            .await
            .map(drop)
            .map_err(failed("answer"))
    }

    /// What SQLite's own checks find wrong, a line each.
    pub(crate) async fn check(&self) -> Result<Vec<String>, DatabaseError> {
        let mut findings: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(20)")
            .fetch_all(&self.readers)
            .await
            .map_err(failed("check itself"))?;
        findings.retain(|line| line != "ok");
        let foreign: Vec<(String, Option<i64>)> =
            sqlx::query_as("SELECT \"table\", rowid FROM pragma_foreign_key_check LIMIT 20")
                .fetch_all(&self.readers)
                .await
                .map_err(failed("check its references"))?;
        findings.extend(foreign.into_iter().map(|(table, row)| {
            format!("row {} of table {table} refers to a row that is not there", row.unwrap_or_default())
        }));
        Ok(findings)
    }

    /// Waits for running statements and folds the write-ahead log into the database file.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Makes writes fail as on a full disk, from the first one that needs another page.
    #[cfg(test)]
    pub(crate) async fn fill(&self) {
        let mut connection = self.writer.acquire().await.unwrap();
        // A limit below the present size means the present size.
        sqlx::query("PRAGMA max_page_count = 1").execute(&mut *connection).await.unwrap();
    }

    /// Takes back what [`Database::fill`] did.
    #[cfg(test)]
    pub(crate) async fn make_room(&self) {
        let mut connection = self.writer.acquire().await.unwrap();
        sqlx::query("PRAGMA max_page_count = 1000000").execute(&mut *connection).await.unwrap();
    }
}

/// Ends a transaction well.
pub(crate) async fn commit(transaction: Transaction<'static, Sqlite>) -> Result<(), DatabaseError> {
    transaction.commit().await.map_err(failed("commit a transaction"))
}

/// Reads a 32-byte id as it is stored.
pub(crate) fn id_bytes(what: &'static str, bytes: &[u8]) -> Result<[u8; 32], DatabaseError> {
    bytes
        .try_into()
        .map_err(|_| DatabaseError::Value { what, found: format!("{} bytes instead of 32", bytes.len()) })
}

/// Reads any value stored as text.
pub(crate) fn parsed<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, DatabaseError> {
    text.parse().map_err(|_| DatabaseError::Value { what, found: format!("{text:?}") })
}

/// Reads a public key as it is stored.
pub(crate) fn public_key(what: &'static str, bytes: &[u8]) -> Result<PublicKey, DatabaseError> {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parsed(what, &format!("ed25519:{hex}"))
}

/// Reads a number that is never negative where it is written.
pub(crate) fn number<T: TryFrom<i64>>(what: &'static str, value: i64) -> Result<T, DatabaseError> {
    T::try_from(value).map_err(|_| DatabaseError::Value { what, found: value.to_string() })
}

/// A connection inside or outside a transaction, for questions asked in both.
pub(crate) type Connection = SqliteConnection;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_told_apart_and_reads_go_on() {
        let temp = tempfile::tempdir().unwrap();
        let database = Database::create(&temp.path().join("database.sqlite")).await.unwrap();
        database.fill().await;
        let mut tx = database.begin().await.unwrap();
        let error = sqlx::query("INSERT INTO users (name, created_ms) VALUES (hex(zeroblob(1000000)), 0)")
            .execute(&mut *tx)
            .await
            .map_err(failed("write"))
            .unwrap_err();
        assert!(matches!(error, DatabaseError::Full { .. }), "{error}");
        drop(tx);
        database.ping().await.unwrap();
        assert_eq!(database.check().await.unwrap(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_reader_whose_transaction_sqlite_ended_does_not_go_on_in_the_past() {
        let temp = tempfile::tempdir().unwrap();
        let database = Database::create(&temp.path().join("database.sqlite")).await.unwrap();
        // Connections come back beside whoever gave them up.
        let all_are_back = async || {
            while database.readers.num_idle() < database.readers.size() as usize {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let count = async || {
            let mut snapshot = database.snapshot().await.unwrap();
            let count: i64 =
                sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&mut *snapshot).await.unwrap();
            drop(snapshot);
            all_are_back().await;
            count
        };
        let mut snapshot = database.snapshot().await.unwrap();
        // As SQLite does by itself when it cannot read.
        sqlx::raw_sql("ROLLBACK").execute(&mut *snapshot).await.unwrap();
        drop(snapshot);
        all_are_back().await;
        let before = count().await;
        let mut tx = database.begin().await.unwrap();
        sqlx::query("INSERT INTO users (name, created_ms) VALUES ('late', 0)")
            .execute(&mut *tx)
            .await
            .unwrap();
        commit(tx).await.unwrap();
        assert_eq!(count().await, before + 1);
    }
}
