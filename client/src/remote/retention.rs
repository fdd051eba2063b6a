//! What a desktop's owner keeps of it.

use chunk_format::Name;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{Remote, RemoteError};

/// How many versions are kept. A rule of 0 keeps none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The newest versions.
    pub keep_last: u32,
    /// Hours of which the newest version is kept.
    pub keep_hourly: u32,
    /// Days of which the newest version is kept.
    pub keep_daily: u32,
    /// Weeks of which the newest version is kept.
    pub keep_weekly: u32,
}

/// The policy in force for a desktop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The policy.
    pub policy: Policy,
    /// Whether it is the desktop's own, and not the server's.
    pub own: bool,
}

impl Remote {
    /// How many versions of a desktop are kept.
    ///
    /// # Errors
    /// `Refused` with code `not_found` when there is no such desktop.
    pub async fn retention(&self, desktop: &Name) -> Result<Retention, RemoteError> {
        self.json(self.request(Method::GET, &retention_path(desktop))).await
    }

    /// Gives a desktop a policy of its own; none for the server's.
    ///
    /// # Errors
    /// As [`Remote::retention`].
    pub async fn set_retention(
        &self,
        desktop: &Name,
        policy: Option<Policy>,
    ) -> Result<Retention, RemoteError> {
        let path = retention_path(desktop);
        let request = match policy {
            None => self.request(Method::DELETE, &path),
            Some(Policy { keep_last, keep_hourly, keep_daily, keep_weekly }) => {
                let body = serde_json::json!({
                    "keep_last": keep_last, "keep_hourly": keep_hourly,
                    "keep_daily": keep_daily, "keep_weekly": keep_weekly,
                });
                self.request(Method::PUT, &path)
                    .header("content-type", "application/json")
                    .body(body.to_string())
            }
        };
        self.json(request).await
    }
}

fn retention_path(desktop: &Name) -> String {
    format!("/v1/desktops/{desktop}/retention")
}
