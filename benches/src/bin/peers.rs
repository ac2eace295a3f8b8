//! Compares a LoRA training step with transformers and PEFT, and greedy decoding with transformers,
//! step by step on one machine. `cargo xtask bench --peers` runs it.
#![allow(clippy::print_stdout, reason = "a program whose output is its result")]

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use ferrotune_benches::limits::{self, Work};
use ferrotune_benches::pairs::Pairs;
use ferrotune_benches::peer::{Done, Ready};
use ferrotune_benches::worker::{Dtype, Job, Worker};
use ferrotune_benches::workload::Shape;
use ferrotune_benches_common::machine::{cpu, load};
use ferrotune_benches_common::peer::{self, Process};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const PYTHON: &str = "FERROTUNE_PEERS";
const LORA_SCRIPT: &str = "bench_lora_step.py";
const DECODE_SCRIPT: &str = "bench_decode.py";
const RANK: i64 = 16;

/// Our LoRA step beside PEFT's and our decoding beside transformers', in pairs. Needs
/// FERROTUNE_PEERS, the Python of .peers/; `cargo xtask bench --peers` sets it.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    /// Counted pairs
    #[arg(long, default_value_t = 11)]
    pairs: usize,
    /// Pairs before the clock counts
    #[arg(long, default_value_t = 2)]
    warm: usize,
    /// Threads of either side; by default as many as there are cores
    #[arg(long)]
    threads: Option<usize>,
    /// Only one of the comparisons
    #[arg(long)]
    only: Option<Comparison>,
    /// Only one dtype
    #[arg(long)]
    dtype: Option<Dtype>,
    #[command(flatten)]
    shape: Shape,
    /// Rows of a training step
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Tokens of a row
    #[arg(long, default_value_t = 256)]
    length: usize,
    /// Learning rate: large enough that a wrong gradient shows in the losses
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Recompute activations in backward, on both sides
    #[arg(long)]
    checkpointing: bool,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 16)]
    prompt: usize,
    /// New tokens of a continuation
    #[arg(long, default_value_t = 64)]
    new_tokens: usize,
    /// The job of a worker process, as JSON
    #[arg(long, hide = true)]
    worker: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Comparison {
    /// A training step
    Lora,
    /// Greedy tokens
    Decode,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(job) = &cli.worker {
        return serde_json::from_str::<Worker>(job)?.run();
    }
    let compare = Compare::new(cli)?;
    println!("{}", compare.machine());
    let dtypes = compare
        .cli
        .dtype
        .map_or(vec![Dtype::Fp32, Dtype::Bf16], |dtype| vec![dtype]);
    let mut wrong = Vec::new();
    for dtype in dtypes {
        let folder = tempfile::tempdir()?;
        compare.save(dtype, folder.path())?;
        if compare.cli.only != Some(Comparison::Decode) {
            wrong.extend(compare.lora(dtype, folder.path())?);
        }
        if compare.cli.only != Some(Comparison::Lora) {
            wrong.extend(compare.decode(dtype, folder.path())?);
        }
    }
    println!("\nload of the machine now: {}", load());
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

struct Compare {
    cli: Cli,
    python: OsString,
    scripts: PathBuf,
    threads: usize,
}

impl Compare {
    fn new(cli: Cli) -> Result<Self> {
        let python = env::var_os(PYTHON).with_context(|| {
            format!(
                "{PYTHON} names no Python: run `cargo xtask bench --peers`, or `cargo xtask peers` \
                 and set {PYTHON}=.peers/bin/python"
            )
        })?;
        if cli.pairs == 0 {
            bail!("--pairs must be at least 1");
        }
        let threads = match cli.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?.get(),
        };
        Ok(Self {
            cli,
            python,
            scripts: Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers"),
            threads,
        })
    }

    fn machine(&self) -> String {
        let Cli { pairs, warm, .. } = self.cli;
        format!(
            "{}, {} threads a side, load {}\n{pairs} pairs after {warm} to warm up: one piece of work of \
             theirs, one of ours, the order changing\ntimes are median (lower to upper quartile)",
            cpu(),
            self.threads,
            load()
        )
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(self.scripts.join(name));
        command.args(["--threads", &self.threads.to_string()]);
        command
    }

    fn worker(&self, job: Job, dtype: Dtype) -> Result<Command> {
        let worker = Worker {
            job,
            dtype,
            threads: self.threads,
        };
        let mut command = Command::new(env::current_exe()?);
        command.arg("--worker").arg(serde_json::to_string(&worker)?);
        Ok(command)
    }

    /// The base, the adapter and the ids that both sides start from, made by theirs.
    fn save(&self, dtype: Dtype, folder: &Path) -> Result<()> {
        let Cli { shape, .. } = self.cli;
        let mut command = self.script(LORA_SCRIPT);
        command.arg("--save").arg(folder);
        for (option, value) in [
            ("--hidden", shape.hidden),
            ("--layers", shape.layers),
            ("--heads", shape.heads),
            ("--kv-heads", shape.kv_heads),
            ("--intermediate", shape.intermediate),
            ("--vocab", shape.vocab),
            ("--batch", i64::try_from(self.cli.batch)?),
            ("--length", i64::try_from(self.cli.length)?),
            ("--r", RANK),
        ] {
            command.args([option, &value.to_string()]);
        }
        command.args(["--dtype", dtype.name()]);
        peer::run(LORA_SCRIPT, command)
    }

    /// Runs the pairs and prints what both comparisons print.
    fn pairs(
        &self,
        dtype: Dtype,
        theirs: (&'static str, Command),
        ours: Job,
        work: Work,
    ) -> Result<Pairs> {
        let (name, command) = theirs;
        let (mut theirs, their_ready) = Process::start::<Ready>(name, command)?;
        let (mut ours, our_ready) =
            Process::start::<Ready>("ferrotune", self.worker(ours, dtype)?)?;
        let (mut machine, ()) = Process::start("the gauge", self.worker(Job::Machine, dtype)?)?;
        if their_ready.parameters != our_ready.parameters
            || their_ready.trainable != our_ready.trainable
        {
            bail!("not the same model: theirs {their_ready:?}, ours {our_ready:?}");
        }
        let Cli { warm, pairs, .. } = self.cli;
        let pairs = Pairs::run(&mut theirs, &mut ours, &mut machine, warm, pairs)?;

        report(
            &pairs,
            [(name, their_ready), ("ferrotune", our_ready)],
            work,
        );
        Ok(pairs)
    }

    /// Returns what disagrees.
    fn lora(&self, dtype: Dtype, folder: &Path) -> Result<Option<String>> {
        let Cli {
            shape,
            batch,
            length,
            lr,
            checkpointing,
            ..
        } = self.cli;
        println!(
            "\n== LoRA step, {}: Llama {} × {}, vocabulary {}, batch {batch} × {length}, r = {RANK} on q and v{}",
            dtype.name(),
            shape.hidden,
            shape.layers,
            shape.vocab,
            if checkpointing { ", checkpointing" } else { "" }
        );
        let mut theirs = self.script(LORA_SCRIPT);
        theirs.arg("--load").arg(folder);
        theirs.args(["--dtype", dtype.name(), "--lr", &lr.to_string()]);
        if checkpointing {
            theirs.arg("--checkpointing");
        }
        let ours = Job::Lora {
            load: folder.to_owned(),
            lr,
            checkpointing,
        };
        let work = limits::lora_step(shape, batch, length, RANK, dtype.bytes());
        let pairs = self.pairs(dtype, ("PEFT", theirs), ours, work)?;

        let losses = |side: &[Done]| -> Vec<f64> {
            side.iter()
                .map(|done| done.loss.unwrap_or(f64::NAN))
                .collect()
        };
        let (theirs, ours) = (losses(&pairs.theirs), losses(&pairs.ours));
        let apart = theirs.iter().zip(&ours).map(|(a, b)| (a - b).abs());
        // Not `f64::max`, which would hide a NaN.
        let apart = apart.fold(0.0, |most, next| {
            if next > most || next.is_nan() {
                next
            } else {
                most
            }
        });
        let limit = match dtype {
            Dtype::Fp32 => 1e-3,
            Dtype::Bf16 => 2e-2,
        };
        println!(
            "losses of {} steps: {:.4} to {:.4} theirs, {:.4} to {:.4} ours, at most {apart:.1e} apart (limit {limit})",
            theirs.len(),
            theirs[0],
            theirs[theirs.len() - 1],
            ours[0],
            ours[ours.len() - 1],
        );
        let agree = apart <= limit;
        Ok((!agree).then(|| format!("the losses in {} are {apart:.1e} apart", dtype.name())))
    }

    /// Returns what disagrees.
    fn decode(&self, dtype: Dtype, folder: &Path) -> Result<Option<String>> {
        let Cli {
            shape,
            prompt,
            new_tokens,
            length,
            ..
        } = self.cli;
        let prompt = prompt.min(length);
        println!(
            "\n== greedy decoding, {}: Llama {} × {}, vocabulary {}, {new_tokens} tokens after {prompt}",
            dtype.name(),
            shape.hidden,
            shape.layers,
            shape.vocab
        );
        let mut theirs = self.script(DECODE_SCRIPT);
        theirs.arg("--load").arg(folder);
        theirs.args(["--dtype", dtype.name(), "--prompt", &prompt.to_string()]);
        theirs.args(["--new-tokens", &new_tokens.to_string()]);
        let ours = Job::Decode {
            load: folder.to_owned(),
            prompt,
            new_tokens,
        };
        let one = limits::decode(shape, prompt + new_tokens / 2, dtype.bytes());
        let count = new_tokens as f64;
        let work = Work {
            flops: one.flops * count,
            bytes: one.bytes * count,
        };
        let pairs = self.pairs(dtype, ("transformers", theirs), ours, work)?;

        let (theirs, ours) = (&pairs.theirs[0].ids, &pairs.ours[0].ids);
        let same = theirs.iter().zip(ours).take_while(|(a, b)| a == b).count();
        println!("{same} of {new_tokens} tokens are the same from the first on");
        let agree = dtype == Dtype::Bf16 || same == new_tokens;
        Ok((!agree).then(|| format!("greedy tokens in fp32 part after {same} of {new_tokens}")))
    }
}

/// Prints the times and the memory of both sides, and the limit that the times are measured by.
fn report(pairs: &Pairs, [theirs, ours]: [(&str, Ready); 2], work: Work) {
    let (seconds, cpu) = (|done: &Done| done.seconds, |done: &Done| done.cpu_seconds);
    println!(
        "{:14} {:>24} {:>24} {:>9} {:>10} {:>13}",
        "", "seconds", "of all threads", "tokens/s", "peak, GiB", "loading, GiB"
    );
    for ((name, ready), side) in [(theirs, &pairs.theirs), (ours, &pairs.ours)] {
        let gib = |peak: u64| peak.saturating_sub(ready.idle_rss_bytes) as f64 / (1 << 30) as f64;
        let tokens = side.first().map_or(0, |done| done.tokens) as f64;
        let peak = side.iter().map(|done| done.peak_rss_bytes).max();
        println!(
            "{name:14} {:>24} {:>24} {:>9.1} {:>10.2} {:>13.2}",
            format!("{:.3}", pairs.of(side, seconds)),
            format!("{:.2}", pairs.of(side, cpu)),
            tokens / pairs.of(side, seconds).median,
            gib(peak.unwrap_or(0)),
            gib(ready.load_peak_rss_bytes),
        );
    }
    println!(
        "{:14} {:>24} {:>24}",
        "their / ours",
        format!("{:.2}", pairs.ratio(seconds)),
        format!("{:.2}", pairs.ratio(cpu))
    );
    let machine = pairs.machine();
    let (compute, memory) = (work.flops / machine.flops, work.bytes / machine.bytes);
    println!(
        "limit: {:.1} GFLOP at {:.0} GFLOP/s (a product 1024³) are {compute:.3} s; {:.2} GB at {:.1} GB/s (a plain \
         read) are {memory:.3} s",
        work.flops / 1e9,
        machine.flops / 1e9,
        work.bytes / 1e9,
        machine.bytes / 1e9,
    );
    let part = |side| 100.0 * compute.max(memory) / pairs.of(side, seconds).median;
    println!(
        "the larger of the two is {:.0} % of their time and {:.0} % of ours",
        part(&pairs.theirs),
        part(&pairs.ours)
    );
}
