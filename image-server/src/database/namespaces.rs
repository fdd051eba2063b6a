//! Namespaces and their owners.

use chunk_format::Namespace;
use sqlx::SqliteExecutor;

use super::tokens::UserId;
use super::{Connection, DatabaseError, failed, parsed};

/// A row of `namespaces`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct NamespaceId(i64);

/// A namespace someone has written.
#[derive(Clone, Copy, Debug, sqlx::FromRow)]
pub(crate) struct NamespaceRow {
    pub(crate) id: NamespaceId,
    pub(crate) owner_id: UserId,
}

/// The row of a namespace; none while nothing was written to it.
pub(crate) async fn find(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
) -> Result<Option<NamespaceRow>, DatabaseError> {
    sqlx::query_as("SELECT id, owner_id FROM namespaces WHERE kind = ? AND name = ?")
        .bind(namespace.kind())
        .bind(namespace.name().as_str())
        .fetch_optional(executor)
        .await
        .map_err(failed("look up a namespace"))
}

/// The row of a namespace, made for this owner when there is none.
pub(crate) async fn ensure(
    connection: &mut Connection,
    namespace: &Namespace,
    owner: UserId,
    now_ms: i64,
) -> Result<NamespaceRow, DatabaseError> {
    sqlx::query(
        "INSERT INTO namespaces (kind, name, owner_id, created_ms) VALUES (?, ?, ?, ?)
         ON CONFLICT (kind, name) DO NOTHING",
    )
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .bind(owner)
    .bind(now_ms)
    .execute(&mut *connection)
    .await
    .map_err(failed("add a namespace"))?;
    find(connection, namespace).await?.ok_or_else(|| DatabaseError::Value {
        what: "namespace",
        found: format!("no {namespace} right after it was added"),
    })
}

/// All namespaces.
pub(crate) async fn list(
    executor: impl SqliteExecutor<'_>,
) -> Result<Vec<(NamespaceId, Namespace)>, DatabaseError> {
    let rows: Vec<(NamespaceId, String, String)> =
        sqlx::query_as("SELECT id, kind, name FROM namespaces ORDER BY id")
            .fetch_all(executor)
            .await
            .map_err(failed("list namespaces"))?;
    rows.into_iter()
        .map(|(id, kind, name)| Ok((id, parsed("namespace", &format!("{kind}/{name}"))?)))
        .collect()
}
