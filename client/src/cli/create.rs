//! `satchel create`

use anyhow::{Context as _, bail};
use chunk_format::{ChunkSize, DiskSize};
use satchel_client::create::{Creator, NewDesktopRequest};
use satchel_client::remote::VersionInfo;
use serde::Serialize;

use super::{Context, CreateArgs, machine_name, now_ms};

#[derive(Serialize)]
struct Created {
    desktop: String,
    image: String,
    image_sequence: u64,
    home_bytes: u64,
    #[serde(flatten)]
    version: VersionInfo,
}

pub(crate) async fn run(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (login, remote) = state.remote()?;
    let home = match args.home.0 {
        0 => None,
        bytes if bytes < 16 << 20 => {
            bail!("a home disk of less than 16M holds no file system; give more, or 0 for none")
        }
        bytes => {
            let size = DiskSize::new(bytes & !511)?;
            size.segments(ChunkSize::DEFAULT).context("the home disk is too large")?;
            Some(size)
        }
    };
    let creator = Creator { remote, state: &state, machine: machine_name(), now_ms };
    let request = NewDesktopRequest {
        owner: login.user,
        desktop: args.desktop.clone(),
        image: args.image.clone(),
        home,
        publisher: args.publisher,
        mode: args.mode.map(Into::into),
    };
    let (version, golden) = creator.create(request).await?;
    let created = Created {
        desktop: args.desktop.to_string(),
        image: args.image.image.to_string(),
        image_sequence: golden.sequence,
        home_bytes: args.home.0,
        version,
    };
    context.printer.result(&created, |created| {
        let home = if created.home_bytes == 0 {
            "no home disk".to_owned()
        } else {
            format!("a home disk of {}", args.home)
        };
        format!(
            "made desktop {0} from {1} version {2}, with {home}; start it: satchel run {0}",
            created.desktop, created.image, created.image_sequence
        )
    })?;
    Ok(())
}
