//! What every request passes through: its log line, the interface version, its token, its limits.

pub(crate) mod api_version;
pub(crate) mod auth;
pub(crate) mod body;
pub(crate) mod conditional;
pub(crate) mod error;
pub(crate) mod head;
pub(crate) mod linger;
pub(crate) mod log;
pub(crate) mod params;
