//! Runs the commands that the documentation tells people to type.
//!
//! Every fenced block marked `sh` (each line a command) or `console` (`$ ` begins a command, the rest
//! is output) in the READMEs and `docs/*.md` runs in the repository root, one shell a block. A mark
//! after the language changes that:
//!
//! - `no-check "reason"`: not run;
//! - `after-demo`: run by `check --full` only, once the demo has left its results.
//!
//! Commands of `cargo xtask` itself are only parsed: `check` runs what they stand for.

use crate::cli::Cli;
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// When a block's commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In every check.
    Check,
    /// In a full check, after the demo.
    AfterDemo,
    /// Not by us.
    Never,
}

/// A fenced block of commands.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// `file:line` of its fence.
    pub place: String,
    /// When it runs.
    pub when: When,
    /// Its commands, continued lines joined by newlines.
    pub commands: Vec<String>,
}

/// Runs the blocks of all documentation at `root` that are meant for `when`; a block that says the
/// same as an earlier one runs once.
pub fn run(root: &Path, when: When) -> Result<()> {
    let mut blocks = translated(root)?;
    let docs = root.join("docs");
    let mut pages = fs::read_dir(&docs)
        .with_context(|| format!("cannot read {}", docs.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<String>>>()?;
    pages.sort();
    for page in pages.iter().filter(|page| page.ends_with(".md")) {
        blocks.extend(read(root, &format!("docs/{page}"))?);
    }

    let mut done: Vec<&[String]> = Vec::new();
    for block in blocks.iter().filter(|block| block.when == when) {
        if !done.contains(&&block.commands[..]) {
            done.push(&block.commands);
            run_block(root, block)?;
        }
    }
    Ok(())
}

/// The blocks of README.md, which README.zh-CN.md must repeat to the letter.
fn translated(root: &Path) -> Result<Vec<Block>> {
    let (english, chinese) = (read(root, "README.md")?, read(root, "README.zh-CN.md")?);
    for (one, other) in english.iter().zip(&chinese) {
        ensure!(
            (one.when, &one.commands) == (other.when, &other.commands),
            "{} and {} must hold the same commands",
            one.place,
            other.place
        );
    }
    ensure!(
        english.len() == chinese.len(),
        "README.md has {} blocks of commands, README.zh-CN.md has {}",
        english.len(),
        chinese.len()
    );
    Ok(english)
}

fn read(root: &Path, file: &str) -> Result<Vec<Block>> {
    let text =
        fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"))?;
    blocks(file, &text)
}

/// The blocks of commands in the Markdown `text` of `file`.
pub fn blocks(file: &str, text: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start();
        let ticks = line.len() - line.trim_start_matches('`').len();
        if ticks < 3 {
            continue;
        }
        let place = format!("{file}:{number}");
        let (fence, info) = line.split_at(ticks);
        let mut body = Vec::new();
        loop {
            let Some((line, _)) = lines.next() else {
                bail!("{place}: the fence is never closed");
            };
            let line = line.trim();
            if line.starts_with(fence) && line.trim_matches('`').is_empty() {
                break;
            }
            body.push(line);
        }
        let (language, mark) = info.trim().split_once(' ').unwrap_or((info.trim(), ""));
        let commands = match language {
            "sh" => join(body.into_iter().filter(|line| !line.starts_with('#'))),
            // A shell shows the continuation of a command after `> `.
            "console" => join(
                body.into_iter()
                    .filter_map(|line| line.strip_prefix("$ ").or_else(|| line.strip_prefix("> "))),
            ),
            "bash" | "shell" | "zsh" => {
                bail!("{place}: mark commands as sh or console, so that they are checked")
            }
            _ => continue,
        };
        let when = mark_of(mark.trim()).with_context(|| place.clone())?;
        found.push(Block {
            place,
            when,
            commands,
        });
    }
    Ok(found)
}

fn mark_of(mark: &str) -> Result<When> {
    match mark.split_once(' ').unwrap_or((mark, "")) {
        ("", "") => Ok(When::Check),
        ("after-demo", "") => Ok(When::AfterDemo),
        ("no-check", reason) if reason.len() > 2 && reason.starts_with('"') => Ok(When::Never),
        ("no-check", _) => bail!("no-check needs a reason in quotes"),
        _ => bail!("unknown mark `{mark}`: there are no-check \"reason\" and after-demo"),
    }
}

/// Lines to commands: a backslash at the end continues one.
fn join<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    for line in lines.filter(|line| !line.is_empty()) {
        match commands.last_mut() {
            Some(last) if last.ends_with('\\') => {
                last.push('\n');
                last.push_str(line);
            }
            _ => commands.push(line.to_owned()),
        }
    }
    commands
}

/// Runs a block in one shell, less its commands of `cargo xtask`.
fn run_block(root: &Path, block: &Block) -> Result<()> {
    let mut script = Vec::new();
    for command in &block.commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        if let ["cargo", "xtask", arguments @ ..] = &words[..] {
            let line = ["xtask"].iter().chain(arguments);
            Cli::try_parse_from(line)
                .with_context(|| format!("{}: no such command: {command}", block.place))?;
        } else {
            script.push(command.as_str());
        }
    }
    if script.is_empty() {
        return Ok(());
    }
    eprintln!("# {}\n$ {}", block.place, script.join("\n$ "));
    let status = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script.join("\n")])
        .current_dir(root)
        .stdin(Stdio::null())
        .status()
        .context("cannot start bash")?;
    ensure!(
        status.success(),
        "{}: its commands failed ({status})",
        block.place
    );
    Ok(())
}
