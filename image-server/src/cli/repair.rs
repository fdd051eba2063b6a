//! `satchel-server repair`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use image_server::repair::{Report, repair};
use indicatif::HumanBytes;

use super::output;
use super::progress::Shown;
use super::verify::{Told, told};

/// Have what is damaged sent again by whoever has it. Works while a server runs
///
/// Checks all there is, as `verify` does, and notes the content that cannot be read as lost: whoever publishes the same disk again, or
/// syncs a desktop that needs it, then sends what they have of it. A repair after that has everything else that needs it lead there, and
/// takes up files that were put back. Nothing is deleted. Exit 1 when something is lost still, or was found that a repair does nothing
/// about.
#[derive(Args)]
pub(crate) struct Repair {
    /// The server's directory
    dir: PathBuf,
}

impl Repair {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let progress = Told(Shown::new("checking"));
        let report = repair(&self.dir, &progress).await?;
        drop(progress);
        if json {
            output::json(&report)?;
        } else {
            for line in lines(&report) {
                output::data(&line)?;
            }
        }
        let is_well = report.still_lost_segments + report.unsure_segments == 0 && report.findings.is_empty();
        Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines: Vec<String> = report.findings.iter().map(told).collect();
    let mut say = |what: &str, packs: u64, packs_bytes: u64, segments: u64| {
        let bytes = if packs_bytes > 0 { format!(" ({})", HumanBytes(packs_bytes)) } else { String::new() };
        let parts = [(packs, "packs", bytes), (segments, "segments", String::new())];
        let told: Vec<String> = parts
            .into_iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, kind, bytes)| format!("{count} {kind}{bytes}"))
            .collect();
        if !told.is_empty() {
            lines.push(format!("{what}: {}", told.join(", ")));
        }
    };
    say("noted as lost", report.lost_packs, report.lost_pack_bytes, report.lost_segments);
    say("whole again", report.whole_packs, 0, report.whole_segments);
    say("lead to what was sent again", 0, 0, report.led_segments);
    if report.unsure_segments > 0 {
        lines.push(format!(
            "not known: {} segments that could not be read were sent again meanwhile; run this once more",
            report.unsure_segments
        ));
    }
    if report.still_lost_segments == 0 {
        if report.unsure_segments == 0 {
            lines.push("nothing that is needed is lost".to_owned());
        }
        return lines;
    }
    lines.push(format!("lost: {} segments", report.still_lost_segments));
    lines.extend(report.affects.iter().map(|version| format!("cannot be read whole: {version}")));
    lines.push(if report.affects.is_empty() {
        "No version is known to need them: if that stays so, `gc` deletes them".to_owned()
    } else {
        "To do: publish the disks of these images again (`satchel publish`), sync these desktops from machines that have them pinned, or \
         put files back from a backup; then run this again"
            .to_owned()
    });
    lines
}
