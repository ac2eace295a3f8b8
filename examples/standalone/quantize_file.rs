//! Quantizes the weights of a safetensors file, tensor by tensor, and reports what each one lost.
#![allow(clippy::print_stdout, reason = "a program whose output is its result")]

use anyhow::{Context, Result};
use clap::Parser;
use ferrotune_quant::files::{Converted, Outcome, SafetensorsFile, Scheme, convert};
use ferrotune_quant::{Cpu, Rayon};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;

/// Quantizes every matrix P.weight of a safetensors file and copies the other tensors. The new file has
/// the keys that the scheme's own readers expect, bitsandbytes' for nf4.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    /// The file to read
    #[arg(long)]
    input: PathBuf,
    /// nf4, nf4-nested, fp4, fp4-nested, int8, int4, mxfp4, nvfp4, nvfp4-modelopt, gptq, awq
    #[arg(long)]
    scheme: Scheme,
    /// The file to write; it is there whole or not at all
    #[arg(long)]
    out: PathBuf,
    /// Weights to copy as they are: those whose names contain one of these
    #[arg(long, value_delimiter = ',', default_value = "lm_head,embed")]
    keep: Vec<String>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let file = SafetensorsFile::open(&cli.input)?;
    let tensors = file.tensors();
    let names = tensors.names();
    let total = names.iter().filter_map(|name| tensors.get(name));
    let bar = ProgressBar::new(total.map(|tensor| tensor.data().len() as u64).sum());
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left  {msg}";
    bar.set_style(ProgressStyle::with_template(style).context("the bar's own style")?);

    let cpu = Cpu::detect().with_threads(&Rayon);
    let wanted = |name: &str| !cli.keep.iter().any(|part| name.contains(part.as_str()));
    let all = convert(&tensors, cli.scheme, &cli.out, &cpu, wanted, |tensor| {
        bar.inc(tensor.bytes[0] as u64);
        bar.set_message(tensor.name.clone());
    })?;
    bar.finish_and_clear();

    let width = all
        .iter()
        .map(|tensor| tensor.name.len())
        .max()
        .unwrap_or(0);
    for tensor in &all {
        println!("{}", line(tensor, width));
    }
    let bytes = |i: usize| all.iter().map(|tensor| tensor.bytes[i]).sum::<usize>();
    println!(
        "{} bytes became {}: {}",
        bytes(0),
        bytes(1),
        cli.out.display()
    );
    Ok(())
}

/// A line of the report.
fn line(tensor: &Converted, width: usize) -> String {
    let Converted {
        name,
        shape,
        bytes,
        outcome,
    } = tensor;
    let elements = shape.iter().product::<usize>().max(1);
    let bits = 8.0 * bytes[1] as f64 / elements as f64;
    match outcome {
        Outcome::Quantized { relative, worst } => format!(
            "{name:width$}  {shape:?}  {bits:.2} bits a weight, relative error {relative:.5}, largest {worst:.3e}"
        ),
        Outcome::Copied(reason) => format!("{name:width$}  {shape:?}  copied: {reason}"),
    }
}
