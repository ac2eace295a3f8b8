//! A Python process that multiplies with somebody else's library: `peers/bench_quant.py`.

use crate::context::Context;
use anyhow::Result;
use ferrotune_benches_common::peer::Process;
use ferrotune_benches_quant::rounds::Side;
use ferrotune_benches_quant::threads::OPENMP;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::{env, fs};
use tempfile::TempDir;

const PYTHON: &str = "FERROTUNE_PEERS";

pub struct Worker {
    process: RefCell<Process>,
    folder: TempDir,
    /// The library, and what is to be said of it.
    pub name: String,
}

#[derive(Deserialize)]
struct Ready {
    name: Option<String>,
    #[serde(default)]
    missing: String,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Request<'a> {
    Load {
        #[serde(flatten)]
        operands: Operands,
        weights: &'a Path,
        x: &'a Path,
    },
    Save {
        variant: &'a str,
        out: &'a Path,
    },
    Time {
        variant: &'a str,
        times: usize,
    },
}

/// Weights `[rows, cols]`, so many times what is in the file, and activations `[batch, cols]`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Operands {
    pub rows: usize,
    pub cols: usize,
    pub batch: usize,
    pub kind: &'static str,
    pub repeat: usize,
}

#[derive(Deserialize)]
struct Loaded {
    variants: Vec<String>,
}

#[derive(Deserialize)]
struct Saved {}

#[derive(Deserialize)]
struct Timed {
    seconds: f64,
}

impl Worker {
    /// Starts one, with a variable more in its environment; says why if there is none.
    pub fn start(
        context: &Context,
        library: &'static str,
        variable: Option<(&str, &str)>,
    ) -> Result<Option<Self>> {
        let Some(python) = env::var_os(PYTHON) else {
            println!("{library}: {PYTHON} names no Python; `cargo xtask bench --peers` sets it");
            return Ok(None);
        };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../peers/bench_quant.py");
        let mut command = Command::new(python);
        command.arg(script).arg(library);
        command.args(["--threads", &context.threads().to_string()]);
        command.envs(OPENMP).envs(variable);
        let (process, ready) = Process::start::<Ready>(library, command)?;
        for note in &ready.notes {
            println!("{library}: {note}");
        }
        let Some(name) = ready.name else {
            println!("{library}: {}", ready.missing);
            return Ok(None);
        };
        Ok(Some(Self {
            process: RefCell::new(process),
            folder: TempDir::new()?,
            name,
        }))
    }

    /// Hands operands over; returns the variants that the library offers.
    pub fn load(&self, operands: Operands, weights: &[u8], x: &[u8]) -> Result<Vec<String>> {
        let paths = ["weights", "x"].map(|name| self.folder.path().join(name));
        fs::write(&paths[0], weights)?;
        fs::write(&paths[1], x)?;
        let loaded: Loaded = self.process.borrow_mut().ask_for(&Request::Load {
            operands,
            weights: &paths[0],
            x: &paths[1],
        })?;
        Ok(loaded.variants)
    }

    /// The product, four bytes an element.
    pub fn product(&self, variant: &str) -> Result<Vec<[u8; 4]>> {
        let out = self.folder.path().join("out");
        let request = Request::Save { variant, out: &out };
        let Saved {} = self.process.borrow_mut().ask_for(&request)?;
        Ok(fs::read(&out)?.as_chunks::<4>().0.to_vec())
    }

    /// Seconds of a product.
    pub fn seconds(&self, variant: &str, times: usize) -> Result<f64> {
        let request = Request::Time { variant, times };
        Ok(self
            .process
            .borrow_mut()
            .ask_for::<Timed>(&request)?
            .seconds)
    }

    /// A side that takes turns.
    pub fn side<'a>(&'a self, variant: &'a str, times: usize) -> Side<'a> {
        Box::new(move || self.seconds(variant, times))
    }
}
