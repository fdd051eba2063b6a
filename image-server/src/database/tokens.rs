//! Users and their tokens.

use chunk_format::Name;
use sqlx::SqliteExecutor;

use super::{Connection, DatabaseError, failed, parsed};
use crate::role::Role;
use crate::secret::SecretHash;

/// A row of `users`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct UserId(i64);

/// A row of `tokens`: what `token --list` shows and `--revoke` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct TokenId(pub(crate) i64);

/// What a request's token says of its bearer.
#[derive(Clone, Debug)]
pub(crate) struct TokenRow {
    pub(crate) id: TokenId,
    pub(crate) user_id: UserId,
    pub(crate) user: Name,
    pub(crate) role: Role,
    pub(crate) label: Option<String>,
    pub(crate) created_ms: i64,
    pub(crate) expires_ms: Option<i64>,
    pub(crate) revoked_ms: Option<i64>,
    pub(crate) last_used_ms: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct StoredToken {
    id: TokenId,
    user_id: UserId,
    user: String,
    role: String,
    label: Option<String>,
    created_ms: i64,
    expires_ms: Option<i64>,
    revoked_ms: Option<i64>,
    last_used_ms: Option<i64>,
}

impl TryFrom<StoredToken> for TokenRow {
    type Error = DatabaseError;

    fn try_from(row: StoredToken) -> Result<Self, DatabaseError> {
        Ok(Self {
            id: row.id,
            user_id: row.user_id,
            user: parsed("user name", &row.user)?,
            role: parsed("role", &row.role)?,
            label: row.label,
            created_ms: row.created_ms,
            expires_ms: row.expires_ms,
            revoked_ms: row.revoked_ms,
            last_used_ms: row.last_used_ms,
        })
    }
}

/// Finds a token by its hash.
pub(crate) async fn find(
    executor: impl SqliteExecutor<'_>,
    hash: SecretHash,
) -> Result<Option<TokenRow>, DatabaseError> {
    sqlx::query_as::<_, StoredToken>(
        "SELECT tokens.id, user_id, users.name AS user, role, label, tokens.created_ms, expires_ms, revoked_ms, last_used_ms
         FROM tokens JOIN users ON users.id = user_id WHERE hash = ?",
    )
    .bind(&hash.0[..])
    .fetch_optional(executor)
    .await
    .map_err(failed("look up a token"))?
    .map(TryInto::try_into)
    .transpose()
}

/// All tokens, oldest first.
pub(crate) async fn list(executor: impl SqliteExecutor<'_>) -> Result<Vec<TokenRow>, DatabaseError> {
    sqlx::query_as::<_, StoredToken>(
        "SELECT tokens.id, user_id, users.name AS user, role, label, tokens.created_ms, expires_ms, revoked_ms, last_used_ms
         FROM tokens JOIN users ON users.id = user_id ORDER BY tokens.id",
    )
    .fetch_all(executor)
    .await
    .map_err(failed("list tokens"))?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// The user of this name, made when there is none.
pub(crate) async fn ensure_user(
    connection: &mut Connection,
    name: &Name,
    now_ms: i64,
) -> Result<UserId, DatabaseError> {
    sqlx::query("INSERT INTO users (name, created_ms) VALUES (?, ?) ON CONFLICT (name) DO NOTHING")
        .bind(name.as_str())
        .bind(now_ms)
        .execute(&mut *connection)
        .await
        .map_err(failed("add a user"))?;
    sqlx::query_scalar("SELECT id FROM users WHERE name = ?")
        .bind(name.as_str())
        .fetch_one(connection)
        .await
        .map_err(failed("look up a user"))
}

/// Adds a token.
pub(crate) async fn insert(
    connection: &mut Connection,
    user: UserId,
    role: Role,
    label: Option<&str>,
    hash: SecretHash,
    created_ms: i64,
    expires_ms: Option<i64>,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO tokens (user_id, role, label, hash, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(user)
    .bind(role.as_str())
    .bind(label)
    .bind(&hash.0[..])
    .bind(created_ms)
    .bind(expires_ms)
    .execute(connection)
    .await
    .map(drop)
    .map_err(failed("add a token"))
}

/// Revokes a token; the first revocation's time stays. False when there is no such token.
pub(crate) async fn revoke(
    executor: impl SqliteExecutor<'_>,
    id: TokenId,
    now_ms: i64,
) -> Result<bool, DatabaseError> {
    sqlx::query("UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?) WHERE id = ?")
        .bind(now_ms)
        .bind(id)
        .execute(executor)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(failed("revoke a token"))
}

/// Notes when a token was last used.
pub(crate) async fn touch(
    executor: impl SqliteExecutor<'_>,
    id: TokenId,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE tokens SET last_used_ms = ?1 WHERE id = ?2 AND coalesce(last_used_ms, 0) < ?1")
        .bind(now_ms)
        .bind(id)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("note a token's use"))
}
