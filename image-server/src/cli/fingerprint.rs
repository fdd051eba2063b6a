//! `satchel-server fingerprint`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use image_server::{Certificate, certificate, format_ms};
use serde_json::json;

use super::output;

/// Print what clients check the server's certificate by, and until when it is valid
///
/// It is that of the file tls/cert.pem in the directory. A running server has taken it up when it was started after the file
/// was changed, or was sent SIGHUP (`systemctl reload satchel-server`).
#[derive(Args)]
pub(crate) struct Fingerprint {
    /// The server's directory
    dir: PathBuf,
}

impl Fingerprint {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let Certificate { fingerprint, valid_until_ms } = certificate(&self.dir)?;
        let fingerprint = fingerprint.to_string();
        if json {
            output::json(&json!({ "fingerprint": fingerprint, "valid_until_ms": valid_until_ms }))?;
        } else {
            output::data(&format!("fingerprint: {fingerprint}"))?;
            if let Some(until_ms) = valid_until_ms {
                output::data(&format!("valid until: {}", format_ms(until_ms)))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
