use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const DEBIAN: &str = include_str!("tests/debian.cfg");
const UBUNTU: &str = include_str!("tests/ubuntu.cfg");
const FEDORA: &str = include_str!("tests/fedora.cfg");

/// Files in memory.
#[derive(Default)]
struct Map(BTreeMap<&'static str, String>);

impl Files for Map {
    fn file_bytes(&self, path: &str) -> Option<u64> {
        self.0.get(path).map(|text| text.len() as u64)
    }

    fn exists(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    fn read(&self, path: &str, _: u64) -> Option<Vec<u8>> {
        self.0.get(path).map(|text| text.clone().into_bytes())
    }
}

fn with(path: &'static str, text: &str) -> Map {
    Map(BTreeMap::from([(path, text.to_owned())]))
}

fn env(variables: &str) -> String {
    format!("# GRUB Environment Block\n{variables}####")
}

fn choose_in(script: &str, files: &Map) -> Result<Choice, GrubError> {
    choose(script, "/boot/grub", files)
}

#[test]
fn the_grub_cfg_of_debian_boots_its_first_entry() {
    let choice = choose_in(DEBIAN, &Map::default()).unwrap();
    assert_eq!(choice.title, "Debian GNU/Linux");
    assert_eq!(choice.kernel, "/boot/vmlinuz-6.1.0-18-amd64");
    assert_eq!(choice.initrds, ["/boot/initrd.img-6.1.0-18-amd64"]);
    assert_eq!(choice.command_line, "root=UUID=5c1f6d0e-7a6c-4a3b-9d2f-0f1e2d3c4b5a ro quiet");
}

#[test]
fn a_default_leads_into_submenus_by_number_title_or_id() {
    for default in [
        "1>1",
        "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-17-amd64",
        "gnulinux-advanced-5c1f6d0e-7a6c-4a3b-9d2f-0f1e2d3c4b5a>\
         gnulinux-6.1.0-17-amd64-advanced-5c1f6d0e-7a6c-4a3b-9d2f-0f1e2d3c4b5a",
    ] {
        let script = DEBIAN.replace(r#"default="0""#, &format!("default='{default}'"));
        let choice = choose_in(&script, &Map::default()).unwrap();
        assert_eq!(choice.kernel, "/boot/vmlinuz-6.1.0-17-amd64", "{default}");
        assert_eq!(
            choice.title,
            "Advanced options for Debian GNU/Linux > Debian GNU/Linux, with Linux 6.1.0-17-amd64"
        );
    }
    for default in ["17", "no such entry", ""] {
        let script = DEBIAN.replace(r#"default="0""#, &format!("default='{default}'"));
        assert_eq!(choose_in(&script, &Map::default()).unwrap().title, "Debian GNU/Linux", "{default}");
    }
}

#[test]
fn a_cloud_image_of_ubuntu_boots_with_its_initrd() {
    let files = with("/boot/grub/grubenv", &env("recordfail=1\ninitrdfail=2\n"));
    for files in [files, Map::default()] {
        let choice = choose_in(UBUNTU, &files).unwrap();
        assert_eq!(choice.title, "Ubuntu");
        assert_eq!(choice.initrds, ["/initrd.img-6.8.0-31-generic"]);
        assert_eq!(choice.command_line, "root=PARTUUID=aaaa-01 ro console=tty1 console=ttyS0");
    }
}

#[test]
fn a_saved_entry_is_taken_and_one_for_the_next_start_is_not() {
    let saved =
        "saved_entry=gnulinux-advanced-9b8a7c6d>gnulinux-6.8.0-31-generic-recovery-9b8a7c6d\nnext_entry=0\n";
    let choice = choose_in(UBUNTU, &with("/boot/grub/grubenv", &env(saved))).unwrap();
    assert!(choice.title.ends_with("(recovery mode)"), "{}", choice.title);
    assert!(choice.command_line.contains("nomodeset"));
}

#[test]
fn the_grub_cfg_of_fedora_has_variables_and_no_entry() {
    assert_eq!(choose(FEDORA, "/grub2", &Map::default()), Err(GrubError::NoEntry));
    let found = variables(FEDORA, "/grub2", &Map::default()).unwrap();
    assert_eq!(found["kernelopts"], "root=UUID=77665544 ro rootflags=subvol=root ");
    let files =
        with("/grub2/grubenv", &env("saved_entry=abc-6.8.5\nkernelopts=root=UUID=1 ro\nboot_success=1\n"));
    let found = variables(FEDORA, "/grub2", &files).unwrap();
    assert_eq!((found["kernelopts"].as_str(), found["default"].as_str()), ("root=UUID=1 ro", "abc-6.8.5"));
    let files = with("/grub2/grubenv", &env("saved_entry=abc-6.8.5\nboot_counter=0\nboot_success=0\n"));
    assert_eq!(variables(FEDORA, "/grub2", &files).unwrap()["default"], "1");
}

#[test]
fn entries_of_a_sourced_script_count() {
    let custom = "set default=custom\nmenuentry 'Mine' --id=custom { linux ($root)/k a=\"b c\" 'd\"e' \n initrd (hd0,gpt1)/i /j }";
    let choice = choose_in(DEBIAN, &with("/boot/grub/custom.cfg", custom)).unwrap();
    assert_eq!((choice.title.as_str(), choice.kernel.as_str()), ("Mine", "/k"));
    assert_eq!(choice.initrds, ["/i", "/j"]);
    assert_eq!(choice.command_line, r#""a=b c" d\"e"#);
    let files = with("/boot/grub/custom.cfg", "source ${config_directory}/custom.cfg");
    assert!(matches!(choose_in(DEBIAN, &files), Err(GrubError::TooMuch { .. })));
}

#[test]
fn an_entry_that_boots_something_else_is_an_error() {
    let windows = "menuentry 'Windows' { chainloader +1 }";
    assert_eq!(choose_in(windows, &Map::default()), Err(GrubError::NoKernel("Windows".to_owned())));
}

#[test]
fn tests_are_evaluated_as_grub_does() {
    let holds = |test: &str| {
        let script = format!(
            "a=x\nif {test}; then set default=1; fi\nmenuentry n {{ linux /n }}\nmenuentry y {{ linux /y }}"
        );
        choose_in(&script, &with("/f", "text")).unwrap().kernel == "/y"
    };
    for test in [
        "[ $a = x ]",
        "[ x$b = x ]",
        "[ \"$a\" ]",
        "test -n $a",
        "[ -z \"$b\" ]",
        "[ -s /f ]",
        "[ -f (hd0)/f ]",
        "[ ! -f /g ]",
        "[ $a = y -o $a = x ]",
        "[ 3 -lt 20 ]",
        "! false",
        "true",
    ] {
        assert!(holds(test), "{test}");
    }
    for test in
        ["[ $a != x ]", "[ \"$b\" ]", "[ -s /g ]", "[ $a = x -a $a = y ]", "hwmatch x", "[ $a = x", "[ ]"]
    {
        assert!(!holds(test), "{test}");
    }
}

#[test]
fn values_cannot_grow_without_a_limit() {
    let script = format!("a=xxxxxxxxxxxxxxxx\n{}", "a=$a$a$a$a\n".repeat(100));
    assert!(matches!(choose_in(&script, &Map::default()), Err(GrubError::TooMuch { .. })));
    let script = "menuentry a { linux b }\n".repeat(1000);
    assert!(matches!(choose_in(&script, &Map::default()), Err(GrubError::TooMuch { what: "entries", .. })));
}

proptest! {
    #[test]
    fn any_script_is_read_without_a_panic(
        pieces in proptest::collection::vec(
            prop_oneof![
                Just("if "), Just("; then "), Just("; fi\n"), Just("else "), Just("menuentry a "), Just("submenu b "),
                Just("{ "), Just("} "), Just("linux /k "), Just("initrd "), Just("'"), Just("\""), Just("\\"),
                Just("$a"), Just("${"), Just("}"), Just("set a="), Just("[ "), Just("] "), Just("\n"), Just("function "),
                Just("source /s "), Just("for x in y; do "), Just("done "), Just("é"), Just("# "), Just("! "),
            ],
            0..60,
        )
    ) {
        let script = pieces.concat();
        let _ = choose_in(&script, &with("/s", &script));
    }
}
