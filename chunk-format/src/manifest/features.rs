//! What a manifest uses beyond version 1 of its format.

use serde::{Deserialize, Serialize};

use super::WHAT;
use crate::error::FormatError;
use crate::id::preview;
use crate::namespace::Name;

/// The most features in a class.
pub(super) const MAX_FEATURES: usize = 64;

/// Names of what a manifest uses beyond version 1, in three classes (as ext4 and composefs do): a reader may ignore
/// unknown `compatible` ones, may read but not write upon unknown `read_only_compatible` ones, and refuses unknown
/// `incompatible` ones. Each is a [`Name`]; at most 64 in a class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Features {
    /// May be ignored.
    #[serde(deserialize_with = "super::json::list::<_, _, MAX_FEATURES>")]
    pub compatible: Vec<String>,
    /// May be read, must not be written upon.
    #[serde(deserialize_with = "super::json::list::<_, _, MAX_FEATURES>")]
    pub read_only_compatible: Vec<String>,
    /// Must be understood.
    #[serde(deserialize_with = "super::json::list::<_, _, MAX_FEATURES>")]
    pub incompatible: Vec<String>,
}

impl Features {
    /// Features this library understands: none yet beyond version 1.
    const KNOWN: &[&str] = &[];

    pub(super) fn check(&self) -> Result<(), FormatError> {
        let features = Self::unknown(&self.incompatible);
        if !features.is_empty() {
            return Err(FormatError::UnsupportedFeatures { what: WHAT, features });
        }
        for class in [&self.compatible, &self.read_only_compatible, &self.incompatible] {
            if class.len() > MAX_FEATURES {
                let expected = format!("at most {MAX_FEATURES} in a class");
                return Err(FormatError::field(WHAT, "features", class.len(), expected));
            }
            for name in class {
                name.parse::<Name>()?;
            }
        }
        Ok(())
    }

    pub(super) fn unknown(names: &[String]) -> Vec<String> {
        names.iter().filter(|name| !Self::KNOWN.contains(&name.as_str())).map(|name| preview(name)).collect()
    }
}
