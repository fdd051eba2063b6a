//! What is installed: programs, completions, manual pages, the server's unit.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use satchel_tests::{Client, require};

/// The commands that the help of a program lists.
fn commands(help: &str) -> Vec<&str> {
    let lines =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names =
        lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").collect()
}

#[test]
fn every_shell_is_told_of_every_command() {
    let laptop = Client::new("laptop");
    let help = laptop.satchel(["--help"]).ok().stdout;
    let commands = commands(&help);
    assert!(commands.len() > 20 && commands.contains(&"run"), "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = laptop.satchel(["completions", shell]).ok();
        assert_eq!(script.stderr, "");
        let is_of_a_name = |c: char| c.is_ascii_lowercase() || c == '-';
        let words: BTreeSet<&str> = script.stdout.split(|c| !is_of_a_name(c)).collect();
        for command in &commands {
            assert!(words.contains(command), "{command} is not in:\n{}", script.stdout);
        }
    }
    let _ = laptop.satchel(["completions", "nosh"]).exited(2);
}

#[test]
fn bash_completes_commands_and_options() {
    let laptop = Client::new("laptop");
    let script = laptop.directory().join("completions");
    fs::write(&script, laptop.satchel(["completions", "bash"]).ok().stdout).unwrap();
    let completed = |words: &str| -> String {
        let ask = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _satchel satchel \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        said(Command::new("bash").args(["--norc", "-c", &ask]))
    };
    assert_eq!(completed("satchel ru"), "run\n");
    assert_eq!(completed("satchel run --eng"), "--engine\n");
    assert_eq!(completed("satchel profile rec"), "record\n");
}

#[test]
fn what_is_installed_works_from_there_and_can_be_taken_away() {
    require!(tool("make"));
    let laptop = Client::new("laptop");
    let built = PathBuf::from(laptop.command(["--version"]).get_program());
    let prefix = laptop.new_directory();
    let programs = format!("PROGRAMS={}", built.parent().unwrap().display());
    let make = |target: &str, more: &[&str]| {
        let mut command = Command::new("make");
        let path = std::env::var_os("PATH").unwrap_or_default();
        // What a `make` around this one was told is not for this one.
        command.env_clear().env("PATH", path).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        command
            .args([target, &programs, &format!("PREFIX={}", prefix.display())])
            .args(more)
            .output()
            .unwrap()
    };

    let refused = make("install", &["PROGRAMS=/nowhere"]);
    assert!(!refused.status.success(), "something else was installed");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("run make build first"), "{told}");

    succeeded("make install", make("install", &[]));
    let bin = prefix.join("bin");
    for name in ["satchel", "satchel-vmm", "satchel-server"] {
        let version = said(Command::new(bin.join(name)).arg("--version"));
        assert!(version.starts_with(name), "{version}");
    }
    for name in ["satchel", "satchel-server"] {
        let help = said(Command::new(bin.join(name)).arg("--help"));
        let pages = commands(&help).into_iter().map(|command| format!("{name}-{command}.1"));
        for page in pages.chain([format!("{name}.1")]) {
            let text = fs::read_to_string(prefix.join("share/man/man1").join(&page));
            assert!(text.is_ok_and(|text| text.contains(".TH")), "{page}");
        }
        for (directory, file) in [
            ("bash-completion/completions", name.to_owned()),
            ("zsh/site-functions", format!("_{name}")),
            ("fish/vendor_completions.d", format!("{name}.fish")),
        ] {
            let script = fs::read_to_string(prefix.join("share").join(directory).join(file)).unwrap();
            assert!(script.contains(name), "{script}");
        }
    }
    let unit = prefix.join("lib/systemd/system/satchel-server.service");
    let start = format!("ExecStart={}/satchel-server serve", bin.display());
    assert!(fs::read_to_string(&unit).unwrap().contains(&start));
    // It says what is wrong with any unit of this machine's, too.
    if let Ok(verified) = Command::new("systemd-analyze").args(["--man=no", "verify"]).arg(&unit).output() {
        let wrong = String::from_utf8_lossy(&verified.stderr).into_owned();
        assert!(!wrong.contains("satchel-server.service"), "{wrong}");
    }

    succeeded("make uninstall", make("uninstall", &[]));
    assert_eq!(files_below(&prefix), Vec::<PathBuf>::new());
}

/// The variables of the environment that some sources read, by the literals that name them.
fn variables_read(sources: &str) -> BTreeSet<String> {
    let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(sources);
    let sources = files_below(&sources).into_iter().filter(|path| {
        path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs")
    });
    let texts: Vec<String> =
        sources.map(|path| fs::read_to_string(path).expect("a source can be read")).collect();
    let mut variables = BTreeSet::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        let pieces: Vec<&str> = line.split('"').collect();
        for [before, piece] in pieces.array_windows() {
            let is_name = piece.len() > 1 && piece.chars().all(|c| matches!(c, 'A'..='Z' | '0'..='9' | '_'));
            let is_ours = ["SATCHEL_", "AWS_", "XDG_"].iter().any(|prefix| piece.starts_with(prefix));
            let is_read =
                ["var(", "var_os(", "from_env(", "env = "].iter().any(|call| before.ends_with(call));
            if is_name && (is_ours || is_read) {
                variables.insert((*piece).to_owned());
            }
        }
    }
    variables
}

#[test]
fn manual_pages_name_all_that_is_read_of_the_environment() {
    let laptop = Client::new("laptop");
    let client = PathBuf::from(laptop.command(["--version"]).get_program());
    let server = client.with_file_name("satchel-server");
    for (program, sources, least) in
        [(client, ["client/src", "client/vmm/src"].as_slice(), 5), (server, &["image-server/src"], 12)]
    {
        let pages = laptop.new_directory();
        said(Command::new(&program).arg("man").arg(&pages));
        let page = pages.join(program.file_name().unwrap()).with_extension("1");
        let page = fs::read_to_string(page).unwrap();
        let (_, section) = page.split_once(".SH ENVIRONMENT").expect("there is a section");
        let mut read: BTreeSet<String> = sources.iter().flat_map(|of| variables_read(of)).collect();
        // It is of the tests beside the sources.
        read.remove("SATCHEL_MODEL_CASES");
        assert!(read.len() >= least, "{read:?}");
        for variable in read {
            assert!(section.contains(&variable), "{variable} is not in:\n{section}");
        }
    }
}

/// What a command that succeeds says.
#[track_caller]
fn said(command: &mut Command) -> String {
    let name = format!("{command:?}");
    succeeded(&name, command.output().expect("it can be started"))
}

#[track_caller]
fn succeeded(name: &str, output: Output) -> String {
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it says text")
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("the directory can be read") {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
