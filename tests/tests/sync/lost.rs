//! A server that has lost packs: what is published and synced again brings them back, for every version that needs them.

use std::path::PathBuf;

use satchel_tests::{Publication, Rng, require};

use super::story::{Disks, sync};

/// The server's packs of a namespace, deleted.
fn lose_packs(published: &Publication, namespace: &str) -> usize {
    let packs = published.server.objects(&format!("{namespace}/packs"));
    let packs: Vec<PathBuf> = std::fs::read_dir(packs)
        .expect("there are packs")
        .map(|pack| pack.expect("a directory can be read").path())
        .collect();
    packs.iter().for_each(|pack| std::fs::remove_file(pack).expect("a pack can be deleted"));
    packs.len()
}

#[test]
fn what_a_server_has_lost_comes_back_when_it_is_published_and_synced_again() {
    require!(fuse);
    let published = Publication::new(93, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 20, &mut Rng::new(93));
    mount.unmount();
    sync(&laptop);
    assert!(lose_packs(&published, "image/golden") > 0);
    assert!(lose_packs(&published, "user/alice") > 0);

    // Before it is looked for, nobody knows; then it is said what is lost, and who is to send it.
    let disk = published.disk.to_str().expect("a path in a temporary directory is text");
    let publish =
        || published.publisher.satchel(["--json", "publish", disk, "--image", "golden"]).ok().json();
    assert_eq!(publish()["sent_bytes"], 0);
    let lost = published.server.run(&["repair"], &[]).exited(1).stdout;
    for said in
        ["noted as lost: ", "image golden version 1", "desktop alice/work version 2", "To do: publish"]
    {
        assert!(lost.contains(said), "no `{said}`: {lost}");
    }

    // The same disk once more, which is no other version.
    let again = publish();
    assert!(again["sent_bytes"].as_u64().unwrap() > 0 && again["unchanged"] == true, "{again}");
    // And what the desktop's machine has written, with nothing to commit.
    let synced = laptop.satchel(["--json", "sync", "work"]).ok().json();
    assert!(synced["version"].is_null() && synced["lost"]["sent"].as_u64().unwrap() > 0, "{synced}");
    assert_eq!(synced["lost"]["left"], 0, "{synced}");
    let repaired = published.server.run(&["repair"], &[]).ok().stdout;
    assert!(repaired.contains("nothing that is needed is lost"), "{repaired}");
    published.server.verify();
    disks.assert_on_another_machine(&published);

    // What was lost is garbage now.
    for _ in 0..2 {
        let _ = published.server.run(&["gc"], &["--grace", "0"]).ok();
    }
    published.server.verify();
    disks.assert_on_another_machine(&published);
}
