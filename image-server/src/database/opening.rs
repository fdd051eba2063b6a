//! Opening a database: only `init` makes one, and what has none of its tables is never taken for a new server's.

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::{Database, DatabaseError};

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
    /// `Open`, also when there is no file; `Empty`, `Newer`, `Migrate`.
    pub(crate) async fn open(path: &Path) -> Result<Self, DatabaseError> {
        refuse_empty(path).await?;
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
}

/// Looks whether a file is a database that `init` made, and changes nothing.
async fn refuse_empty(path: &Path) -> Result<(), DatabaseError> {
    let empty = || DatabaseError::Empty { path: path.to_owned() };
    // SQLite would take it for a new database, and delete a -wal file beside it.
    if path.metadata().is_ok_and(|file| file.len() == 0) {
        return Err(empty());
    }
    let look =
        SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).pragma("query_only", "ON");
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
        Err(source) => Err(DatabaseError::Open { path: path.to_owned(), source }),
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
