//! 128 rows of activations times matrices of 2048 × 2048, and what preparing the activations takes. An
//! element is a multiplication with its addition.
#![allow(missing_docs, reason = "criterion's macros write public functions")]

mod settings;

use anyhow::Result;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferrotune_benches_quant::data::{packed, uniform};
use ferrotune_quant::{
    Activations, Cpu, Grouping, Int8, Mode, MxFp4, Nf4, Packed, Rayon, ScaleRounding, Scratch, View,
};

const BATCH: usize = 128;
const SIZE: usize = 2048;

fn gemm(c: &mut Criterion) -> Result<()> {
    let cpu = &Cpu::detect().with_threads(&Rayon);
    let shape = [SIZE, SIZE];
    let row = packed(Int8(Grouping::Row), shape, 1, cpu)?;
    let group = packed(Int8(Grouping::Block(32)), shape, 1, cpu)?;
    let nf4 = packed(Nf4::new(64)?, shape, 1, cpu)?;
    let mxfp4 = packed(MxFp4(ScaleRounding::Floor), shape, 1, cpu)?;
    for (name, weights, mode) in [
        ("int8, row × int8", &row, Mode::Int8PerRow),
        ("int8, group 32 × int8", &group, Mode::Int8PerGroup),
        ("NF4, 64 × int8", &nf4, Mode::Int8PerGroup),
        ("MXFP4 × int8", &mxfp4, Mode::Int8PerGroup),
        ("int8, row × bf16", &row, Mode::Bf16),
        ("NF4, 64 × bf16", &nf4, Mode::Bf16),
        ("NF4, 64 × f32", &nf4, Mode::F32),
    ] {
        product(c, name, weights, mode, cpu)?;
    }
    for (name, weights, mode) in [
        ("int8, row", &row, Mode::Int8PerRow),
        ("int8, group 32", &group, Mode::Int8PerGroup),
        ("bf16", &nf4, Mode::Bf16),
    ] {
        set(c, name, weights, mode, cpu)?;
    }
    Ok(())
}

fn product(
    c: &mut Criterion,
    name: &str,
    weights: &Packed,
    mode: Mode,
    cpu: &Cpu<'static>,
) -> Result<()> {
    let x = uniform(BATCH * SIZE, 2);
    let mut activations = Activations::new(weights, mode)?;
    activations.set(View::new(&x, BATCH, SIZE)?, cpu)?;
    let (mut y, mut scratch) = (vec![0.0; BATCH * SIZE], Scratch::new());
    let mut group = c.benchmark_group("gemm");
    group.throughput(Throughput::Elements((BATCH * SIZE * SIZE) as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            let product = weights.gemm(&activations, &mut y, &mut scratch, cpu);
            product.expect("a product")
        });
    });
    group.finish();
    Ok(())
}

fn set(
    c: &mut Criterion,
    name: &str,
    weights: &Packed,
    mode: Mode,
    cpu: &Cpu<'static>,
) -> Result<()> {
    let x = uniform(BATCH * SIZE, 2);
    let view = View::new(&x, BATCH, SIZE)?;
    let mut activations = Activations::new(weights, mode)?;
    let mut group = c.benchmark_group("activations");
    group.throughput(Throughput::Bytes(size_of_val(&x[..]) as u64));
    group.bench_function(name, |b| {
        b.iter(|| activations.set(view, cpu).expect("finite values"));
    });
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    gemm(c).expect("gemm");
}

criterion_group! {
    name = benches;
    config = settings::settings();
    targets = all
}
criterion_main!(benches);
