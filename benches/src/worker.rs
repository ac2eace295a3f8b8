//! Our side of a comparison, in a process of its own: the same lines as the Python scripts.

use crate::limits::Gauge;
use crate::peer::{Done, Ready};
use crate::workload;
use anyhow::{Context, Result};
use ferrotune_benches_common::process;
use ferrotune_generate::{Options as Decoding, tokens};
use ferrotune_lora::{peft, train_only};
use ferrotune_nn::libtorch::tch::{self, Device, Kind, Tensor};
use ferrotune_nn::module::params;
use ferrotune_nn::{Decoder, Weights};
use ferrotune_train::loss::causal_lm;
use ferrotune_train::{AdamW, AdamWStep, Options, Repeat, prepare};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The dtype of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits
    Fp32,
    /// 16 bits, 8 of them exponent
    Bf16,
}

impl Dtype {
    /// libtorch's name for it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// The name that the scripts understand.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> i64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What a worker does for each line. Folders are those of `peers/bench_lora_step.py --save`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "lowercase")]
pub enum Job {
    /// A LoRA training step.
    Lora {
        /// The folder.
        load: PathBuf,
        /// Learning rate.
        lr: f64,
        /// Whether blocks are recomputed in backward.
        checkpointing: bool,
    },
    /// A greedy continuation.
    Decode {
        /// The folder.
        load: PathBuf,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens after it.
        new_tokens: usize,
    },
    /// A measurement of the machine.
    Machine,
}

/// A job and how to do it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// What to do.
    pub job: Job,
    /// The dtype of the base, or of the machine's matrix product.
    pub dtype: Dtype,
    /// Threads of libtorch.
    pub threads: usize,
}

impl Worker {
    /// Reads lines until there are no more, and does the job for each.
    ///
    /// # Errors
    /// What stops the job.
    pub fn run(&self) -> Result<()> {
        tch::set_num_threads(i32::try_from(self.threads)?);
        // Starts the threads and the kernels, as the scripts do.
        let ones = Tensor::f_ones([64, 64], (Kind::Float, Device::Cpu))?;
        let _ = ones.f_matmul(&ones)?;
        let idle = process::resident()?;
        match &self.job {
            Job::Lora {
                load,
                lr,
                checkpointing,
            } => self.lora(idle, load, *lr, *checkpointing),
            Job::Decode {
                load,
                prompt,
                new_tokens,
            } => self.decode(idle, load, *prompt, *new_tokens),
            Job::Machine => {
                let gauge = Gauge::new(self.dtype.kind(), self.threads)?;
                say(&())?;
                each_line(|| gauge.measure())
            }
        }
    }

    fn lora(&self, idle: u64, load: &Path, lr: f64, checkpointing: bool) -> Result<()> {
        let mut model = self.base(load)?;
        peft::load(&mut model, peft::DEFAULT, &load.join("adapter"))?;
        train_only(&mut model, peft::DEFAULT)?;
        let (ids, length) = read_ids(load)?;
        let batch = workload::rows(&ids, length);
        // torch.optim.AdamW's defaults.
        let adamw = AdamW::with(AdamWStep {
            lr,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.01,
        });
        let options = Options {
            clip: Some(1.0),
            checkpointing,
            ..Options::default()
        };
        let mut run = prepare(model, adamw, Repeat::new([batch], u64::MAX))?.with(options)?;
        ready(idle, run.model())?;
        each_line(|| {
            let clock = Clock::start()?;
            let step = run.step(|model, batch, ctx| causal_lm(model, batch, ctx))?;
            let (seconds, cpu_seconds) = clock.read()?;
            let step = step.context("the loader has no end")?;
            Ok(Done {
                seconds,
                cpu_seconds,
                tokens: step.tokens,
                loss: Some(step.loss),
                ids: Vec::new(),
                peak_rss_bytes: process::peak()?,
            })
        })
    }

    fn decode(&self, idle: u64, load: &Path, prompt: usize, new_tokens: usize) -> Result<()> {
        let model = self.base(load)?;
        let (ids, length) = read_ids(load)?;
        let prompt = ids
            .get(..prompt.min(length))
            .context("there are no ids for a prompt")?;
        let options = Decoding {
            max_tokens: new_tokens,
            ..Decoding::default()
        };
        ready(idle, &model)?;
        each_line(|| {
            let clock = Clock::start()?;
            let mut ids = Vec::new();
            tokens(&model, prompt, &options, |id| {
                ids.push(id);
                Ok(true)
            })?;
            let (seconds, cpu_seconds) = clock.read()?;
            Ok(Done {
                seconds,
                cpu_seconds,
                tokens: ids.len() as u64,
                loss: None,
                ids,
                peak_rss_bytes: process::peak()?,
            })
        })
    }

    fn base(&self, load: &Path) -> Result<Decoder> {
        Ok(Decoder::load(
            load.join("base"),
            self.dtype.kind(),
            Device::Cpu,
        )?)
    }
}

/// The rows one after another, and the length of one.
fn read_ids(load: &Path) -> Result<(Vec<u32>, usize)> {
    let file = Weights::open(load.join("ids.safetensors"))?;
    let ids = file.load("ids", None, None, Device::Cpu)?;
    let (_, length) = ids.size2()?;
    let ids: Vec<i64> = Vec::try_from(ids.f_view([-1])?)?;
    let ids = ids.into_iter().map(u32::try_from);
    Ok((ids.collect::<Result<_, _>>()?, usize::try_from(length)?))
}

struct Clock {
    begin: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> Result<Self> {
        Ok(Self {
            cpu: process::cpu_seconds()?,
            begin: Instant::now(),
        })
    }

    /// Seconds by the clock, and seconds of all threads together.
    fn read(&self) -> Result<(f64, f64)> {
        let seconds = self.begin.elapsed().as_secs_f64();
        Ok((seconds, process::cpu_seconds()? - self.cpu))
    }
}

fn ready(idle_rss_bytes: u64, model: &Decoder) -> Result<()> {
    let count = |trains: bool| {
        let params = params(model).into_iter();
        let wanted = params.filter(|(_, param)| !trains || param.trainable());
        wanted.map(|(_, param)| param.tensor().numel() as u64).sum()
    };
    let load_peak_rss_bytes = process::peak()?;
    process::restart_peak();
    say(&Ready {
        parameters: count(false),
        trainable: count(true),
        idle_rss_bytes,
        load_peak_rss_bytes,
    })
}

fn each_line<A: Serialize>(mut work: impl FnMut() -> Result<A>) -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        line?;
        say(&work()?)?;
    }
    Ok(())
}

fn say(value: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(value)?)?;
    Ok(out.flush()?)
}
