//! What a training step is made of: the step, attention over packed sequences, the loss.
#![allow(missing_docs, reason = "criterion's macros write public functions")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ferrotune_benches::workload::{Shape, add_lora, ids, rows};
use ferrotune_nn::attention::{Mask, attention};
use ferrotune_nn::libtorch::autograd;
use ferrotune_nn::libtorch::tch::{Device, Kind, Reduction, Tensor};
use ferrotune_nn::{Ctx, Factory, Linear};
use ferrotune_train::loss::{CHUNK, causal_lm, chunked_cross_entropy};
use ferrotune_train::{AdamW, Repeat, prepare};
use std::hint::black_box;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const DTYPES: [(&str, Kind); 2] = [("fp32", Kind::Float), ("bf16", Kind::BFloat16)];

type Result<T = ()> = anyhow::Result<T>;

/// Forward, backward, clipping and AdamW over 4 rows of 256 tokens.
fn lora_step(c: &mut Criterion) -> Result {
    let mut group = c.benchmark_group("lora_step");
    group.throughput(Throughput::Elements(1024));
    for (name, kind) in DTYPES {
        let mut model = Shape::SMALL.random(kind)?;
        add_lora(&mut model)?;
        let batch = rows(&ids(1024, Shape::SMALL.vocab), 256);
        let mut run = prepare(model, AdamW::new(1e-4), Repeat::new([batch], u64::MAX))?;
        group.bench_function(name, |b| {
            b.iter(|| {
                run.step(|model, batch, ctx| causal_lm(model, batch, ctx))
                    .expect("a step")
            });
        });
    }
    group.finish();
    Ok(())
}

/// Forward and backward of 12 heads of 64, about 480 tokens in a row: many short sequences, a few
/// long ones, and the whole row as one.
fn packed_attention(c: &mut Criterion) -> Result {
    let mut group = c.benchmark_group("packed_attention");
    let many: Vec<i64> = (0..24).map(|i| 17 + i % 7).collect();
    for (name, lengths) in [
        ("24 of 20", many),
        ("2 of 250", vec![245, 255]),
        ("1 of 500", vec![500]),
    ] {
        let bounds: Vec<i64> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let row: i64 = lengths.iter().sum();
        let random = || Tensor::f_randn([1, 12, row, 64], CPU);
        let leaf = || random()?.f_set_requires_grad(true);
        let (q, k, v, gradient) = (leaf()?, leaf()?, leaf()?, random()?);
        group.throughput(Throughput::Elements(row.unsigned_abs()));
        group.bench_function(name, |b| {
            b.iter(|| {
                let y = attention(&q, &k, &v, Mask::Packed(&bounds)).expect("attention");
                autograd::grad(&[&y], &[Some(&gradient)], &[&q, &k, &v], false, false)
                    .expect("gradients")
            });
        });
    }
    group.finish();
    Ok(())
}

/// The loss of 512 tokens at a vocabulary of 32,000 and the gradient of the hidden states, in chunks
/// and with all logits at once.
fn cross_entropy(c: &mut Criterion) -> Result {
    const TOKENS: i64 = 512;
    const VOCAB: i64 = 32_000;
    let head: Linear =
        Factory::random(3, Kind::Float, Device::Cpu)?.linear("lm_head", 256, VOCAB, false, 0.02)?;
    let hidden = Tensor::f_randn([TOKENS, 256], CPU)?.f_set_requires_grad(true)?;
    let labels: Vec<i64> = ids(TOKENS as usize, VOCAB)
        .into_iter()
        .map(i64::from)
        .collect();
    let (labels, weights) = (
        Tensor::f_from_slice(&labels)?,
        Tensor::f_ones([TOKENS], CPU)?,
    );
    let ctx = Ctx::eval();
    let chunked = || -> Result<Tensor> {
        Ok(chunked_cross_entropy(
            &head, &hidden, &labels, &weights, &ctx, CHUNK,
        )?)
    };
    let whole = || -> Result<Tensor> {
        let logits = head.forward(&hidden, &ctx)?;
        Ok(logits.f_cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, -100, 0.0)?)
    };
    let sums = [chunked()?.double_value(&[]), whole()?.double_value(&[])];
    assert!(
        (sums[0] - sums[1]).abs() < 1e-4 * sums[1],
        "not the same loss: {sums:?}"
    );

    let mut group = c.benchmark_group("cross_entropy");
    group.throughput(Throughput::Elements(TOKENS as u64));
    let works: [(&str, &dyn Fn() -> Result<Tensor>); 2] = [("chunks", &chunked), ("whole", &whole)];
    for (name, loss) in works {
        group.bench_function(BenchmarkId::new(name, VOCAB), |b| {
            b.iter(|| {
                let loss = loss().expect("a loss");
                black_box(
                    autograd::grad(&[&loss], &[None], &[&hidden], false, false).expect("gradients"),
                )
            });
        });
    }
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    lora_step(c).expect("lora_step");
    packed_attention(c).expect("packed_attention");
    cross_entropy(c).expect("cross_entropy");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = all
}
criterion_main!(benches);
