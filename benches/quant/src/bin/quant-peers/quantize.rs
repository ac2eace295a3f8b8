//! Quantizing from f32 beside a copy of the input.

use crate::context::Context;
use anyhow::{Result, ensure};
use ferrotune_benches_quant::{data, memory};
use ferrotune_quant::{
    Cpu, Format, Grouping, Int8, Isa, MxFp4, Nf4, NonFinite, NvFp4, Quantized, Rayon,
    ScaleRounding, View, quantize_into,
};

const ROWS: usize = 16_384;
const COLS: usize = 8192;

pub fn run(context: &Context) -> Result<()> {
    println!(
        "== quantizing f32 [{ROWS}, {COLS}] into memory that is there: our time ÷ that of a copy of the input"
    );
    println!(
        "{:16} {:>14} {:>14} {:>22}",
        "format", "copy, ms", "ours, ms", "ours / copy"
    );
    let weights = context.on_threads(|| data::uniform(ROWS * COLS, 1));
    let mut to = vec![0.0; weights.len()];
    format(
        context,
        "int8, tensor",
        Int8(Grouping::Tensor),
        &weights,
        &mut to,
    )?;
    format(context, "int8, row", Int8(Grouping::Row), &weights, &mut to)?;
    format(
        context,
        "int8, group 32",
        Int8(Grouping::Block(32)),
        &weights,
        &mut to,
    )?;
    format(context, "NF4, 64", Nf4::new(64)?, &weights, &mut to)?;
    format(
        context,
        "MXFP4",
        MxFp4(ScaleRounding::Floor),
        &weights,
        &mut to,
    )?;
    format(context, "NVFP4", NvFp4, &weights, &mut to)
}

fn format<F: Format>(
    context: &Context,
    name: &str,
    format: F,
    weights: &[f32],
    to: &mut [f32],
) -> Result<()> {
    let cpu = context.cpu();
    let view = View::new(weights, ROWS, COLS)?;
    // What it should be, by plain Rust.
    let scalar = Cpu::with_isa(Isa::Scalar)?.with_threads(&Rayon);
    let expected = context.on_threads(|| Quantized::new(format.clone(), view, &scalar))?;
    let (mut codes, mut scales) = (expected.codes().to_vec(), expected.scales().to_vec());
    codes.fill(0);
    let quantize = |codes: &mut [u8], scales: &mut [F::Scale]| {
        quantize_into(&format, view, codes, scales, NonFinite::Refuse, cpu)
    };
    quantize(&mut codes, &mut scales)?;
    ensure!(
        codes == expected.codes() && scales == expected.scales(),
        "{name}: {} and plain Rust differ",
        cpu.isa()
    );
    drop(expected);
    let mut work = || {
        quantize(&mut codes, &mut scales)?;
        anyhow::Ok(())
    };
    let rounds = context.rounds(vec![
        context.side(2, || {
            memory::copy(weights, to);
            Ok(())
        }),
        context.side(2, &mut work),
    ])?;
    println!(
        "{name:16} {:>14.1} {:>14.1} {:>22}",
        1e3 * rounds.of(0).median,
        1e3 * rounds.of(1).median,
        format!("{:.2}", rounds.ratio(1, 0)),
    );
    Ok(())
}
