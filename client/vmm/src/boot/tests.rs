//! Whole disks: made with `mke2fs`, and of bytes that mean nothing.

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::kernel::tests::fake;
use super::partitions::Guid;
use super::*;

const DEBIAN: &str = include_str!("grub/tests/debian.cfg");
const FEDORA: &str = include_str!("grub/tests/fedora.cfg");
const UUID: &str = "5c1f6d0e-7a6c-4a3b-9d2f-0f1e2d3c4b5a";

/// A file system of some files; those that begin with `->` are links. `None`, with a line that says so, when there is
/// nothing to make it with.
fn ext4(options: &[&str], files: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir(&root).unwrap();
    for (path, bytes) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match bytes.strip_prefix(b"->") {
            Some(target) => std::os::unix::fs::symlink(str::from_utf8(target).unwrap(), path).unwrap(),
            None => fs::write(path, bytes).unwrap(),
        }
    }
    let image = directory.path().join("image");
    let made = Command::new("mke2fs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-q", "-U", UUID, "-d"])
        .arg(&root)
        .args(options)
        .args([image.as_path(), Path::new("8M")])
        .output();
    match made {
        Ok(made) => assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr)),
        Err(error) => {
            eprintln!("SKIPPED: mke2fs cannot be run: {error}");
            return None;
        }
    }
    Some(fs::read(image).unwrap())
}

/// A disk with a GPT and these file systems.
fn gpt(parts: &[(Guid, &[u8])]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    let mut table = Vec::new();
    for (kind, bytes) in parts {
        let first = disk.len() as u64 / 512;
        disk.extend_from_slice(bytes);
        table.push((*kind, first, disk.len() as u64 / 512 - 1));
    }
    disk.resize(disk.len() + (1 << 20), 0);
    partitions::write_gpt(&mut disk, 512, &table);
    disk
}

fn find_in(disk: Vec<u8>) -> Result<BootPlan, BootError> {
    find(Arc::new(disk))
}

fn debian_files(kernel: &[u8]) -> Vec<(&'static str, &[u8])> {
    vec![
        ("/boot/grub/grub.cfg", DEBIAN.as_bytes()),
        ("/boot/vmlinuz-6.1.0-18-amd64", kernel),
        ("/boot/initrd.img-6.1.0-18-amd64", b"initrd"),
        ("/etc/fstab", b""),
    ]
}

#[test]
fn a_debian_disk_boots_what_its_grub_cfg_says() {
    let kernel = fake("6.1.0-18-amd64 (debian)");
    for options in [&["-t", "ext4"][..], &["-t", "ext2"], &["-t", "ext4", "-b", "1024", "-O", "^64bit"]] {
        let Some(root) = ext4(options, &debian_files(&kernel)) else { return };
        for (disk, partition) in [(gpt(&[(Guid::LINUX_ROOT_X86_64, &root)]), Some(1)), (root.clone(), None)] {
            let plan = find_in(disk).unwrap();
            assert_eq!(plan.kernel, kernel);
            assert_eq!(plan.initrd.unwrap(), b"initrd\0\0");
            assert_eq!(plan.command_line, format!("root=UUID={UUID} ro quiet"));
            assert_eq!(plan.origin.place.partition, partition);
            assert_eq!(plan.origin.config.as_deref(), Some("/boot/grub/grub.cfg"));
            assert_eq!(plan.origin.title.as_deref(), Some("Debian GNU/Linux"));
            assert_eq!(plan.origin.version, "6.1.0-18-amd64 (debian)");
            assert!(
                serde_json::to_string(&plan.origin)
                    .unwrap()
                    .contains("\"initrds\":[\"/boot/initrd.img-6.1.0")
            );
        }
    }
}

