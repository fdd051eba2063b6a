//! Other people's torture tests of disks.

use std::process::Command;

use satchel_tests::{Client, Mount, Publication, require};

fn mounted(seed: u64) -> (Publication, Client, Mount) {
    let published = Publication::new(seed, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    (published, laptop, mount)
}

/// Runs a program that must find nothing wrong.
fn finds_no_fault(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} found a fault:\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn fsx_finds_no_fault() {
    require!(fuse, tool("fsx"));
    let (_published, laptop, mount) = mounted(60);
    for (name, config) in [
        // Any byte: half of the operations change part of a block.
        ("bytes", "flen = 4194304\nblockmode = true\n[opsize]\nmax = 300000\n"),
        // Sectors: what a guest does.
        ("sectors", "blockmode = true\n[opsize]\nmax = 1048576\nalign = 512\n"),
    ] {
        let path = laptop.directory().join(format!("{name}.toml"));
        let weights = "[weights]\ntruncate = 0\nclose_open = 0\ninvalidate = 1\nread = 10\nwrite = 10\nmapread = 5\n\
                       mapwrite = 5\nfsync = 1\nfdatasync = 1\npunch_hole = 5\nsendfile = 1\nposix_fadvise = 1\n";
        std::fs::write(&path, format!("{config}{weights}")).unwrap();
        finds_no_fault(
            Command::new("fsx")
                .args(["-N", "3000", "-S", "60", "-P"])
                .arg(laptop.directory())
                .arg("-f")
                .arg(&path)
                .arg(mount.home()),
        );
    }
    mount.unmount();
}

#[test]
fn fio_reads_back_what_it_wrote() {
    require!(fuse, tool("fio"));
    let (_published, laptop, mount) = mounted(61);
    finds_no_fault(
        Command::new("fio")
            .current_dir(laptop.directory())
            .args(["--name=verify", "--rw=randrw", "--bsrange=512-128k", "--bs_unaligned=0", "--size=12M"])
            .args(["--ioengine=libaio", "--iodepth=16", "--direct=1", "--verify=crc32c", "--verify_fatal=1"])
            .args(["--fallocate=none", "--randseed=61", "--fsync=64", "--output-format=terse"])
            .arg(format!("--filename={}", mount.home().display())),
    );
    mount.unmount();
}

#[test]
fn a_file_system_made_on_a_disk_stays_whole_over_mounts_and_a_sync() {
    require!(fuse, tool("mkfs.ext4"), tool("debugfs"));
    let (published, laptop, mount) = mounted(62);
    finds_no_fault(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "discard"]).arg(mount.home()));
    let write = format!("write {} kept", published.disk.display());
    finds_no_fault(Command::new("debugfs").args(["-w", "-R", &write]).arg(mount.home()));
    let check = |mount: &Mount| {
        finds_no_fault(Command::new("e2fsck").args(["-f", "-n"]).arg(mount.home()));
        let kept = laptop.directory().join("kept");
        let dump = format!("dump kept {}", kept.display());
        finds_no_fault(Command::new("debugfs").args(["-R", &dump]).arg(mount.home()));
        satchel_tests::disk::assert_same(&published.disk, &kept);
    };
    check(&mount);
    mount.unmount();
    let mount = laptop.mount("work");
    check(&mount);
    mount.unmount();
    let _ = laptop.sync("work");
    let other = published.machine("other").mount("work");
    check(&other);
    other.unmount();
}
