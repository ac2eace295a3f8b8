//! What all comparisons share: options, threads, instructions.

use crate::Cli;
use anyhow::{Context as _, Result};
use ferrotune_benches_quant::rounds::{Rounds, Side, seconds};
use ferrotune_benches_quant::threads::pinned;
use ferrotune_quant::{Cpu, Isa, Rayon};
use rayon::ThreadPool;
use std::env;

/// Rows of activations of a prefill.
pub const BATCH: usize = 128;

/// Columns and rows of its weights: of a model of 1.1 billion parameters, and one square more.
pub const SHAPES: [[usize; 2]; 3] = [[2048, 2048], [5632, 2048], [5632, 5632]];

/// How often the matrices of GEMV hold the same rows.
pub const REPEAT: usize = 16;

pub struct Context {
    pub cli: Cli,
    pool: ThreadPool,
    cpus: Vec<Cpu<'static>>,
}

impl Context {
    pub fn new(cli: Cli) -> Result<Self> {
        let threads = match cli.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?.get(),
        };
        // candle asks for the number of threads here, and works on rayon's global ones.
        // SAFETY: no other thread runs yet.
        unsafe { env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
        pinned(threads).build_global()?;
        let best = Isa::available().last();
        let without_matrices = Isa::available().filter(|isa| *isa != Isa::Amx).last();
        let mut isas = vec![best.context("no instructions")?];
        isas.extend(without_matrices.filter(|isa| Some(*isa) != best));
        let cpus = isas.into_iter().map(|isa| {
            let cpu = Cpu::with_isa(isa)?;
            Ok(cpu.with_threads(&Rayon))
        });
        Ok(Self {
            cli,
            pool: pinned(threads).build()?,
            cpus: cpus.collect::<Result<_>>()?,
        })
    }

    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// With the fastest instructions.
    pub fn cpu(&self) -> &Cpu<'static> {
        &self.cpus[0]
    }

    /// With the fastest instructions and, where those multiply matrices (AMX), with the fastest others.
    pub fn cpus(&self) -> &[Cpu<'static>] {
        &self.cpus
    }

    /// Does something on the threads.
    pub fn on_threads<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// A side that works on the threads, so many times a turn.
    pub fn side<'a>(
        &'a self,
        times: usize,
        mut work: impl FnMut() -> Result<()> + Send + 'a,
    ) -> Side<'a> {
        Box::new(move || self.on_threads(|| seconds(times, &mut work)))
    }

    pub fn rounds(&self, mut sides: Vec<Side>) -> Result<Rounds> {
        Rounds::run(self.cli.warm, self.cli.pairs, &mut sides)
    }
}

/// How often a product is done in a turn, so that a turn takes some hundredths of a second.
pub fn times([cols, rows]: [usize; 2], batch: usize) -> usize {
    if batch == 1 {
        2
    } else {
        20_000_000_000_usize.div_ceil(2 * batch * rows * cols)
    }
}
