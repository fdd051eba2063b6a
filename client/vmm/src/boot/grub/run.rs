//! Runs a script: sets its variables, collects its menu, and then the commands of the entry that is booted.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::script::{Block, Statement};
use super::words::{Piece, Word};
use super::{Files, GrubError, MAX_BYTES, env, without_device};

/// Entries of all menus.
const MAX_ENTRIES: usize = 256;
/// Commands of all that is run.
const MAX_COMMANDS: usize = 20_000;
/// Words that a command has once its variables are put in.
const MAX_WORDS: usize = 1024;
/// Bytes of a word, and of a command's words, once their variables are put in.
const MAX_WORD_BYTES: usize = 16 << 10;
/// Variables at a time.
const MAX_VARIABLES: usize = 1024;
/// Scripts that call each other, and menus in menus.
const MAX_DEPTH: usize = 4;

/// What GRUB would boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Titles of the entry and of the menus it is in, joined with ` > `.
    pub title: String,
    /// The kernel's path, without its device.
    pub kernel: String,
    /// Paths of the initrds, without their devices.
    pub initrds: Vec<String>,
    /// What the kernel is told.
    pub command_line: String,
}

/// An entry of a menu.
struct Entry {
    title: String,
    id: Option<String>,
    is_submenu: bool,
    body: Block,
}

/// What commands have set so far.
pub(super) struct Machine<'a> {
    files: &'a dyn Files,
    variables: BTreeMap<String, String>,
    menu: Vec<Entry>,
    kernel: Option<(String, String)>,
    initrds: Vec<String>,
    entries_left: usize,
    commands_left: usize,
    depth: usize,
}

