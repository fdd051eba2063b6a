//! What a manifest is a version of.

use serde::{Deserialize, Serialize};

use super::WHAT;
use crate::error::FormatError;
use crate::namespace::{Name, Namespace};

/// What a manifest is a version of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", try_from = "SubjectFields")]
pub enum Subject {
    /// A golden version of an image.
    Image {
        /// The image.
        image: Name,
    },
    /// A version of one person's desktop.
    Desktop {
        /// The user it belongs to.
        owner: Name,
        /// The desktop's name, unique for its owner.
        desktop: Name,
    },
}

impl Subject {
    /// The namespace the version's manifest, and what it adds, lie in.
    pub fn namespace(&self) -> Namespace {
        match self {
            Self::Image { image } => Namespace::Image(image.clone()),
            Self::Desktop { owner, .. } => Namespace::User(owner.clone()),
        }
    }
}

/// A subject's fields before it is known which ones its kind has.
#[derive(Deserialize)]
struct SubjectFields {
    #[serde(deserialize_with = "super::json::name")]
    kind: SubjectKind,
    image: Option<Name>,
    owner: Option<Name>,
    desktop: Option<Name>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum SubjectKind {
    Image,
    Desktop,
}

impl TryFrom<SubjectFields> for Subject {
    type Error = FormatError;

    fn try_from(fields: SubjectFields) -> Result<Self, FormatError> {
        match (fields.kind, fields.image, fields.owner, fields.desktop) {
            (SubjectKind::Image, Some(image), None, None) => Ok(Self::Image { image }),
            (SubjectKind::Desktop, None, Some(owner), Some(desktop)) => Ok(Self::Desktop { owner, desktop }),
            (SubjectKind::Image, ..) => Err(subject_error("of another kind", "`image` alone for an image")),
            (SubjectKind::Desktop, ..) => {
                Err(subject_error("of another kind", "`owner` and `desktop` alone for a desktop"))
            }
        }
    }
}

fn subject_error(found: &str, expected: &str) -> FormatError {
    FormatError::field(WHAT, "subject", found, expected)
}