#[test]
fn a_fedora_disk_boots_its_newest_entry_from_a_boot_of_its_own() {
    let (old, new) = (fake("6.8.5"), fake("6.10.1"));
    let entry = |version: &str| {
        format!(
            "title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img \
             $tuned_initrd\noptions $kernelopts\n"
        )
    };
    let (entry_old, entry_new) = (entry("6.8.5"), entry("6.10.1"));
    let mut files: Vec<(&str, &[u8])> = vec![
        ("/grub2/grub.cfg", FEDORA.as_bytes()),
        ("/loader/entries/m-6.8.5.conf", entry_old.as_bytes()),
        ("/loader/entries/m-6.10.1.conf", entry_new.as_bytes()),
        ("/loader/entries/m-0-rescue.conf", b"title Rescue\nlinux /vmlinuz-0-rescue\n"),
        ("/vmlinuz-6.8.5", &old),
        ("/vmlinuz-6.10.1", &new),
        ("/initramfs-6.8.5.img", b"old!"),
        ("/initramfs-6.10.1.img", b"new!"),
    ];
    let Some(root) = ext4(&["-t", "ext4"], &[("/etc/fstab", b"")]) else { return };
    let boot = ext4(&["-t", "ext4"], &files).unwrap();
    let plan = find_in(gpt(&[(Guid::LINUX_ROOT_X86_64, &root), (Guid::XBOOTLDR, &boot)])).unwrap();
    assert_eq!(plan.initrd.unwrap(), b"new!");
    assert_eq!(plan.command_line, "root=UUID=77665544 ro rootflags=subvol=root");
    assert_eq!(plan.origin.place.partition, Some(2));
    assert_eq!(plan.origin.title.as_deref(), Some("Fedora (6.10.1)"));

    files.push((
        "/grub2/grubenv",
        b"# GRUB Environment Block\nsaved_entry=m-6.8.5\nkernelopts=root=LABEL=a ro\n###",
    ));
    let boot = ext4(&["-t", "ext4"], &files).unwrap();
    let plan = find_in(gpt(&[(Guid::XBOOTLDR, &boot)])).unwrap();
    assert_eq!(plan.kernel, old);
    assert_eq!(plan.command_line, "root=LABEL=a ro");
}

#[test]
fn without_a_configuration_the_newest_kernel_is_booted() {
    let (old, new) = (fake("6.1.9"), fake("6.1.10"));
    let files: [(&str, &[u8]); 4] = [
        ("/boot/vmlinuz-6.1.9", &old),
        ("/boot/real", &new),
        ("/boot/vmlinuz-6.1.10", b"->../boot/./real"),
        ("/boot/initramfs-6.1.10.img", b"->/boot/real"),
    ];
    let Some(root) = ext4(&["-t", "ext4"], &files) else { return };
    let plan = find_in(root.clone()).unwrap();
    assert_eq!((plan.kernel, plan.initrd), (new.clone(), Some(new)));
    assert_eq!(plan.command_line, format!("root=UUID={UUID} ro"));
    assert_eq!(plan.origin.config, None);

    // A kernel of which the root is elsewhere.
    let boot =
        ext4(&["-t", "ext4"], &[("/vmlinuz-6.1.9", &old), ("/vmlinuz-6.1.10", b"not a kernel")]).unwrap();
    let other = "11111111-2222-3333-4444-555555555555";
    let root = ext4(&["-t", "ext4", "-U", other], &[("/sbin/init", b"")]).unwrap();
    let plan = find_in(gpt(&[(Guid([9; 16]), &boot), (Guid([9; 16]), &root)])).unwrap();
    assert_eq!(plan.kernel, old);
    assert_eq!(plan.command_line, format!("root=UUID={other} ro"));
}

#[test]
fn a_first_choice_that_cannot_be_started_is_told_about() {
    let mut files = debian_files(b"nothing");
    let Some(disk) = ext4(&["-t", "ext4"], &files) else { return };
    let error = find_in(disk).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel that `Debian GNU/Linux` in /boot/grub/grub.cfg names cannot be started"
    );
    let source = error.source().unwrap();
    assert_eq!(source.to_string(), "/boot/vmlinuz-6.1.0-18-amd64 is not for this machine");
    assert_eq!(source.source().unwrap().to_string(), "it is no Linux kernel (bzImage)");
    assert!(error.hint().unwrap().contains("--engine qemu"));

    // An older kernel that can be started is, even if no configuration names it.
    let old = fake("6.1.0-17-amd64");
    files.push(("/boot/vmlinuz-6.1.0-17-amd64", &old));
    let plan = find_in(ext4(&["-t", "ext4"], &files).unwrap()).unwrap();
    assert_eq!(plan.kernel, old);
}

#[test]
fn links_without_an_end_and_files_without_a_limit_are_left() {
    let loops: [(&str, &[u8]); 4] = [
        ("/boot/vmlinuz-1", b"->vmlinuz-1"),
        ("/boot/vmlinuz-2", b"->../boot/vmlinuz-3"),
        ("/boot/vmlinuz-3", b"->/boot/vmlinuz-2"),
        ("/boot/loader/entries/a.conf", b"linux /boot/vmlinuz-1\noptions x"),
    ];
    let Some(disk) = ext4(&["-t", "ext4"], &loops) else { return };
    let error = find_in(disk).unwrap_err();
    assert_eq!(error.source().unwrap().source().unwrap().to_string(), "the way to it is too long");
    let line = format!("linux /boot/k\noptions {}", "x".repeat(2048));
    let long: [(&str, &[u8]); 1] = [("/boot/loader/entries/a.conf", line.as_bytes())];
    let error = find_in(ext4(&["-t", "ext4"], &long).unwrap()).unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), "its command line has 2048 bytes; Linux takes 2047");
}

