//! What `publish` says that an update takes, against what a client then fetches.

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Client, Link, Shape};

use crate::report::{Report, Table};
use crate::stage::{Kind, Stage, kinds, number, publish};

/// How far what was said may be from what was fetched, percent.
const GOAL_PERCENT: f64 = 5.0;

/// Publishes each image's next version and lets a client that has all of the one before take it up.
pub(crate) fn of_an_update(report: &mut Report) {
    let mut table = Table::new(&["", "said", "fetched", "off by", "goal"]);
    for kind in kinds(report) {
        account(kind, report, &mut table);
    }
    let text = format!(
        "A desktop of the version before, all of it on the client; then the next version (its pending updates were installed with `apt \
         full-upgrade`) is published, and says what a client will fetch: to boot, and in full. The client takes it up; bytes are \
         counted on its link, TLS and everything else included.\n\n{table}\n```\nsatchel publish NEXT --image IMAGE --profile-from newest\n\
         satchel mount work DIR    # to boot\nsatchel pin work          # in full\n```"
    );
    report.write("What an update takes is what was said", &text);
}

fn account(kind: Kind, report: &Report, table: &mut Table) {
    // One of its own: it publishes another version.
    let stage = Stage::new(kind, !report.selection.without_profile);
    let has_profile = stage.streams_bytes().is_some();
    let link = Link::start(stage.server.address(), Shape::default());
    let laptop = Client::new("accountant");
    laptop.login(&stage.server.access("accountant", "user").through(&link));
    drop(laptop.satchel(["create", "work", "--image", kind.name(), "--home", "1G", "--mode", "keep"]).ok());
    drop(laptop.satchel(["pin", "work"]).ok());
    // So that at first nothing is fetched but what a start reads.
    drop(laptop.satchel(["pin", "work", "--unpin"]).ok());
    let profile: &[&str] = if has_profile { &["--profile-from", "newest"] } else { &[] };
    let update = publish(&stage.publisher, &kind.next_disk(), kind.name(), profile)["summary"].clone();
    let mut row = |what: &str, said: u64, fetched: u64| {
        let percent = (fetched as f64 - said as f64) / fetched as f64 * 100.0;
        println!("{}, {what}: {said} said, {fetched} fetched, off by {percent:.1} %", kind.name());
        table.row([
            format!("{}, {what}", kind.title()),
            format!("{:.2} MB", said as f64 / 1e6),
            format!("{:.2} MB", fetched as f64 / 1e6),
            format!("**{:.1} %**", percent.abs()),
            format!("{GOAL_PERCENT} %"),
        ]);
    };
    let before = link.counts().down_bytes;
    let mount = laptop.mount("work");
    if has_profile {
        wait::until("what a start reads is here", PATIENCE, || {
            let profile = laptop.status("work")["profile"].clone();
            (profile["local_bytes"].as_u64()? == profile["stored_bytes"].as_u64()?).then_some(())
        });
        row("to boot", number(&update, "boot_bytes"), link.counts().down_bytes - before);
    }
    drop(laptop.satchel(["pin", "work"]).ok());
    row("in full", number(&update, "full_bytes"), link.counts().down_bytes - before);
    mount.unmount();
}
