//! Opening a database: only `init` makes one, and what has none of its tables is never taken for a new server's.

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::{Database, DatabaseError, failed, is_refused};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

const READERS: u32 = 6;
/// Page cache of one connection, KiB.
const CACHE_KIB: u32 = 4096;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request waits for a connection before the server counts as busy.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

impl Database {
    /// Opens a database and brings its tables up to date.
    ///
    /// # Errors
    /// `Open`, also when there is no file; `Empty`, `Newer`, `NotWritable`, `Migrate`.
    pub(crate) async fn open(path: &Path) -> Result<Self, DatabaseError> {
        let options = SqliteConnectOptions::new().filename(path);
        refuse_empty(path, &options).await?;
        Self::connect(path, kept(options)).await
    }

    /// Opens a database to be read: also one that may not be written to, such as a copy's on a file system that is read-only.
    ///
    /// # Errors
    /// As [`Database::open`]; `Unfolded`.
    pub(crate) async fn open_to_read(path: &Path) -> Result<Self, DatabaseError> {
        match Self::open(path).await {
            Err(DatabaseError::NotWritable { .. }) => {}
            opened => return opened,
        }
        // With what lies beside it: rows that are committed, and may be another process's that writes on.
        let options = SqliteConnectOptions::new().filename(path).read_only(true);
        match refuse_empty(path, &options).await {
            Ok(()) => return Self::connect(path, options).await,
            Err(DatabaseError::NotWritable { source, .. }) if has_wal(path) => {
                return Err(DatabaseError::Unfolded { path: path.to_owned(), source });
            }
            Err(DatabaseError::NotWritable { .. }) => {}
            Err(error) => return Err(error),
        }
        // All of it is in the file, and nobody has it open.
        let options = options.immutable(true);
        refuse_empty(path, &options).await?;
        Self::connect(path, options).await
    }

    /// Makes a database where there is none.
    pub(crate) async fn create(path: &Path) -> Result<Self, DatabaseError> {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        Self::connect(path, kept(options)).await
    }

    async fn connect(path: &Path, options: SqliteConnectOptions) -> Result<Self, DatabaseError> {
        let options = options
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", format!("-{CACHE_KIB}"));
        let pool = SqlitePoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .after_release(|connection, _| Box::pin(has_ended_its_transaction(connection)));
        let writer =
            pool.clone().max_connections(1).connect_with(options.clone()).await.map_err(not_opened(path))?;
        MIGRATIONS.run(&writer).await.map_err(|source| match source {
            MigrateError::VersionMissing(_) => DatabaseError::Newer { path: path.to_owned() },
            MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)
                if is_refused(&source) =>
            {
                DatabaseError::NotWritable { path: path.to_owned(), source }
            }
            source => DatabaseError::Migrate { path: path.to_owned(), source },
        })?;
        let reading = options.create_if_missing(false).pragma("query_only", "ON");
        let readers = pool.max_connections(READERS).connect_with(reading).await.map_err(not_opened(path))?;
        Ok(Self { readers, writer })
    }

    /// Looks whether a database may be written to, as far as its file and its directory say.
    ///
    /// # Errors
    /// `NotWritable`; otherwise what kept it from being looked at.
    pub(crate) async fn check_writable(&self, path: &Path) -> Result<(), DatabaseError> {
        // Nothing is written. A transaction alone would not tell: SQLite begins one that reads where it may not write.
        let write = async {
            let mut tx = self.begin().await?;
            let write = sqlx::query("DELETE FROM settings WHERE 0").execute(&mut *tx).await;
            write.map_err(failed("write"))
        };
        match write.await {
            Ok(_) | Err(DatabaseError::Busy { .. }) => Ok(()),
            Err(DatabaseError::Failed { source, .. }) if is_refused(&source) => {
                Err(DatabaseError::NotWritable { path: path.to_owned(), source })
            }
            Err(error) => Err(error),
        }
    }
}

/// A database that outlives power cuts, and whose readers do not wait.
fn kept(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full)
}

/// Tells a file that may not be written to from one that is not there, or is no database.
fn not_opened(path: &Path) -> impl FnOnce(sqlx::Error) -> DatabaseError {
    let path = path.to_owned();
    move |source| match is_refused(&source) && path.exists() {
        true => DatabaseError::NotWritable { path, source },
        false => DatabaseError::Open { path, source },
    }
}

/// Whether rows may have been committed that are not in the file yet.
fn has_wal(path: &Path) -> bool {
    let mut wal = path.to_owned().into_os_string();
    wal.push("-wal");
    std::fs::metadata(wal).is_ok_and(|file| file.len() > 0)
}

/// Looks whether a file is a database that `init` made, and changes nothing.
async fn refuse_empty(path: &Path, options: &SqliteConnectOptions) -> Result<(), DatabaseError> {
    let empty = || DatabaseError::Empty { path: path.to_owned() };
    // SQLite would take it for a new database, and delete a -wal file beside it.
    if path.metadata().is_ok_and(|file| file.len() == 0) {
        return Err(empty());
    }
    let look = options.clone().busy_timeout(BUSY_TIMEOUT).pragma("query_only", "ON");
    let migrated = async {
        let mut connection = look.connect().await?;
        let has_table: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations')",
        )
        .fetch_one(&mut connection)
        .await?;
        let migrated = has_table
            && sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM _sqlx_migrations)")
                .fetch_one(&mut connection)
                .await?;
        connection.close().await?;
        Ok(migrated)
    };
    match migrated.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(empty()),
        Err(source) => Err(not_opened(path)(source)),
    }
}

/// Whether a connection can be used again. When a disk is full or fails, SQLite ends the transaction by itself: sqlx then has
/// nothing to roll back, goes on taking it for open, and begins no other.
async fn has_ended_its_transaction(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    // The rollback of a transaction that was dropped waits for its turn before this.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

#[cfg(test)]
mod tests {
    use super::super::commit;
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
    async fn a_missing_database_is_not_made_by_opening_it() {
        let temp = tempfile::tempdir().unwrap();
        let error = Database::open(&temp.path().join("database.sqlite")).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Open { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_database_without_tables_is_refused_and_left_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("database.sqlite");
        std::fs::write(&path, "").unwrap();
        // What was committed and is not in the file yet: all there is of the database.
        let wal = temp.path().join("database.sqlite-wal");
        std::fs::write(&wal, "rows").unwrap();
        let error = Database::open(&path).await.unwrap_err();
        assert!(matches!(error, DatabaseError::Empty { .. }), "{error}");
        assert!(error.to_string().contains("restore it from a backup"), "{error}");
        assert_eq!((path.metadata().unwrap().len(), wal.metadata().unwrap().len()), (0, 4));
        std::fs::remove_file(wal).unwrap();

        let options = SqliteConnectOptions::new().filename(&path);
        let mut connection = options.connect().await.unwrap();
        for sql in ["CREATE TABLE notes (text)", "CREATE TABLE _sqlx_migrations (version)"] {
            sqlx::query(sql).execute(&mut connection).await.unwrap();
            let error = Database::open(&path).await.unwrap_err();
            assert!(matches!(error, DatabaseError::Empty { .. }), "{error}");
        }
    }
}
