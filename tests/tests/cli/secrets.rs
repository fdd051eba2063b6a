//! The token is for the server alone.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use satchel_tests::{Access, Publication, require};

use super::IMAGE_BYTES;

/// The files below a directory that hold some text.
fn holders(directory: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory can be read") {
        let path = entry.expect("a directory can be read").path();
        if path.is_dir() {
            found.extend(holders(&path, text));
        } else if path.is_file() && !path.ends_with("cache.data") {
            let bytes = std::fs::read(&path).expect("a file can be read");
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[test]
fn the_token_is_in_no_output_and_in_one_file() {
    require!(fuse);
    let mut published = Publication::new(80, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let access = published.access();
    let mut said = String::new();
    let mut run = |arguments: &[&str]| {
        let mut command = laptop.command(["-vv"].iter().chain(arguments));
        let output =
            command.env("SATCHEL_LOG", "trace").stdin(Stdio::null()).output().expect("satchel can be run");
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        output.status.code()
    };
    let Access { url, token, fingerprint } = &access;
    assert_eq!(run(&["login", url, "--token", token, "--fingerprint", fingerprint]), Some(0));
    assert_eq!(run(&["images"]), Some(0));
    assert_eq!(run(&["create", "work", "--image", "golden", "--home", "16M"]), Some(0));
    assert_eq!(run(&["history", "nothing"]), Some(1));
    assert_eq!(run(&["publish", "/etc/passwd", "--image", "golden"]), Some(1));
    assert_eq!(run(&["sync", "work"]), Some(0));
    let mut mounting = laptop.command(["-vv", "mount", "work"]);
    let directory = laptop.new_directory();
    mounting.arg(&directory).env("SATCHEL_LOG", "trace");
    let process = satchel_tests::Process::start("satchel", &mut mounting);
    let mut mount = laptop.mounted("work", &directory, process);
    published.content.assert_in(&mount.system());
    assert_eq!(run(&["status", "work"]), Some(0));
    let mounted = mount.process().stderr();
    mount.unmount();
    // What a server that misbehaves is told, and says.
    published.server.stop();
    assert_eq!(run(&["images"]), Some(1));
    published.server.start_again();

    assert!(said.contains("TRACE") && mounted.contains("TRACE"), "the log was to say all it can");
    assert!(!said.contains(token.as_str()), "the token is in what a command said");
    assert!(!mounted.contains(token.as_str()), "the token is in what the mount said");
    let served = published.server.process().stderr();
    assert!(!served.contains(token.as_str()), "the token is in the server's log");
    assert_eq!(holders(&laptop.state(), token), [laptop.state().join("token").display().to_string()]);
    assert_eq!(holders(&published.server.store(), token), [""; 0], "the server keeps the token");
}

#[test]
fn the_token_comes_from_a_pipe_or_the_environment_as_well() {
    let published = Publication::new(81, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let Access { url, token, fingerprint } = published.access();
    let mut command = laptop.command(["login", &url, "--token", "-", "--fingerprint", &fingerprint]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("satchel can be run");
    writeln!(child.stdin.take().expect("a pipe"), "{token}").expect("it reads");
    assert!(child.wait().expect("a child").success());
    let _ = laptop.satchel(["images"]).ok();

    let mut command = laptop.command(["login", &url, "--fingerprint", &fingerprint]);
    let status =
        command.env("SATCHEL_TOKEN", &token).stdout(Stdio::null()).status().expect("satchel can be run");
    assert!(status.success());
    let mut help = laptop.command(["login", "--help"]);
    let help = help.env("SATCHEL_TOKEN", &token).output().expect("satchel can be run");
    assert!(!String::from_utf8_lossy(&help.stdout).contains(&token), "the help shows the token");
}
