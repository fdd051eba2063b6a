//! `satchel create`

use anyhow::{Context as _, bail};
use chunk_format::{ChunkSize, DiskSize, Name, PublicKey, SystemMode};
use clap::{Args, ValueEnum};
use satchel_client::create::{Creator, NewDesktopRequest};
use satchel_client::remote::VersionInfo;
use satchel_client::versions::ImageRef;
use serde::Serialize;

use super::quantity::ByteSize;
use super::{Context, machine_name, now_ms};

/// How a desktop takes up new golden versions.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ModeArg {
    /// A fresh system disk at every start; what is written to it is dropped
    Renew,
    /// Changes to the system disk are kept until the channel moves on
    Keep,
    /// The system disk is the desktop's own, and moves only with `satchel rebase`
    Own,
}

impl From<ModeArg> for SystemMode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Renew => Self::Renew,
            ModeArg::Keep => Self::Keep,
            ModeArg::Own => Self::Own,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// What to call it
    desktop: Name,
    /// The image it starts from: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(long, value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// The size of its home disk (0: none)
    #[arg(long, value_name = "SIZE", default_value = "32G")]
    home: ByteSize,
    /// The key that must have signed the image
    #[arg(long, value_name = "ed25519:...")]
    publisher: Option<PublicKey>,
    /// What becomes of its system disk when the image's channel moves on (without it: as the image says, or own)
    #[arg(long, value_name = "MODE", value_enum)]
    mode: Option<ModeArg>,
}

#[derive(Serialize)]
struct Created {
    desktop: String,
    image: String,
    image_sequence: u64,
    home_bytes: u64,
    system_mode: SystemMode,
    #[serde(flatten)]
    version: VersionInfo,
}

pub(crate) async fn run(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (login, remote) = state.remote()?;
    // Before there is a desktop on the server that this machine cannot have.
    state.check_fit()?;
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
    let wanted = request.mode;
    let (version, golden) = creator.create(request).await?;
    let created = Created {
        desktop: args.desktop.to_string(),
        image: args.image.image.to_string(),
        image_sequence: golden.sequence,
        home_bytes: args.home.0,
        system_mode: wanted.unwrap_or(golden.mode()),
        version,
    };
    context.printer.result(&created, |created| {
        let home = if created.home_bytes == 0 {
            "no home disk".to_owned()
        } else {
            format!("a home disk of {}", args.home)
        };
        let mut text = format!(
            "made desktop {0} from {1} version {2}, with {home}; start it: satchel run {0}",
            created.desktop, created.image, created.image_sequence
        );
        text.extend(volatile(created));
        text
    })?;
    Ok(())
}

/// What a person must know of a system disk that is new at each start, before they install something on it.
fn volatile(created: &Created) -> Option<String> {
    let kept = if created.home_bytes == 0 { "" } else { ", while its home disk stays" };
    (created.system_mode == SystemMode::Renew).then(|| {
        format!(
            "\nits system disk is new at each start (mode renew): what is written to it is gone when the machine is off{kept}"
        )
    })
}
