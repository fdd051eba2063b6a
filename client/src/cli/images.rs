//! `satchel images` and `satchel desktops`

use super::Context;
use super::output::{moment, short, table};
use super::quantity::ByteSize;

pub(crate) async fn list_images(context: &Context) -> anyhow::Result<()> {
    let (_, remote) = context.state()?.remote()?;
    let images = remote.images().await?;
    if images.is_empty() {
        context.printer.message("no images yet; publish one: satchel publish FILE --image NAME");
    }
    context.printer.result(&images, |images| {
        let rows: Vec<Vec<String>> = images
            .iter()
            .map(|info| {
                let channels: Vec<String> =
                    info.channels.iter().map(|(name, id)| format!("{name}={}", short(id))).collect();
                vec![
                    info.image.to_string(),
                    info.latest.sequence.to_string(),
                    short(&info.latest.id),
                    ByteSize(info.latest.size_bytes).to_string(),
                    moment(info.latest.committed_ms),
                    channels.join(" "),
                ]
            })
            .collect();
        table(&["IMAGE", "NEWEST", "ID", "SIZE", "PUBLISHED", "CHANNELS"], &rows)
    })?;
    Ok(())
}

pub(crate) async fn list_desktops(context: &Context) -> anyhow::Result<()> {
    let (_, remote) = context.state()?.remote()?;
    let desktops = remote.desktops().await?;
    if desktops.is_empty() {
        context.printer.message("no desktops yet; make one: satchel create NAME --image IMAGE");
    }
    context.printer.result(&desktops, |desktops| {
        let rows: Vec<Vec<String>> = desktops
            .iter()
            .map(|info| {
                let channel =
                    info.base.channel.as_ref().map_or(String::new(), |channel| format!(":{channel}"));
                vec![
                    info.desktop.to_string(),
                    format!("{}{channel}", info.base.image),
                    info.head.sequence.to_string(),
                    short(&info.head.id),
                    moment(info.head.committed_ms),
                    info.head.machine.clone(),
                ]
            })
            .collect();
        table(&["DESKTOP", "IMAGE", "VERSION", "ID", "SYNCED", "FROM"], &rows)
    })?;
    Ok(())
}