#[test]
fn a_journal_that_claims_to_have_writes_does_not_keep_a_disk_from_booting() {
    let kernel = fake("6.1.0-18-amd64");
    let Some(mut root) = ext4(&["-t", "ext4", "-J", "size=1"], &debian_files(&kernel)) else { return };
    // `needs_recovery`, with a journal that is empty.
    root[1024 + 0x60] |= 4;
    assert_eq!(find_in(root.clone()).unwrap().kernel, kernel);
    // The journal's inode is none.
    root[1024 + 0xe0..1024 + 0xe4].fill(0xff);
    assert_eq!(find_in(root).unwrap().kernel, kernel);
}

/// A disk of which some bytes cannot be read.
struct Damaged {
    disk: Vec<u8>,
    bad: Range<u64>,
}

impl ReadDisk for Damaged {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset < self.bad.end && self.bad.start < offset + buf.len() as u64 {
            return Err(rustix::io::Errno::IO.into());
        }
        self.disk.read_at(buf, offset)
    }
}

#[test]
fn a_disk_that_cannot_be_read_does_not_boot_another_kernel() {
    let (kernel, old) = (fake("6.1.0-18-amd64"), fake("6.1.0-17-amd64"));
    let mut files = debian_files(&kernel);
    files.push(("/boot/vmlinuz-6.1.0-17-amd64", &old));
    let Some(mut root) = ext4(&["-t", "ext4", "-J", "size=1"], &files) else { return };
    // `needs_recovery`: the journal is read, too.
    root[1024 + 0x60] |= 4;
    let journal: &[u8] = b"\xc0\x3b\x39\x98";
    for lost in [&kernel[..2048], &DEBIAN.as_bytes()[..1024], b"initrd", journal] {
        let at = root.windows(lost.len()).position(|bytes| bytes == lost).unwrap() as u64;
        let disk = Damaged { disk: root.clone(), bad: at..at + 1 };
        let Err(BootError::Disk(error)) = find(Arc::new(disk)) else { panic!("byte {at} does not matter") };
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    }
    // What nobody asks for may be lost.
    let disk = Damaged { bad: root.len() as u64 - 1..root.len() as u64, disk: root };
    assert_eq!(find(Arc::new(disk)).unwrap().kernel, kernel);
}

#[test]
fn a_disk_without_linux_says_what_was_seen() {
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let mut fat = vec![0; 1 << 20];
    fat[82..87].copy_from_slice(b"FAT32");
    let error = find_in(gpt(&[(Guid::EFI_SYSTEM, &fat), (Guid::LINUX_ROOT_X86_64, &xfs)])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no Linux kernel was found: looked for Boot Loader Specification entries, grub.cfg and vmlinuz-* in partition 2 \
         (Linux root: XFS, which is not read), partition 1 (EFI system partition: FAT, which is not read); unified kernel \
         images (EFI/Linux/*.efi) are not read"
    );
    let error = find_in(vec![0; 4096]).unwrap_err();
    assert!(error.to_string().contains("in the whole disk (no known file system);"), "{error}");
    assert!(find_in(Vec::new()).unwrap_err().to_string().contains("in no partition at all;"));
}

#[test]
fn changed_bytes_of_a_disk_never_do_more_than_fail() {
    let kernel = fake("6.1.0-18-amd64");
    let mut files = debian_files(&kernel);
    let many: Vec<String> =
        (0..300).map(|number| format!("/boot/some-long-name-of-a-file-{number}")).collect();
    files.extend(many.iter().map(|name| (name.as_str(), &b"x"[..])));
    let Some(disk) = ext4(&["-t", "ext4", "-b", "1024", "-J", "size=1"], &files) else { return };
    // What is written, not the free space: a change there changes nothing.
    let used: Vec<usize> = (0..disk.len()).filter(|at| disk[*at] != 0).collect();
    let runner = &mut proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let change = (0..used.len(), any::<u8>());
    let changes = proptest::collection::vec(change, 1..20);
    runner
        .run(&changes, |changes| {
            let mut disk = disk.clone();
            for (at, byte) in changes {
                disk[used[at]] = byte;
            }
            if let Err(error) = find_in(disk) {
                prop_assert!(!error.to_string().chars().any(char::is_control));
            }
            Ok(())
        })
        .unwrap();
}
