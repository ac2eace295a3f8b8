//! From f32 to each format, into memory that is there.
#![allow(missing_docs, reason = "criterion's macros write public functions")]

mod settings;

use anyhow::Result;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferrotune_benches_quant::data::uniform;
use ferrotune_quant::{
    Cpu, Format, Fp4, Grouping, Int8, MxFp4, Nf4, NonFinite, NvFp4, Quantized, Rayon,
    ScaleRounding, View, quantize_into,
};

const ROWS: usize = 2048;
const COLS: usize = 4096;

fn quantize(c: &mut Criterion) -> Result<()> {
    let weights = uniform(ROWS * COLS, 1);
    format(c, "int8, row", Int8(Grouping::Row), &weights)?;
    format(c, "int8, group 32", Int8(Grouping::Block(32)), &weights)?;
    format(c, "NF4, 64", Nf4::new(64)?, &weights)?;
    format(c, "FP4, 64", Fp4::new(64)?, &weights)?;
    format(c, "MXFP4", MxFp4(ScaleRounding::Floor), &weights)?;
    format(c, "NVFP4", NvFp4, &weights)
}

fn format<F: Format>(c: &mut Criterion, name: &str, format: F, weights: &[f32]) -> Result<()> {
    let cpu = Cpu::detect().with_threads(&Rayon);
    let view = View::new(weights, ROWS, COLS)?;
    let once = Quantized::new(format.clone(), view, &cpu)?;
    let (mut codes, mut scales) = (once.codes().to_vec(), once.scales().to_vec());
    let mut group = c.benchmark_group("quantize");
    group.throughput(Throughput::Bytes(size_of_val(weights) as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            let refuse = NonFinite::Refuse;
            quantize_into(&format, view, &mut codes, &mut scales, refuse, &cpu).expect("codes")
        });
    });
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    quantize(c).expect("quantize");
}

criterion_group! {
    name = benches;
    config = settings::settings();
    targets = all
}
criterion_main!(benches);
