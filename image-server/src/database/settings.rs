//! What the operator decided.

use sqlx::SqliteExecutor;

use super::{DatabaseError, failed};

/// The value of a setting; none when its default holds.
pub(crate) async fn get(
    executor: impl SqliteExecutor<'_>,
    name: &'static str,
) -> Result<Option<String>, DatabaseError> {
    sqlx::query_scalar("SELECT value FROM settings WHERE name = ?")
        .bind(name)
        .fetch_optional(executor)
        .await
        .map_err(failed("read a setting"))
}

/// Changes a setting.
pub(crate) async fn set(
    executor: impl SqliteExecutor<'_>,
    name: &'static str,
    value: &str,
) -> Result<(), DatabaseError> {
    sqlx::query("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)")
        .bind(name)
        .bind(value)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("change a setting"))
}
