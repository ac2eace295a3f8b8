//! Chunked cross-entropy beside the whole one, and micro-batches beside the large batch.
#![allow(clippy::unwrap_used)]

mod common;

use common::{apart, llama, random, streams, whole};
use ferrotune_data::Batch;
use ferrotune_nn::libtorch::autograd::backward;
use ferrotune_nn::libtorch::tch::{Device, Kind, Reduction, Tensor, no_grad_guard};
use ferrotune_nn::module::{set_trainable, trainable};
use ferrotune_nn::{Ctx, Dense, Linear, LinearOp, Param, Result, Shard, Visitor};
use ferrotune_train::loss::{causal_lm, chunked_cross_entropy};
use ferrotune_train::{AdamW, Options, Packed, prepare};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A dense operator that remembers the most rows it was ever given.
#[derive(Debug)]
struct Watched(Dense, Arc<AtomicI64>);

impl LinearOp for Watched {
    fn shape(&self) -> (i64, i64) {
        self.0.shape()
    }
    fn device(&self) -> Device {
        self.0.device()
    }
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.1.fetch_max(x.size()[0], Ordering::SeqCst);
        self.0.apply(x)
    }
    fn apply_transposed(&self, y: &Tensor) -> Result<Tensor> {
        self.0.apply_transposed(y)
    }
    fn dense(&self) -> Result<Tensor> {
        self.0.dense()
    }
    fn set_dense(&mut self, weight: &Tensor) -> Result<()> {
        self.0.set_dense(weight)
    }
    fn shard(&self, shard: Shard) -> Result<Box<dyn LinearOp>> {
        self.0.shard(shard)
    }
    fn visit(&self, path: &str, visitor: &mut dyn Visitor) {
        self.0.visit(path, visitor);
    }
}

#[test]
fn chunks_give_the_value_and_the_gradients_of_the_whole() {
    // 37 tokens in chunks of 8: the last is short.
    let (tokens, hidden, vocab, chunk) = (37, 6, 11, 8);
    let most = Arc::new(AtomicI64::new(0));
    let weight = Param::new(random(&[vocab, hidden], 1));
    let head = Linear::new(Box::new(Watched(Dense::new(weight), most.clone())), None);
    set_trainable(&head, true).unwrap();
    let states = random(&[tokens, hidden], 2).set_requires_grad(true);
    let labels = Tensor::from_slice(&(0..tokens).map(|i| i * 5 % vocab).collect::<Vec<_>>());
    let weights = random(&[tokens], 3).abs();

    let ctx = Ctx::eval();
    let seed = Tensor::from(0.25_f32);
    let loss = chunked_cross_entropy(&head, &states, &labels, &weights, &ctx, chunk).unwrap();
    assert_eq!(
        most.load(Ordering::SeqCst),
        chunk,
        "no more logits at a time"
    );
    backward(&[&loss], &[Some(&seed)], false).unwrap();
    assert_eq!(most.load(Ordering::SeqCst), chunk, "nor in backward");
    let found = [
        states.grad().copy(),
        trainable(&head)[0].1.grad().unwrap().copy(),
    ];

    let states = states.detach().set_requires_grad(true);
    trainable(&head)[0].1.set_grad(None).unwrap();
    let logits = head.forward(&states, &ctx).unwrap();
    let each = logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::None, -100, 0.0);
    let whole = each.dot(&weights);
    backward(&[&whole], &[Some(&seed)], false).unwrap();
    assert!(apart(&loss, &whole) < 1e-5 * whole.double_value(&[]));
    assert!(whole.double_value(&[]) > 10.0);
    assert!(apart(&found[0], &states.grad()) < 1e-6);
    assert!(apart(&found[1], &trainable(&head)[0].1.grad().unwrap()) < 1e-5);
}

#[test]
fn without_a_graph_there_is_a_value_and_no_gradient() {
    let model = llama(1, Kind::Float);
    let batch = whole();
    let trained = causal_lm(&model, &batch, &Ctx::eval()).unwrap();
    assert!(trained.sum.requires_grad());
    let _guard = no_grad_guard();
    let judged = causal_lm(&model, &batch, &Ctx::eval()).unwrap();
    assert!(!judged.sum.requires_grad());
    assert_eq!(judged.sum, trained.sum.detach());
}

#[test]
fn a_packed_batch_costs_what_its_sequences_cost_alone() {
    let model = llama(2, Kind::Float);
    let batch = whole();
    assert!(batch.cu_seqlens.len() == 41, "forty sequences in one row");
    let packed = causal_lm(&model, &batch, &Ctx::eval()).unwrap();
    let mut alone = 0.0;
    let mut weight = 0.0;
    for example in common::dataset(40).examples() {
        let ids: Vec<i64> = example.ids.iter().map(|id| i64::from(*id)).collect();
        let logits = model
            .forward(&Tensor::from_slice(&ids).unsqueeze(0), &Ctx::eval())
            .unwrap();
        let probabilities = logits.squeeze_dim(0).log_softmax(-1, Kind::Double);
        for (i, w) in example.weights.iter().enumerate().skip(1) {
            alone -= f64::from(*w) * probabilities.double_value(&[i as i64 - 1, ids[i]]);
            weight += f64::from(*w);
        }
    }
    assert_eq!(packed.weight, weight);
    let packed = packed.sum.double_value(&[]);
    assert!((packed - alone).abs() < 1e-5 * alone, "{packed} {alone}");
}

#[test]
fn a_batch_of_nothing_weighs_nothing() {
    let loss = causal_lm(&llama(1, Kind::Float), &Batch::default(), &Ctx::eval()).unwrap();
    assert_eq!(
        (loss.weight, loss.tokens, loss.sum.double_value(&[])),
        (0.0, 0, 0.0)
    );
}

/// Losses and final parameters of a run of two epochs.
fn run(accumulate: usize, checkpointing: bool) -> (Vec<f64>, Vec<Tensor>) {
    let loader = Packed::new(streams(6, Some(2)), accumulate).unwrap();
    let mut run = prepare(llama(3, Kind::Float), AdamW::new(3e-3), loader)
        .unwrap()
        .with(Options {
            checkpointing,
            ..Options::default()
        })
        .unwrap();
    let mut losses = Vec::new();
    while let Some(step) = run.step(causal_lm).unwrap() {
        losses.push(step.loss);
    }
    let params = trainable(run.model());
    (
        losses,
        params.iter().map(|(_, p)| p.tensor().detach()).collect(),
    )
}

#[test]
fn micro_batches_of_unequal_weight_equal_the_large_batch() {
    let (losses, params) = run(1, false);
    assert!(
        losses.len() >= 4 && losses[0] - losses[losses.len() - 1] > 0.1,
        "{losses:?}"
    );
    for accumulate in [2, 4, 6] {
        let (again, others) = run(accumulate, false);
        for (a, b) in losses.iter().zip(&again) {
            assert!(
                (a - b).abs() < 1e-5 * a,
                "{accumulate}: {losses:?} {again:?}"
            );
        }
        for (a, b) in params.iter().zip(&others) {
            assert!(apart(a, b) < 1e-4, "{accumulate}");
        }
    }
}

#[test]
fn recomputation_changes_no_bit() {
    assert_eq!(run(2, false), run(2, true));
}
