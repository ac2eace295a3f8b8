//! A process that does one piece of work for each line it reads: a Python peer, or our own side.
//!
//! Between two pieces it is blocked on its pipe and takes no core.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A process at the other end of two pipes.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts a process and waits for its first line.
    ///
    /// # Errors
    /// A program that does not start, or ends without saying that it is ready.
    pub fn start<R: DeserializeOwned>(
        name: &'static str,
        mut command: Command,
    ) -> Result<(Self, R)> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut process = Self {
            name,
            child,
            stdin,
            stdout: BufReader::new(stdout.context("a child without a standard output")?),
        };
        let ready = process.read()?;
        Ok((process, ready))
    }

    /// Has the one piece of work done that the process is for.
    ///
    /// # Errors
    /// A process that ended, or an answer of another form.
    pub fn ask<A: DeserializeOwned>(&mut self) -> Result<A> {
        self.send("\n")
    }

    /// Has a piece of work done that a process of several kinds of work is told of.
    ///
    /// # Errors
    /// A process that ended, or an answer of another form.
    pub fn ask_for<A: DeserializeOwned>(&mut self, work: &impl Serialize) -> Result<A> {
        self.send(&format!("{}\n", serde_json::to_string(work)?))
    }

    fn send<A: DeserializeOwned>(&mut self, line: &str) -> Result<A> {
        let stdin = self.stdin.as_mut().context("the pipe is closed")?;
        stdin
            .write_all(line.as_bytes())
            .and_then(|()| stdin.flush())
            .with_context(|| format!("{} has ended; its own message is above", self.name))?;
        self.read()
    }

    fn read<A: DeserializeOwned>(&mut self) -> Result<A> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("{} has ended; its own message is above", self.name);
        }
        serde_json::from_str(&line).with_context(|| format!("{} says {line:?}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // At the end of its input it ends by itself.
        self.stdin = None;
        let _ = self.child.wait();
    }
}

/// Runs a program to its end, its standard output thrown away.
///
/// # Errors
/// One that does not start or fails.
pub fn run(name: &str, mut command: Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {name}: {command:?}"))?;
    if !status.success() {
        bail!("{name} failed ({status}); its own message is above");
    }
    Ok(())
}
