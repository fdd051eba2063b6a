//! What a token may do.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The role a token carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Writes every image.
    Admin,
    /// Writes the images it was first to write.
    Publisher,
    /// Reads images; reads and writes its own desktops, as every role does.
    User,
}

impl Role {
    /// The role's name, as the command line and the database have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Publisher => "publisher",
            Self::User => "user",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        [Self::Admin, Self::Publisher, Self::User]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(UnknownRole)
    }
}

/// A role there is none of.
#[derive(Debug, thiserror::Error)]
#[error("a role is admin, publisher or user")]
pub struct UnknownRole;
