//! Making, listing and revoking tokens, beside a running server or without one.

use std::path::Path;

use chunk_format::{FormatError, Name};

use crate::clock::now_ms;
use crate::database::tokens::{self, TokenId, TokenRow};
use crate::database::{Database, DatabaseError, commit};
use crate::layout::{DataDir, LayoutError};
use crate::role::Role;
use crate::secret::{NoRandomness, Secret};

const MAX_LABEL_CHARS: usize = 100;

/// Why a token could not be made, listed or revoked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The user name cannot be one.
    #[error("the user name cannot be used")]
    Name(#[source] FormatError),
    /// The label is too long for a table, or would garble it.
    #[error("a label has at most {MAX_LABEL_CHARS} characters and no control characters")]
    Label,
    /// No randomness for the token.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// There is no such token.
    #[error("there is no token {id}: `satchel-server token DIR --list` shows those there are")]
    Unknown {
        /// The id asked for.
        id: i64,
    },
}

/// A token to be made.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Whose it is; a user that is not known yet is added.
    pub user: Name,
    /// What it may do.
    pub role: Role,
    /// What it is for, for people.
    pub label: Option<String>,
    /// When it ends, milliseconds since 1970 UTC; never when absent.
    pub expires_ms: Option<i64>,
}

/// Whether a token is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenState {
    /// It is.
    Valid,
    /// Its time is over.
    Expired,
    /// It was taken back.
    Revoked,
}

/// A token as a list shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ListedToken {
    /// What [`revoke`] takes.
    pub id: i64,
    /// Whose it is.
    pub user: Name,
    /// What it may do.
    pub role: Role,
    /// What it is for.
    pub label: Option<String>,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: i64,
    /// When it ends.
    pub expires_ms: Option<i64>,
    /// When it was last used, to the minute.
    pub last_used_ms: Option<i64>,
    /// Whether it is good.
    pub state: TokenState,
}

impl TokenRow {
    /// Whether the token is good at this time. Revocation is told before expiry: it is what someone decided.
    pub(crate) fn state(&self, now_ms: i64) -> TokenState {
        if self.revoked_ms.is_some() {
            TokenState::Revoked
        } else if self.expires_ms.is_some_and(|end_ms| end_ms <= now_ms) {
            TokenState::Expired
        } else {
            TokenState::Valid
        }
    }
}

/// Makes a token for the server in `root`.
///
/// # Errors
/// `Layout`, `Database`, `Label` or `Random`.
pub async fn issue(root: &Path, new: &NewToken) -> Result<Secret, TokenError> {
    let database = open(root).await?;
    let made = issue_in(&database, new).await;
    database.close().await;
    made
}

/// Makes a token in an open database.
pub(crate) async fn issue_in(database: &Database, new: &NewToken) -> Result<Secret, TokenError> {
    let label = new.label.as_deref();
    if label
        .is_some_and(|label| label.chars().count() > MAX_LABEL_CHARS || label.chars().any(char::is_control))
    {
        return Err(TokenError::Label);
    }
    let secret = Secret::generate()?;
    let now = now_ms();
    let mut tx = database.begin().await?;
    let user = tokens::ensure_user(&mut tx, &new.user, now).await?;
    tokens::insert(&mut tx, user, new.role, label, secret.hash(), now, new.expires_ms).await?;
    commit(tx).await?;
    Ok(secret)
}

/// All tokens of the server in `root`, oldest first.
///
/// # Errors
/// `Layout` or `Database`.
pub async fn list(root: &Path) -> Result<Vec<ListedToken>, TokenError> {
    let database = open(root).await?;
    let rows = tokens::list(database.readers()).await;
    database.close().await;
    let now = now_ms();
    let listed = |row: TokenRow| ListedToken {
        state: row.state(now),
        id: row.id.0,
        user: row.user,
        role: row.role,
        label: row.label,
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        last_used_ms: row.last_used_ms,
    };
    Ok(rows?.into_iter().map(listed).collect())
}

/// Takes a token back; a running server refuses it from its next request on. Twice is as good as once.
///
/// # Errors
/// `Unknown` when there is no such token; `Layout` or `Database`.
pub async fn revoke(root: &Path, id: i64) -> Result<(), TokenError> {
    let database = open(root).await?;
    let revoked = async {
        let mut tx = database.begin().await?;
        let known = tokens::revoke(&mut *tx, TokenId(id), now_ms()).await?;
        commit(tx).await?;
        Ok::<_, DatabaseError>(known)
    }
    .await;
    database.close().await;
    if revoked? { Ok(()) } else { Err(TokenError::Unknown { id }) }
}

async fn open(root: &Path) -> Result<Database, TokenError> {
    let dir = DataDir::open(root)?;
    let _lock = dir.lock()?;
    Ok(Database::open(&dir.database()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(user: &str, expires_ms: Option<i64>) -> NewToken {
        NewToken { user: user.parse().unwrap(), role: Role::User, label: None, expires_ms }
    }

    #[tokio::test]
    async fn tokens_are_listed_with_their_state_and_revoked_by_id() {
        let temp = tempfile::tempdir().unwrap();
        crate::init::init(temp.path(), &[], None).await.unwrap();
        issue(temp.path(), &new("alice", None)).await.unwrap();
        issue(temp.path(), &new("alice", Some(1))).await.unwrap();
        revoke(temp.path(), 2).await.unwrap();
        revoke(temp.path(), 2).await.unwrap();
        let listed = list(temp.path()).await.unwrap();
        let states: Vec<_> = listed.iter().map(|token| (token.user.as_str(), token.state)).collect();
        let expected =
            [("admin", TokenState::Valid), ("alice", TokenState::Revoked), ("alice", TokenState::Expired)];
        assert_eq!(states, expected);
        assert!(matches!(revoke(temp.path(), 77).await.unwrap_err(), TokenError::Unknown { id: 77 }));
    }

    #[tokio::test]
    async fn labels_that_would_garble_a_table_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        crate::init::init(temp.path(), &[], None).await.unwrap();
        for label in ["a\nb".to_owned(), "x".repeat(101)] {
            let token = NewToken { label: Some(label), ..new("alice", None) };
            assert!(matches!(issue(temp.path(), &token).await.unwrap_err(), TokenError::Label));
        }
    }
}