impl<'a> Machine<'a> {
    /// A machine that has read nothing yet; its script lies in a directory.
    pub(super) fn new(directory: &str, files: &'a dyn Files) -> Machine<'a> {
        // What GRUB on a PC has set when it reads its configuration. Of the features, the names alone matter.
        let mut variables: BTreeMap<String, String> = [
            ("prefix", directory),
            ("config_directory", directory),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
            ("root", "hd0"),
            // Ubuntu's cloud images first try without an initrd, and count on GRUB to remember that this has failed.
            // Nothing is written here, so they are told that it has.
            ("initrdfail", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        for feature in [
            "200_final",
            "all_video_module",
            "chainloader_bpb",
            "default_font_path",
            "menuentry_id",
            "menuentry_options",
            "nativedisk_cmd",
            "ntldr",
            "platform_search_hint",
            "timeout_style",
        ] {
            variables.insert(format!("feature_{feature}"), "y".to_owned());
        }
        Machine {
            files,
            variables,
            menu: Vec::new(),
            kernel: None,
            initrds: Vec::new(),
            entries_left: MAX_ENTRIES,
            commands_left: MAX_COMMANDS,
            depth: 0,
        }
    }

    pub(super) fn into_variables(self) -> BTreeMap<String, String> {
        self.variables
    }

    /// Runs commands; whether the last one succeeded.
    pub(super) fn run(&mut self, block: &Block) -> Result<bool, GrubError> {
        let mut is_success = true;
        for statement in block.iter() {
            self.commands_left = self
                .commands_left
                .checked_sub(1)
                .ok_or(GrubError::TooMuch { what: "commands", limit: MAX_COMMANDS })?;
            match statement {
                Statement::Command(words) => {
                    let words = self.expand(words)?;
                    is_success = self.command(&words)?;
                }
                Statement::If { branches, otherwise } => {
                    let mut taken = otherwise;
                    for (condition, then) in branches {
                        if self.run(condition)? {
                            taken = then;
                            break;
                        }
                    }
                    is_success = self.run(&Rc::clone(taken))?;
                }
                Statement::Entry { is_submenu, words, body } => self.define(*is_submenu, words, body)?,
            }
        }
        Ok(is_success)
    }

    /// The entry that `default` names, after its commands have run.
    pub(super) fn choose(mut self) -> Result<Choice, GrubError> {
        let mut path = self.variables.get("default").cloned().unwrap_or_default();
        let mut titles: Vec<String> = Vec::new();
        for _ in 0..=MAX_DEPTH {
            let (name, rest) = split_path(&path);
            let menu = std::mem::take(&mut self.menu);
            let entry = pick(&menu, &name).ok_or(GrubError::NoEntry)?;
            titles.push(entry.title.clone());
            let title = titles.join(" > ");
            self.variables.insert("chosen".to_owned(), title.clone());
            self.run(&entry.body)?;
            if entry.is_submenu {
                path = rest;
                continue;
            }
            let Some((kernel, command_line)) = self.kernel else { return Err(GrubError::NoKernel(title)) };
            return Ok(Choice { title, kernel, initrds: self.initrds, command_line });
        }
        Err(GrubError::TooMuch { what: "nested menus", limit: MAX_DEPTH })
    }

    fn define(&mut self, is_submenu: bool, words: &[Word], body: &Block) -> Result<(), GrubError> {
        self.entries_left = self
            .entries_left
            .checked_sub(1)
            .ok_or(GrubError::TooMuch { what: "entries", limit: MAX_ENTRIES })?;
        let words = self.expand(words)?;
        let mut words = words.into_iter().skip(1);
        let mut entry = Entry { title: String::new(), id: None, is_submenu, body: Rc::clone(body) };
        let mut has_title = false;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => entry.id = words.next(),
                "--class" | "--users" | "--hotkey" | "--source" => _ = words.next(),
                option if option.starts_with("--") => {
                    if let Some(id) = option.strip_prefix("--id=") {
                        entry.id = Some(id.to_owned());
                    }
                }
                _ if !has_title => {
                    entry.title = word;
                    has_title = true;
                }
                _ => {}
            }
        }
        self.menu.push(entry);
        Ok(())
    }

    /// Runs one command; whether it succeeded. What is not known here fails, and does nothing.
    fn command(&mut self, words: &[String]) -> Result<bool, GrubError> {
        let Some((name, args)) = words.split_first() else { return Ok(true) };
        let is_success = match name.as_str() {
            "[" => match args {
                [args @ .., end] if end == "]" => self.test(args),
                _ => false,
            },
            "test" => self.test(args),
            "!" => !self.command(args)?,
            "true" | "export" | "insmod" | "save_env" | "echo" => true,
            "set" => {
                for arg in args {
                    if let Some((name, value)) = arg.split_once('=') {
                        self.set(name, value)?;
                    }
                }
                true
            }
            "unset" => {
                for arg in args {
                    self.variables.remove(arg);
                }
                true
            }
            "load_env" => self.load_env(args)?,
            "source" | "." | "configfile" => self.source(args)?,
            "linux" | "linux16" | "linuxefi" => {
                self.kernel =
                    args.split_first().map(|(path, args)| (without_device(path).to_owned(), join(args)));
                self.initrds.clear();
                true
            }
            "initrd" | "initrd16" | "initrdefi" => {
                self.initrds = args.iter().map(|path| without_device(path).to_owned()).collect();
                true
            }
            _ => match name.split_once('=') {
                Some((name, value)) if is_name(name) => {
                    self.set(name, value)?;
                    true
                }
                _ => false,
            },
        };
        Ok(is_success)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), GrubError> {
        if self.variables.len() >= MAX_VARIABLES && !self.variables.contains_key(name) {
            return Err(GrubError::TooMuch { what: "variables", limit: MAX_VARIABLES });
        }
        self.variables.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// `load_env [-f FILE] [NAME...]`
    fn load_env(&mut self, args: &[String]) -> Result<bool, GrubError> {
        let mut path = format!("{}/grubenv", self.variables.get("prefix").map_or("", String::as_str));
        let mut wanted = Vec::new();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "-f" | "--file" => path = args.next().cloned().unwrap_or_default(),
                option if option.starts_with('-') => {}
                name => wanted.push(name),
            }
        }
        let Some(block) = self.files.read(without_device(&path), env::MAX_BYTES) else { return Ok(false) };
        for (name, value) in env::parse(&block) {
            // `next_entry` holds for one start, and GRUB takes it out as it reads it. Nothing is written here: it would
            // hold for ever. The same goes for what is remembered about failed starts.
            let is_lasting =
                !matches!(name.as_str(), "next_entry" | "prev_entry" | "initrdfail" | "recordfail");
            if is_lasting && (wanted.is_empty() || wanted.contains(&name.as_str())) {
                self.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    fn source(&mut self, args: &[String]) -> Result<bool, GrubError> {
        let Some(path) = args.first() else { return Ok(false) };
        let Some(script) = self.files.read(without_device(path), MAX_BYTES) else { return Ok(false) };
        if self.depth == MAX_DEPTH {
            return Err(GrubError::TooMuch { what: "scripts that call each other", limit: MAX_DEPTH });
        }
        let block = super::script::parse(&String::from_utf8_lossy(&script))?;
        self.depth += 1;
        let is_success = self.run(&block);
        self.depth -= 1;
        is_success
    }

    /// The words of a test; `-o` parts alternatives, `-a` parts what must all hold.
    fn test(&self, args: &[String]) -> bool {
        args.split(|arg| arg == "-o").any(|all| all.split(|arg| arg == "-a").all(|one| self.test_one(one)))
    }

    fn test_one(&self, args: &[String]) -> bool {
        let mut is_meant = true;
        let mut args = args;
        while let [not, rest @ ..] = args
            && not == "!"
            && !rest.is_empty()
        {
            is_meant = !is_meant;
            args = rest;
        }
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let numbers = |a: &str, b: &str| Some((a.parse::<i64>().ok()?, b.parse::<i64>().ok()?));
        let holds = match words.as_slice() {
            ["-n", value] | [value] => !value.is_empty(),
            ["-z", value] => value.is_empty(),
            ["-f", path] => self.files.file_bytes(without_device(path)).is_some(),
            ["-s", path] => self.files.file_bytes(without_device(path)).is_some_and(|bytes| bytes > 0),
            ["-e" | "-d", path] => self.files.exists(without_device(path)),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "-eq", b] => numbers(a, b).is_some_and(|(a, b)| a == b),
            [a, "-ne", b] => numbers(a, b).is_some_and(|(a, b)| a != b),
            [a, "-lt", b] => numbers(a, b).is_some_and(|(a, b)| a < b),
            [a, "-le", b] => numbers(a, b).is_some_and(|(a, b)| a <= b),
            [a, "-gt", b] => numbers(a, b).is_some_and(|(a, b)| a > b),
            [a, "-ge", b] => numbers(a, b).is_some_and(|(a, b)| a >= b),
            _ => false,
        };
        holds == is_meant
    }

    /// Puts in variables: their values are text, and part words where they stand outside of quotes.
    fn expand(&self, words: &[Word]) -> Result<Vec<String>, GrubError> {
        let mut expanded: Vec<String> = Vec::new();
        let mut bytes = 0_usize;
        for word in words {
            let mut current: Option<String> = None;
            for piece in word {
                let (value, is_quoted) = match piece {
                    Piece::Text(text) => (text.as_str(), true),
                    Piece::Variable { name, is_quoted } => {
                        (self.variables.get(name).map_or("", String::as_str), *is_quoted)
                    }
                };
                bytes = bytes.saturating_add(value.len());
                if bytes > MAX_WORD_BYTES {
                    return Err(GrubError::TooMuch { what: "bytes in a command", limit: MAX_WORD_BYTES });
                }
                if is_quoted {
                    current.get_or_insert_default().push_str(value);
                    continue;
                }
                for (at, part) in value.split([' ', '\t', '\n']).enumerate() {
                    if at > 0 {
                        expanded.extend(current.take());
                    }
                    if !part.is_empty() {
                        current.get_or_insert_default().push_str(part);
                    }
                }
            }
            expanded.extend(current);
            if expanded.len() > MAX_WORDS {
                return Err(GrubError::TooMuch { what: "words of a command", limit: MAX_WORDS });
            }
        }
        Ok(expanded)
    }
}

/// The first step of `default`, and the steps after it: `>` parts them, `>>` stands for one of a title.
fn split_path(path: &str) -> (String, String) {
    let mut name = String::new();
    let mut rest = path.chars();
    while let Some(c) = rest.next() {
        if c == '>' {
            if !rest.as_str().starts_with('>') {
                break;
            }
            rest.next();
        }
        name.push(c);
    }
    (name, rest.as_str().to_owned())
}

/// The entry of a number, an id or a title; the first one when there is none, as GRUB does.
fn pick<'a>(menu: &'a [Entry], name: &str) -> Option<&'a Entry> {
    let by_number = name.trim().parse::<usize>().ok().and_then(|number| menu.get(number));
    by_number
        .or_else(|| menu.iter().find(|entry| entry.id.as_deref() == Some(name) || entry.title == name))
        .or_else(|| menu.first())
}

/// Words as one command line, quoted as GRUB does it for Linux.
fn join(words: &[String]) -> String {
    let mut line = String::new();
    for (at, word) in words.iter().enumerate() {
        if at > 0 {
            line.push(' ');
        }
        let quote = if word.contains(' ') { "\"" } else { "" };
        line.push_str(quote);
        for c in word.chars() {
            if matches!(c, '\\' | '\'' | '"') {
                line.push('\\');
            }
            line.push(c);
        }
        line.push_str(quote);
    }
    line
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
