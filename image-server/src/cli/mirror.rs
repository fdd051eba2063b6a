//! `satchel-server mirror`

use std::path::PathBuf;
use std::process::ExitCode;

use chunk_format::Name;
use clap::Args;
use image_server::mirrors;

use super::output;

/// Name static hosts that hold an image's objects too; print those there are. Works while a server runs
#[derive(Args)]
pub(crate) struct Mirror {
    /// The server's directory
    dir: PathBuf,
    /// The image
    image: Name,
    /// A host that holds the tree of `satchel export`: https://HOST/PREFIX, with #SHA256:... to pin its certificate
    #[arg(long, value_name = "URL")]
    add: Vec<String>,
    /// A host that no longer does
    #[arg(long, value_name = "URL")]
    remove: Vec<String>,
}

impl Mirror {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let mirrors = mirrors::change(&self.dir, &self.image, &self.add, &self.remove).await?;
        if json {
            output::json(&mirrors)?;
        } else if mirrors.is_empty() {
            output::message(&format!("image {} has no mirrors", self.image));
        } else {
            output::data(&mirrors.join("\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
