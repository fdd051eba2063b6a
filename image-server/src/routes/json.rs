//! Answers of the control plane.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use chunk_format::{ManifestId, Name, PublicKey};
use serde::Serialize;

use crate::database::versions::VersionRow;
use crate::role::Role;

/// An answer that holds now and may not be kept.
pub(crate) fn fresh(value: impl Serialize) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(value)).into_response()
}

/// `GET /v1/server`.
#[derive(Serialize)]
pub(crate) struct ServerJson {
    pub(crate) server: PublicKey,
    pub(crate) version: &'static str,
    pub(crate) api: u32,
    pub(crate) user: Name,
    pub(crate) role: Role,
    pub(crate) expires_ms: Option<i64>,
}

/// A version, wherever one is shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VersionJson {
    pub(crate) id: ManifestId,
    sequence: u64,
    parent: Option<ManifestId>,
    created_ms: u64,
    committed_ms: i64,
    pub(crate) machine: String,
    note: Option<String>,
    key: PublicKey,
    size_bytes: u64,
}

impl From<VersionRow> for VersionJson {
    fn from(row: VersionRow) -> Self {
        Self {
            id: row.id,
            sequence: row.sequence,
            parent: row.parent,
            created_ms: row.created_ms,
            committed_ms: row.committed_ms,
            machine: row.machine,
            note: row.note,
            key: row.signature.key,
            size_bytes: row.size_bytes,
        }
    }
}

/// `GET …/versions`.
#[derive(Serialize)]
pub(crate) struct VersionsJson {
    pub(crate) versions: Vec<VersionJson>,
}

/// An image.
#[derive(Serialize)]
pub(crate) struct ImageJson {
    pub(crate) image: Name,
    pub(crate) publisher: Option<PublicKey>,
    pub(crate) channels: BTreeMap<Name, ManifestId>,
    pub(crate) mirrors: Vec<String>,
    pub(crate) latest: VersionJson,
}

/// `GET /v1/images`.
#[derive(Serialize)]
pub(crate) struct ImagesJson {
    pub(crate) images: Vec<ImageJson>,
}

/// The golden version below a desktop's head.
#[derive(Serialize)]
pub(crate) struct BaseJson {
    pub(crate) image: Name,
    pub(crate) channel: Option<Name>,
    pub(crate) version: ManifestId,
    pub(crate) publisher: PublicKey,
    pub(crate) mirrors: Vec<String>,
}

/// A desktop.
#[derive(Serialize)]
pub(crate) struct DesktopJson {
    pub(crate) desktop: Name,
    pub(crate) owner: Name,
    pub(crate) id: ManifestId,
    pub(crate) base: BaseJson,
    pub(crate) head: VersionJson,
}

/// `GET /v1/desktops`.
#[derive(Serialize)]
pub(crate) struct DesktopsJson {
    pub(crate) desktops: Vec<DesktopJson>,
}
