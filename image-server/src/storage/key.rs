//! Names of objects.

use std::fmt;
use std::str::FromStr;

use chunk_format::{ManifestId, Namespace, PackId, ProfileId, SegmentId, StreamId};
use object_store::path::Path;

const SIGNATURE_SUFFIX: &str = ".sig";
const PROFILE_SUFFIX: &str = ".profile";

/// An object within its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    Pack(PackId),
    Segment(SegmentId),
    /// The locator of this segment.
    Locator(SegmentId),
    Manifest(ManifestId),
    ManifestSignature(ManifestId),
    /// Which profile this version has.
    ManifestProfile(ManifestId),
    Profile(ProfileId),
    ProfileSignature(ProfileId),
    /// An object of a boot stream.
    Stream(StreamId),
}

impl Object {
    /// The class: the path segment before the name.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Pack(_) => "packs",
            Self::Segment(_) => "segments",
            Self::Locator(_) => "locators",
            Self::Manifest(_) | Self::ManifestSignature(_) | Self::ManifestProfile(_) => "manifests",
            Self::Profile(_) | Self::ProfileSignature(_) => "profiles",
            Self::Stream(_) => "streams",
        }
    }

    /// The name: the last path segment.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Pack(id) => id.to_string(),
            Self::Segment(id) | Self::Locator(id) => id.to_string(),
            Self::Manifest(id) => id.to_string(),
            Self::ManifestSignature(id) => format!("{id}{SIGNATURE_SUFFIX}"),
            Self::ManifestProfile(id) => format!("{id}{PROFILE_SUFFIX}"),
            Self::Profile(id) => id.to_string(),
            Self::Stream(id) => id.to_string(),
            Self::ProfileSignature(id) => format!("{id}{SIGNATURE_SUFFIX}"),
        }
    }

    /// Reads class and name; none when they name no object.
    pub(crate) fn parse(class: &str, name: &str) -> Option<Self> {
        if let (Some(name), "manifests") = (name.strip_suffix(PROFILE_SUFFIX), class) {
            return id(name).map(Self::ManifestProfile);
        }
        let signed = name.strip_suffix(SIGNATURE_SUFFIX);
        match (class, signed) {
            ("packs", None) => id(name).map(Self::Pack),
            ("segments", None) => id(name).map(Self::Segment),
            ("locators", None) => id(name).map(Self::Locator),
            ("manifests", None) => id(name).map(Self::Manifest),
            ("manifests", Some(name)) => id(name).map(Self::ManifestSignature),
            ("profiles", None) => id(name).map(Self::Profile),
            ("streams", None) => id(name).map(Self::Stream),
            ("profiles", Some(name)) => id(name).map(Self::ProfileSignature),
            _ => None,
        }
    }
}

fn id<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// An object's full name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ObjectKey {
    pub(crate) namespace: Namespace,
    pub(crate) object: Object,
}

impl ObjectKey {
    /// The object's path in the store: that of the data plane.
    pub(crate) fn path(&self) -> Path {
        let name = self.object.name();
        Path::from_iter([self.namespace.kind(), self.namespace.name().as_str(), self.object.class(), &name])
    }

    /// Reads a path of the store; none when it is none of ours.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let (rest, name) = path.rsplit_once('/')?;
        let (namespace, class) = rest.rsplit_once('/')?;
        Some(Self { namespace: namespace.parse().ok()?, object: Object::parse(class, name)? })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.object.class(), self.object.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_through_paths() {
        let namespace: Namespace = "user/alice".parse().unwrap();
        let objects = [
            Object::Pack(PackId::of(b"a")),
            Object::Segment(SegmentId::of(b"a")),
            Object::Locator(SegmentId::of(b"a")),
            Object::Manifest(ManifestId::of(b"a")),
            Object::ManifestSignature(ManifestId::of(b"a")),
            Object::Profile(ProfileId::of(b"a")),
            Object::ProfileSignature(ProfileId::of(b"a")),
            Object::ManifestProfile(ManifestId::of(b"a")),
            Object::Stream(StreamId::of(b"a")),
        ];
        for object in objects {
            let key = ObjectKey { namespace: namespace.clone(), object };
            assert_eq!(key.path().to_string(), key.to_string());
            assert_eq!(ObjectKey::parse(&key.to_string()), Some(key));
        }
    }

    #[test]
    fn other_paths_are_none_of_ours() {
        let id = PackId::of(b"a");
        for path in [
            String::new(),
            format!("image/debian/packs/{id}.sig"),
            format!("image/debian/packs/{}", id.to_string().to_uppercase()),
            format!("image/debian/blobs/{id}"),
            format!("image/debian/packs/{id}.profile"),
            format!("image/debian/streams/{id}.sig"),
            format!("image/../packs/{id}"),
            format!("team/debian/packs/{id}"),
            format!("image/debian/packs/{id}/x"),
            "image/debian/README".to_owned(),
        ] {
            assert_eq!(ObjectKey::parse(&path), None, "{path}");
        }
    }
}
