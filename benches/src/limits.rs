//! What the work needs at least, and what the machine can do: the limit that a time is measured by.

use crate::workload::Shape;
use anyhow::Result;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor, no_grad_guard};
use serde::{Deserialize, Serialize};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Floating-point operations of the matrix products, and bytes between memory and cores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// A multiplication and an addition are two.
    pub flops: f64,
    /// What cannot be avoided without fusing operators: each tensor once written and once read.
    pub bytes: f64,
}

/// A LoRA training step of `batch` rows of `length` tokens with an adapter of rank `r` on queries
/// and values, `element` bytes a value.
///
/// The base is frozen, so its backward has the gradient of the input only: as many operations as
/// forward, and none for the first block's projections of what nobody trains.
pub fn lora_step(shape: Shape, batch: usize, length: usize, r: i64, element: i64) -> Work {
    let float = |n: i64| n as f64;
    let tokens = (batch * length) as f64;
    let (hidden, inner, layers) = (
        float(shape.hidden),
        float(shape.intermediate),
        float(shape.layers),
    );
    let kv = float(shape.kv_heads * shape.head_dim());
    let qkv = hidden * (hidden + 2.0 * kv);
    let layer = qkv + hidden * hidden + 3.0 * hidden * inner;
    let weights = layers * layer + hidden * float(shape.vocab);
    let dense = 2.0 * tokens * (2.0 * weights - qkv);
    // Two products forward and five backward (the scores are computed again), half of them masked.
    let attention = 7.0 * tokens * length as f64 * hidden * layers;
    let adapter = 6.0 * tokens * float(r) * (3.0 * hidden + kv) * layers;
    // A layer keeps two norms, q, k, v, attention and two sums, and four widths of the MLP; in
    // backward each is read and its gradient written and read.
    let activations = tokens * layers * (6.0 * hidden + 2.0 * kv + 4.0 * inner) * 4.0;
    // fp32 whatever the model is, once in each direction.
    let logits = tokens * float(shape.vocab) * 4.0 * 4.0;
    Work {
        flops: dense + attention + adapter,
        bytes: float(element) * (2.0 * weights + activations) + logits,
    }
}

/// One new token after `context` others: every weight and the cache are read once.
pub fn decode(shape: Shape, context: usize, element: i64) -> Work {
    let float = |n: i64| n as f64;
    let kv = float(shape.kv_heads * shape.head_dim());
    let (hidden, inner) = (float(shape.hidden), float(shape.intermediate));
    let layer = hidden * (2.0 * hidden + 2.0 * kv + 3.0 * inner);
    let weights = float(shape.layers) * layer + hidden * float(shape.vocab);
    let cache = float(shape.layers) * 2.0 * kv * context as f64;
    Work {
        flops: 2.0 * weights + 4.0 * float(shape.layers) * hidden * context as f64,
        bytes: float(element) * (weights + cache),
    }
}

/// What the machine did just now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Of a matrix product 1024³ by libtorch, operations a second.
    pub flops: f64,
    /// Of a plain read of 256 MiB, bytes a second.
    pub bytes: f64,
}

/// The machine's speed, the best of a tenth of a second for each figure.
#[derive(Debug)]
pub struct Gauge {
    a: Tensor,
    b: Tensor,
    memory: Vec<u64>,
    threads: usize,
}

impl Gauge {
    /// Operands in `kind`; libtorch's threads are set already, `threads` are those of the read.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(kind: Kind, threads: usize) -> Result<Self> {
        let random = || Tensor::f_randn([1024, 1024], (Kind::Float, Device::Cpu))?.f_to_kind(kind);
        Ok(Self {
            a: random()?,
            b: random()?,
            memory: vec![1; 256 << 17],
            threads,
        })
    }

    /// Measures.
    ///
    /// # Errors
    /// libtorch's.
    pub fn measure(&self) -> Result<Machine> {
        let _guard = no_grad_guard();
        let product = best(|| {
            let _ = black_box(self.a.f_matmul(&self.b)?);
            Ok(())
        })?;
        let read = best(|| {
            let part = self.memory.len().div_ceil(self.threads);
            std::thread::scope(|scope| {
                for part in self.memory.chunks(part) {
                    let sum = || part.iter().fold(0_u64, |sum, n| sum.wrapping_add(*n));
                    scope.spawn(move || black_box(sum()));
                }
            });
            Ok(())
        })?;
        Ok(Machine {
            flops: 2.0 * 1024_f64.powi(3) / product.as_secs_f64(),
            bytes: (self.memory.len() * 8) as f64 / read.as_secs_f64(),
        })
    }
}

fn best(mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
    let begin = Instant::now();
    let mut best = Duration::MAX;
    while begin.elapsed() < Duration::from_millis(100) {
        let begin = Instant::now();
        work()?;
        best = best.min(begin.elapsed());
    }
    Ok(best)
}
