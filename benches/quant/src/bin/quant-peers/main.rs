//! Compares `ferrotune-quant` with what the machine can do, and with torch, ggml and candle on the same
//! bytes, by turns in one run. `cargo xtask bench --peers` runs it.
#![allow(clippy::print_stdout, reason = "a program whose output is its result")]

mod blocks;
mod candle;
mod context;
mod gemm;
mod gemv;
mod ggml;
mod int_mm;
mod quantize;
mod worker;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use context::Context;
use ferrotune_benches_common::machine::{cpu, load};

/// Products and quantizing beside a plain read, the peak of the cores, torch, ggml and candle. torch and
/// ggml need FERROTUNE_PEERS, the Python of .peers/; `cargo xtask bench --peers` sets it.
#[derive(Debug, Clone, Parser)]
#[command(max_term_width = 100)]
struct Cli {
    /// Counted rounds
    #[arg(long, default_value_t = 11)]
    pairs: usize,
    /// Rounds before the clock counts
    #[arg(long, default_value_t = 2)]
    warm: usize,
    /// Threads of every side; by default as many as there are cores
    #[arg(long)]
    threads: Option<usize>,
    /// Only some of the comparisons, with commas between
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Rows of the matrices of 8 bits that a vector is multiplied with, a multiple of 256; those of 4
    /// bits have twice as many
    #[arg(long, default_value_t = 131_072)]
    gemv_rows: usize,
    /// Columns of the matrices that a vector is multiplied with, a multiple of 64
    #[arg(long, default_value_t = 4096)]
    gemv_cols: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Section {
    /// A vector: the part of a plain read
    Gemv,
    /// 128 rows: the part of the peak
    Gemm,
    /// Quantizing: how many copies
    Quantize,
    /// torch._int_mm
    IntMm,
    /// llama.cpp's kernels
    Ggml,
    /// candle's QMatMul
    Candle,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(cli.pairs > 0, "--pairs must be at least 1");
    ensure!(
        cli.gemv_rows.is_multiple_of(256) && cli.gemv_cols.is_multiple_of(64),
        "--gemv-rows must be a multiple of 256 and --gemv-cols of 64"
    );
    let context = Context::new(cli)?;
    let isas: Vec<&str> = context.cpus().iter().map(|cpu| cpu.isa().name()).collect();
    println!(
        "{}, {} threads, instructions {}, load {}\n{} rounds after {} to warm up, the order changing; figures are \
         median (lower to upper quartile)",
        cpu(),
        context.threads(),
        isas.join(" and "),
        load(),
        context.cli.pairs,
        context.cli.warm,
    );
    for section in Section::value_variants() {
        if context.cli.only.is_empty() || context.cli.only.contains(section) {
            println!();
            match section {
                Section::Gemv => gemv::run(&context)?,
                Section::Gemm => gemm::run(&context)?,
                Section::Quantize => quantize::run(&context)?,
                Section::IntMm => int_mm::run(&context)?,
                Section::Ggml => ggml::run(&context)?,
                Section::Candle => candle::run(&context)?,
            }
        }
    }
    println!("\nload of the machine now: {}", load());
    Ok(())
}
