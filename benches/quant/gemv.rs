//! A vector in int8 times matrices of 64 MiB in 8 bits, or 32 in 4.
#![allow(missing_docs, reason = "criterion's macros write public functions")]

mod settings;

use anyhow::Result;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferrotune_benches_quant::data::{packed, uniform};
use ferrotune_quant::{
    Activations, Cpu, Format, Grouping, Int8, Mode, MxFp4, Nf4, NvFp4, Rayon, ScaleRounding, View,
};

const ROWS: usize = 16_384;
const COLS: usize = 4096;

fn gemv(c: &mut Criterion) -> Result<()> {
    let (row, group) = (Mode::Int8PerRow, Mode::Int8PerGroup);
    format(c, "int8, row", Int8(Grouping::Row), row)?;
    format(c, "int8, group 32", Int8(Grouping::Block(32)), group)?;
    format(c, "NF4, 64", Nf4::new(64)?, group)?;
    format(c, "MXFP4", MxFp4(ScaleRounding::Floor), group)?;
    format(c, "NVFP4", NvFp4, group)
}

fn format<F: Format>(c: &mut Criterion, name: &str, format: F, mode: Mode) -> Result<()> {
    let cpu = Cpu::detect().with_threads(&Rayon);
    let weights = packed(format, [ROWS, COLS], 16, &cpu)?;
    let x = uniform(COLS, 2);
    let mut activations = Activations::new(&weights, mode)?;
    activations.set(View::new(&x, 1, COLS)?, &cpu)?;
    let mut y = vec![0.0; ROWS];
    let mut group = c.benchmark_group("gemv");
    group.throughput(Throughput::Bytes(weights.bytes() as u64));
    group.bench_function(name, |b| {
        b.iter(|| weights.gemv(&activations, &mut y, &cpu).expect("a product"));
    });
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    gemv(c).expect("gemv");
}

criterion_group! {
    name = benches;
    config = settings::settings();
    targets = all
}
criterion_main!(benches);
