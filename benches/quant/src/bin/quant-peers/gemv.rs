//! A vector times matrices that no cache holds, beside a plain read of as many bytes.

use crate::context::{Context, REPEAT, times};
use anyhow::Result;
use ferrotune_benches_quant::check::{Expected, first_rows};
use ferrotune_benches_quant::{data, memory};
use ferrotune_quant::{
    Activations, Format, Grouping, Int8, Mode, MxFp4, Nf4, NvFp4, Packed, Q4_0, Q8_0,
    ScaleRounding, View,
};

pub fn run(context: &Context) -> Result<()> {
    let (rows, cols) = (context.cli.gemv_rows, context.cli.gemv_cols);
    println!(
        "== GEMV, int8 activations, weights [{rows}, {cols}] in 8 bits and [{}, {cols}] in 4: time of a plain read \
         of the same bytes ÷ ours",
        2 * rows
    );
    println!(
        "{:16} {:>12} {:>10} {:>10} {:>22}",
        "weights", "bits/weight", "read GB/s", "ours GB/s", "read / ours"
    );
    let group = Mode::Int8PerGroup;
    format(
        context,
        "int8, row",
        Int8(Grouping::Row),
        1,
        Mode::Int8PerRow,
    )?;
    format(
        context,
        "int8, group 32",
        Int8(Grouping::Block(32)),
        1,
        group,
    )?;
    format(context, "MXFP4", MxFp4(ScaleRounding::Floor), 2, group)?;
    format(context, "NVFP4", NvFp4, 2, group)?;
    format(context, "NF4, 64", Nf4::new(64)?, 2, group)?;
    format(context, "Q8_0", Q8_0, 1, group)?;
    format(context, "Q4_0", Q4_0, 2, group)
}

fn format<F: Format>(
    context: &Context,
    name: &str,
    format: F,
    more: usize,
    mode: Mode,
) -> Result<()> {
    let shape = [more * context.cli.gemv_rows, context.cli.gemv_cols];
    let packed = context.on_threads(|| data::packed(format, shape, REPEAT, context.cpu()))?;
    product(context, name, &packed, mode)
}

fn product(context: &Context, name: &str, packed: &Packed, mode: Mode) -> Result<()> {
    let cpu = context.cpu();
    let [rows, cols] = packed.shape();
    let x = data::uniform(cols, 2);
    let mut activations = Activations::new(packed, mode)?;
    activations.set(View::new(&x, 1, cols)?, cpu)?;
    let mut y = vec![0.0; rows];
    context.on_threads(|| packed.gemv(&activations, &mut y, cpu))?;
    let first = first_rows(packed, 512)?;
    Expected::new(&first, mode, &x)?.check(name, &y[..512.min(rows)], 1.0)?;

    let times = times([cols, rows], 1);
    let parts = [packed.codes(), packed.scales(), packed.shifts()];
    let rounds = context.rounds(vec![
        context.side(times, || {
            memory::read(&parts);
            Ok(())
        }),
        context.side(times, || Ok(packed.gemv(&activations, &mut y, cpu)?)),
    ])?;
    let speed = |side| packed.bytes() as f64 / rounds.of(side).median / 1e9;
    println!(
        "{name:16} {:>12.2} {:>10.1} {:>10.1} {:>22}",
        packed.bits_per_weight(),
        speed(0),
        speed(1),
        format!("{:.3}", rounds.ratio(0, 1)),
    );
    Ok(())
}
