//! `satchel-server init`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use image_server::{Bucket, BucketError};
use serde_json::json;

use super::output;

/// Where the region is named that is kept for later, whatever these say then.
const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];

/// Make a server: certificate, keys, database and object store. Prints an admin token and the certificate's fingerprint
#[derive(Args)]
pub(crate) struct Init {
    /// The server's directory: a new or an empty one
    dir: PathBuf,
    /// A host name or address clients will use, for the certificate (repeatable)
    #[arg(long = "name", value_name = "HOST")]
    names: Vec<String>,
    /// Keep the objects in this bucket, s3://BUCKET or s3://BUCKET/PREFIX, and not in the directory. Every command takes what
    /// gives access to it from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an instance's or container's role
    #[arg(long)]
    bucket: Option<Bucket>,
    /// Where the bucket is when not at Amazon
    #[arg(long, value_name = "URL", requires = "bucket")]
    bucket_endpoint: Option<String>,
    /// The bucket's region [default: that of AWS_REGION or AWS_DEFAULT_REGION now, else us-east-1]
    #[arg(long, value_name = "REGION", requires = "bucket")]
    bucket_region: Option<String>,
}

impl Init {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let bucket = self.bucket()?;
        if let Some(bucket) = &bucket {
            // Some MiB over whatever link there is.
            output::message(&format!("trying out {bucket}"));
        }
        let made = image_server::init(&self.dir, &self.names, bucket).await?;
        let (token, fingerprint) = (made.token.reveal(), made.fingerprint.to_string());
        if json {
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

    fn bucket(&self) -> Result<Option<Bucket>, BucketError> {
        let Some(mut bucket) = self.bucket.clone() else { return Ok(None) };
        if let Some(endpoint) = &self.bucket_endpoint {
            bucket = bucket.at(endpoint)?;
        }
        let named =
            || REGIONS.into_iter().find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
        if let Some(region) = self.bucket_region.clone().or_else(named) {
            bucket = bucket.in_region(region)?;
        }
        Ok(Some(bucket))
    }
}
