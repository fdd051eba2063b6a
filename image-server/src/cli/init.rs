//! `satchel-server init`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::output;

/// Make a server: certificate, keys, database and object store. Prints an admin token and the certificate's fingerprint
#[derive(Args)]
pub(crate) struct Init {
    /// The server's directory: a new or an empty one
    dir: PathBuf,
    /// A host name or address clients will use, for the certificate (repeatable)
    #[arg(long = "name", value_name = "HOST")]
    names: Vec<String>,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

impl Init {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let made = image_server::init(&self.dir, &self.names).await?;
        let (token, fingerprint) = (made.token.reveal(), made.fingerprint.to_string());
        if self.json {
            output::json(&json!({ "token": token, "fingerprint": fingerprint, "server": made.server }))?;
        } else {
            output::data(&format!("token: {token}"))?;
            output::data(&format!("fingerprint: {fingerprint}"))?;
        }
        output::message(&format!(
            "keep the token: it is shown only now. Next: satchel-server serve {}",
            self.dir.display()
        ));
        Ok(ExitCode::SUCCESS)
    }
}
