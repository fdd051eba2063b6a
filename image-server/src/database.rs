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
pub(crate) mod packs;
pub(crate) mod profiles;
pub(crate) mod retention;
pub(crate) mod segments;
pub(crate) mod settings;
pub(crate) mod standings;
pub(crate) mod starts;
pub(crate) mod tokens;
pub(crate) mod versions;

use std::path::{Path, PathBuf};
use std::time::Duration;

use chunk_format::PublicKey;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection as _, Sqlite, SqliteConnection, Transaction};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

const READERS: u32 = 6;
/// Page cache of one connection, KiB.
const CACHE_KIB: u32 = 4096;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request waits for a connection before the server counts as busy.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// SQLite's result codes this module tells apart (<https://sqlite.org/rescode.html>).
const SQLITE_BUSY: i32 = 5;
const SQLITE_FULL: i32 = 13;
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

/// An open database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    readers: SqlitePool,
    writer: SqlitePool,
}

impl Database {
    /// Opens a database and brings its tables up to date.
    pub(crate) async fn open(path: &Path) -> Result<Self, DatabaseError> {
        Self::connect(path, false).await
    }

    /// Makes a database where there is none.
    pub(crate) async fn create(path: &Path) -> Result<Self, DatabaseError> {
        Self::connect(path, true).await
    }

    async fn connect(path: &Path, create: bool) -> Result<Self, DatabaseError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", format!("-{CACHE_KIB}"));
        let open = |source| DatabaseError::Open { path: path.to_owned(), source };
        let pool = SqlitePoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .after_release(|connection, _| Box::pin(has_ended_its_transaction(connection)));
        let writer = pool.clone().max_connections(1).connect_with(options.clone()).await.map_err(open)?;
        MIGRATIONS.run(&writer).await.map_err(|source| match source {
            MigrateError::VersionMissing(_) => DatabaseError::Newer { path: path.to_owned() },
            source => DatabaseError::Migrate { path: path.to_owned(), source },
        })?;
        let reading = options.create_if_missing(false).pragma("query_only", "ON");
        let readers = pool.max_connections(READERS).connect_with(reading).await.map_err(open)?;
        Ok(Self { readers, writer })
    }

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

/// Whether a connection can be used again. When a disk is full or fails, SQLite ends the transaction by itself: sqlx then has
/// nothing to roll back, goes on taking it for open, and begins no other.
async fn has_ended_its_transaction(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // The rollback of a transaction that was dropped waits for its turn before this.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
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
    use super::*;

    #[tokio::test]
    async fn a_database_of_a_newer_program_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("database.sqlite");
        let database = Database::create(&path).await.unwrap();
        let mut tx = database.begin().await.unwrap();
        sqlx::query("INSERT INTO _sqlx_migrations VALUES (9999, 'later', 0, 1, x'00', 1)")
            .execute(&mut *tx)
            .await
            .unwrap();
        commit(tx).await.unwrap();
        database.close().await;
        let error = Database::open(&path).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Newer { .. }), "{error}");
    }

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

    #[tokio::test]
    async fn a_missing_database_is_not_made_by_opening_it() {
        let temp = tempfile::tempdir().unwrap();
        let error = Database::open(&temp.path().join("database.sqlite")).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Open { .. }), "{error}");
    }
}
