//! Who may read and write which namespace: the table of `docs/api.md`, in one place.

use chunk_format::Namespace;

use crate::clock::now_ms;
use crate::database::namespaces::{self, NamespaceId, NamespaceRow};
use crate::database::{Connection, Database};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::role::Role;

impl Caller {
    /// Checks that the caller may read a namespace.
    ///
    /// # Errors
    /// `NotFound` for another user's: whether there is one is not told.
    pub(crate) fn check_read(&self, namespace: &Namespace) -> Result<(), ApiError> {
        match namespace {
            Namespace::Image(_) => Ok(()),
            Namespace::User(user) if *user == self.user => Ok(()),
            Namespace::User(_) => Err(ApiError::no_such(namespace)),
        }
    }

    /// Checks that the caller may write a namespace as things stand, before a body is read.
    ///
    /// # Errors
    /// `NotFound` for another user's; `Forbidden` for an image that is not the caller's to write.
    pub(crate) async fn check_write(
        &self,
        database: &Database,
        namespace: &Namespace,
    ) -> Result<(), ApiError> {
        self.check_read(namespace)?;
        let row = namespaces::find(database.readers(), namespace).await?;
        self.check_owner(namespace, row.as_ref())
    }

    /// Checks that the caller may write a namespace and makes it the caller's when it is nobody's, within the
    /// transaction that writes to it.
    ///
    /// # Errors
    /// As [`Caller::check_write`].
    pub(crate) async fn claim(
        &self,
        transaction: &mut Connection,
        namespace: &Namespace,
    ) -> Result<NamespaceId, ApiError> {
        self.check_read(namespace)?;
        // A role that writes no images must not become the owner of one.
        self.check_owner(namespace, None)?;
        let row = namespaces::ensure(transaction, namespace, self.user_id, now_ms()).await?;
        self.check_owner(namespace, Some(&row))?;
        Ok(row.id)
    }

    fn check_owner(&self, namespace: &Namespace, row: Option<&NamespaceRow>) -> Result<(), ApiError> {
        let Namespace::Image(image) = namespace else { return Ok(()) };
        let refused = |why: &str| Err(ApiError::Forbidden(format!("{why} image {image}")));
        match self.role {
            Role::Admin => Ok(()),
            Role::Publisher if row.is_none_or(|row| row.owner_id == self.user_id) => Ok(()),
            Role::Publisher => refused("only its first publisher and admins may write"),
            Role::User => refused("a token with the role user may not write"),
        }
    }
}
