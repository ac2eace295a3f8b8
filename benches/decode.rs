//! One more token of a text, over a KV cache of 128.
#![allow(missing_docs, reason = "criterion's macros write public functions")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ferrotune_benches::workload::Shape;
use ferrotune_nn::libtorch::tch::{Kind, Tensor, no_grad_guard};
use ferrotune_nn::{Ctx, KvCache};
use std::sync::{Arc, Mutex};

const HELD: i64 = 128;

fn one_token(c: &mut Criterion) -> anyhow::Result<()> {
    let _guard = no_grad_guard();
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (name, kind) in [("fp32", Kind::Float), ("bf16", Kind::BFloat16)] {
        let model = Shape::SMALL.random(kind)?;
        let cache = Arc::new(Mutex::new(KvCache::new(HELD + 1)));
        let ctx = Ctx {
            cache: Some(cache.clone()),
            ..Ctx::eval()
        };
        let prompt: Vec<i64> = (0..HELD).collect();
        let _ = model.hidden(&Tensor::f_from_slice(&prompt)?.f_unsqueeze(0)?, &ctx)?;
        let next = Tensor::f_from_slice(&[7_i64])?.f_unsqueeze(0)?;
        group.bench_function(name, |b| {
            b.iter(|| {
                cache.lock().expect("nobody panicked").truncate(HELD);
                model.forward(&next, &ctx).expect("logits")
            });
        });
    }
    group.finish();
    Ok(())
}

fn all(c: &mut Criterion) {
    one_token(c).expect("decode");
}

criterion_group!(benches, all);
criterion_main!(benches);
