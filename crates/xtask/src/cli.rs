//! The command line.

use crate::{check, peers, process, setup};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

/// The commands of this repository. Begin with `demo` or `test`: each sets up what it needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub struct Cli {
    /// The repository, if not the one this program was built in.
    #[arg(long, hide = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))]
    root: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the pinned libtorch into .libtorch/ (about 550 MB, once)
    ///
    /// A LIBTORCH or LIBTORCH_USE_PYTORCH of your own is verified and used instead.
    Setup {
        /// All of it, with the CUDA libraries (about 3 GB)
        #[arg(long)]
        cuda: bool,
    },
    /// The main job from end to end on generated Chinese text: pretrain, fine-tune, merge, generate
    Demo {
        /// Another world of numbers, sentences and initial weights
        #[arg(long)]
        seed: Option<u64>,
    },
    /// All tests, doctests included, against recorded fixtures
    Test,
    /// What continuous integration runs, cheapest first; stops at the first failure
    Check {
        /// Also the tests against live Python peers, and the demo
        #[arg(long)]
        full: bool,
    },
    /// The benchmarks
    Bench {
        /// Also time the Python peers on the same work
        #[arg(long)]
        peers: bool,
    },
    /// Make .peers/, the pinned Python environment that we compare ourselves with (about 2 GB)
    Peers,
}

impl Cli {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let root = &self
            .root
            .canonicalize()
            .with_context(|| format!("no repository at {}", self.root.display()))?;
        match self.command {
            Command::Setup { cuda } => setup::run(root, cuda),
            Command::Demo { seed } => demo(root, seed),
            Command::Test => {
                setup::run(root, false)?;
                process::run(&mut process::cargo(root, &["test", "--workspace"]))
            }
            Command::Check { full } => check::run(root, full),
            Command::Bench { peers } => bench(root, peers),
            Command::Peers => peers::ensure(root).map(|_| ()),
        }
    }
}

/// Runs the demo example; its results go to `demo/`.
pub fn demo(root: &Path, seed: Option<u64>) -> Result<()> {
    setup::run(root, false)?;
    // Not `--package`: the other examples would then be built with other features, all over again.
    let mut demo = process::cargo(root, &["run", "--release", "--example", "demo"]);
    demo.args(["--", "--out", "demo"]);
    if let Some(seed) = seed {
        demo.args(["--seed", &seed.to_string()]);
    }
    process::run(&mut demo)
}

fn bench(root: &Path, with_peers: bool) -> Result<()> {
    setup::run(root, false)?;
    // One after the other: a build of both would lend one the features of the other.
    for package in ["ferrotune-benches-quant", "ferrotune-benches"] {
        process::run(&mut process::cargo(root, &["bench", "--package", package]))?;
    }
    if !with_peers {
        return Ok(());
    }
    let python = peers::ensure_for_bench(root)?;
    for (package, program) in [
        ("ferrotune-benches-quant", "quant-peers"),
        ("ferrotune-benches", "peers"),
    ] {
        let mut compare = process::cargo(root, &["run", "--release", "--package", package]);
        compare
            .args(["--bin", program])
            .env(peers::VARIABLE, &python);
        process::run(&mut compare)?;
    }
    Ok(())
}
