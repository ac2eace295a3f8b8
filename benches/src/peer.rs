//! A process that does one piece of work for each line it reads: a Python peer, or our own side.
//!
//! Between two pieces it is blocked on its pipe and takes no core.

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What a process says when its model stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Parameters, adapters included.
    pub parameters: u64,
    /// Those that train.
    pub trainable: u64,
    /// Bytes resident before there was a model.
    pub idle_rss_bytes: u64,
    /// The most bytes resident until the model stood.
    pub load_peak_rss_bytes: u64,
}

/// What a piece of work took and gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// By the process's own clock.
    pub seconds: f64,
    /// Of all its threads together: what another program's load changes least.
    pub cpu_seconds: f64,
    /// Tokens trained on, or new ones.
    pub tokens: u64,
    /// The loss of a training step.
    #[serde(default)]
    pub loss: Option<f64>,
    /// The tokens of a continuation.
    #[serde(default)]
    pub ids: Vec<u32>,
    /// The most bytes resident since the model stood.
    pub peak_rss_bytes: u64,
}

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

    /// Has one piece of work done.
    ///
    /// # Errors
    /// A process that ended, or an answer of another form.
    pub fn ask<A: DeserializeOwned>(&mut self) -> Result<A> {
        let stdin = self.stdin.as_mut().context("the pipe is closed")?;
        stdin
            .write_all(b"\n")
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
