//! The awkward pairs: adapters with row and column splits, low-bit operators, checkpointing.
#![allow(clippy::unwrap_used)]

use ferrotune_lora::{LoraConfig, attach, train_only};
use ferrotune_nn::libtorch::autograd::backward;
use ferrotune_nn::libtorch::random::Generator;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::module::{params, trainable};
use ferrotune_nn::{
    Block, Checkpoint, Ctx, Factory, Linear, LinearOp, Module, Placement, Result, Shard, Split,
    Visitor, module,
};
use std::sync::{Arc, Barrier, Mutex};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

fn config(targets: &[&str]) -> LoraConfig {
    LoraConfig {
        r: 3,
        lora_alpha: 7.0,
        target_modules: ferrotune_lora::Targets::Names(
            targets.iter().map(|t| t.to_string()).collect(),
        ),
        ..LoraConfig::default()
    }
}

/// Adapters start with B = 0; tests want them to matter.
fn shake(module: &dyn Module, seed: u64) {
    let rng = Generator::new(Device::Cpu, seed).unwrap();
    for (path, param) in params(module) {
        if path.contains("lora_B") {
            let mut value = param.tensor().detach().empty_like();
            rng.normal(&mut value, 0.0, 0.4).unwrap();
            param.assign(&value).unwrap();
        }
    }
}

fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut tensor = Tensor::zeros(shape, CPU);
    Generator::new(Device::Cpu, seed)
        .unwrap()
        .normal(&mut tensor, 0.0, 1.0)
        .unwrap();
    tensor
}

fn close(a: &Tensor, b: &Tensor, tolerance: f64) {
    assert_eq!(a.size(), b.size());
    let scale = b.std(false).double_value(&[]);
    let worst = (a - b).abs().max().double_value(&[]) / scale;
    assert!(
        scale > 0.0 && worst < tolerance,
        "differ by {worst} of a deviation of {scale}"
    );
}

struct Single {
    proj: Linear,
}
module!(Single { proj });

fn adapted(bias: bool) -> Single {
    let factory = Factory::random(3, Kind::Float, Device::Cpu).unwrap();
    let mut single = Single {
        proj: factory.linear("proj", 12, 10, bias, 0.5).unwrap(),
    };
    attach(&mut single, "default", &config(&["proj"]), 4).unwrap();
    shake(&single, 5);
    if let Some(bias) = single.proj.bias() {
        bias.assign(&random(&[10], 6)).unwrap();
    }
    single
}

/// Two ranks in two threads; the reduction adds what both bring.
#[derive(Debug)]
struct FakeGroup {
    parts: Mutex<Vec<Tensor>>,
    barrier: Barrier,
}

impl FakeGroup {
    fn all_reduce(&self, part: Tensor) -> Tensor {
        self.parts.lock().unwrap().push(part);
        self.barrier.wait();
        let parts = self.parts.lock().unwrap();
        &parts[0] + &parts[1]
    }
}

#[derive(Debug)]
struct RowSplit(Arc<FakeGroup>, i64);

impl Placement for RowSplit {
    fn enter(&self, x: &Tensor) -> Result<Tensor> {
        Shard {
            split: Split::In,
            rank: self.1,
            world: 2,
        }
        .of(x, x.dim() as i64 - 1)
    }
    fn leave(&self, y: Tensor) -> Result<Tensor> {
        Ok(self.0.all_reduce(y))
    }
}

#[test]
fn an_adapter_on_a_row_split_linear_is_reduced_with_it() {
    let x = random(&[2, 5, 12], 7);
    let whole = adapted(true).proj.forward(&x, &Ctx::eval()).unwrap();
    let base = {
        let mut ctx = Ctx::eval();
        ctx.adapters = ferrotune_nn::Adapters::Off;
        adapted(true).proj.forward(&x, &ctx).unwrap()
    };
    assert!(
        (&whole - &base).abs().max().double_value(&[]) > 0.5,
        "the adapter matters"
    );
    let group = Arc::new(FakeGroup {
        parts: Mutex::default(),
        barrier: Barrier::new(2),
    });
    let results: Vec<Tensor> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..2)
            .map(|rank| {
                let (group, x) = (group.clone(), x.shallow_clone());
                scope.spawn(move || {
                    let mut single = adapted(true);
                    let shard = Shard {
                        split: Split::In,
                        rank,
                        world: 2,
                    };
                    single
                        .proj
                        .place(shard, Box::new(RowSplit(group, rank)))
                        .unwrap();
                    assert_eq!(single.proj.op().shape(), (10, 6));
                    single.proj.forward(&x, &Ctx::eval()).unwrap()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    for result in results {
        close(&result, &whole, 1e-5);
    }
}

#[derive(Debug)]
struct ColumnSplit;
impl Placement for ColumnSplit {
    fn enter(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.shallow_clone())
    }
    fn leave(&self, y: Tensor) -> Result<Tensor> {
        Ok(y)
    }
}

#[test]
fn an_adapter_on_a_column_split_linear_gives_its_columns() {
    let x = random(&[4, 12], 8);
    let whole = adapted(true).proj.forward(&x, &Ctx::eval()).unwrap();
    let parts: Vec<Tensor> = (0..2)
        .map(|rank| {
            let mut single = adapted(true);
            let shard = Shard {
                split: Split::Out,
                rank,
                world: 2,
            };
            train_only(&mut single, "default").unwrap();
            single.proj.place(shard, Box::new(ColumnSplit)).unwrap();
            assert_eq!(trainable(&single).len(), 2, "parts train as the whole did");
            single.proj.forward(&x, &Ctx::eval()).unwrap()
        })
        .collect();
    close(&Tensor::cat(&parts, -1), &whole, 1e-5);
}

/// Eight-bit rows: an operator whose weight is no dense float parameter.
#[derive(Debug)]
struct RowInt8 {
    codes: Tensor,
    scales: Tensor,
}

// SAFETY: the test reads these tensors only.
unsafe impl Sync for RowInt8 {}

impl RowInt8 {
    fn new(weight: &Tensor) -> Self {
        let scales = weight.abs().amax([1], true) / 127.0;
        Self {
            codes: (weight / &scales).round().to_kind(Kind::Int8),
            scales,
        }
    }
}

impl LinearOp for RowInt8 {
    fn shape(&self) -> (i64, i64) {
        self.codes.size2().unwrap()
    }
    fn device(&self) -> Device {
        self.codes.device()
    }
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_matmul(&self.dense()?.f_transpose(0, 1)?)?)
    }
    fn apply_transposed(&self, y: &Tensor) -> Result<Tensor> {
        Ok(y.f_matmul(&self.dense()?)?)
    }
    fn dense(&self) -> Result<Tensor> {
        Ok(self.codes.to_kind(Kind::Float) * &self.scales)
    }
    fn set_dense(&mut self, weight: &Tensor) -> Result<()> {
        *self = Self::new(weight);
        Ok(())
    }
    fn shard(&self, shard: Shard) -> Result<Box<dyn LinearOp>> {
        let dim = if shard.split == Split::Out { 0 } else { 1 };
        Ok(Box::new(Self::new(&shard.of(&self.dense()?, dim)?)))
    }
    fn visit(&self, _: &str, _: &mut dyn Visitor) {}
}

#[test]
fn an_adapter_over_a_low_bit_operator_trains_and_merges() {
    let mut single = adapted(false);
    let op = RowInt8::new(&single.proj.op().dense().unwrap());
    let dequantized = op.dense().unwrap();
    single.proj.set_op(Box::new(op)).unwrap();
    train_only(&mut single, "default").unwrap();
    assert_eq!(trainable(&single).len(), 2);
    let x = random(&[6, 12], 9).set_requires_grad(true);
    let y = single.proj.forward(&x, &Ctx::eval()).unwrap();
    backward(&[&y.square().sum(None)], &[None], false).unwrap();
    for (path, param) in trainable(&single) {
        assert!(
            param.grad().unwrap().abs().max().double_value(&[]) > 0.0,
            "{path}"
        );
    }
    let delta = single.proj.adapters()[0].adapter.weight_delta().unwrap();
    let dense = x.detach().matmul(&(dequantized + delta).transpose(0, 1));
    close(&y.detach(), &dense, 1e-5);
    ferrotune_lora::merge(&mut single, "default").unwrap();
    // Merging requantizes: half a step of eight bits is all that may be lost.
    close(
        &single.proj.forward(&x.detach(), &Ctx::eval()).unwrap(),
        &dense,
        0.03,
    );
}

struct Gated {
    up: Linear,
    down: Linear,
}
module!(Gated { up, down });

impl Block for Gated {
    fn forward(&self, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        let inner = self.up.forward(x, ctx)?.f_silu()?;
        Ok(x.f_add(&self.down.forward(&ctx.dropout(&inner, 0.2)?, ctx)?)?)
    }
}

/// Losses and gradients of two blocks with adapters and dropout, the second run of two masks.
fn run(checkpointed: bool, tied: bool) -> (f64, Vec<(String, Tensor)>) {
    let factory = Factory::random(1, Kind::Float, Device::Cpu).unwrap();
    let block = |name: &str| {
        let factory = factory.at(name);
        let mut block = Gated {
            up: factory.linear("up", 8, 16, true, 0.4).unwrap(),
            down: factory.linear("down", 16, 8, true, 0.4).unwrap(),
        };
        let mut settings = config(&["up", "down"]);
        settings.lora_dropout = 0.3;
        attach(&mut block, "default", &settings, 2).unwrap();
        shake(&block, 3);
        train_only(&mut block, "default").unwrap();
        Arc::new(block)
    };
    let first = block("0");
    let blocks = if tied {
        vec![first.clone(), first]
    } else {
        vec![first, block("1")]
    };
    let mut ctx = Ctx::train(Generator::new(Device::Cpu, 77).unwrap());
    if checkpointed {
        ctx.runner = Arc::new(Checkpoint::<ferrotune_nn::Direct>::default());
    }
    let mut x = random(&[3, 4, 8], 10);
    for (i, block) in blocks.iter().enumerate() {
        x = ctx
            .runner
            .run(&format!("layers.{i}"), block.clone(), &x, &ctx)
            .unwrap();
    }
    let loss = x.square().mean(None);
    backward(&[&loss], &[None], false).unwrap();
    // What follows must draw the same numbers too.
    let after = ctx.rng.unwrap().state().unwrap();
    let mut gradients: Vec<(String, Tensor)> = trainable(&blocks)
        .into_iter()
        .map(|(path, param)| (path, param.grad().unwrap()))
        .collect();
    gradients.push(("rng".to_owned(), after));
    (loss.double_value(&[]), gradients)
}

#[test]
fn checkpointing_changes_no_gradient() {
    for tied in [false, true] {
        let (plain, expected) = run(false, tied);
        let (again, found) = run(true, tied);
        assert_eq!(plain, again);
        assert_eq!(expected.len(), if tied { 4 } else { 8 } + 1);
        for ((path, expected), (_, found)) in expected.iter().zip(&found) {
            assert!(
                expected.abs().max().double_value(&[]) > 0.0,
                "{path} has a gradient"
            );
            assert_eq!(found, expected, "{path}");
        }
    }
}

#[test]
fn dropout_differs_between_steps_and_is_off_at_evaluation() {
    let mut single = adapted(false);
    single.proj.adapters_mut().clear();
    let mut settings = config(&["proj"]);
    settings.lora_dropout = 0.5;
    attach(&mut single, "default", &settings, 1).unwrap();
    shake(&single, 2);
    let x = random(&[4, 12], 3);
    let train = Ctx::train(Generator::new(Device::Cpu, 1).unwrap());
    let first = single.proj.forward(&x, &train).unwrap();
    assert_ne!(first, single.proj.forward(&x, &train).unwrap());
    let eval = single.proj.forward(&x, &Ctx::eval()).unwrap();
    assert_eq!(eval, single.proj.forward(&x, &Ctx::eval()).unwrap());
    // Over many masks the mean is the value without dropout.
    let mean = (0..4000).fold(Tensor::zeros_like(&eval), |sum, _| {
        sum + single.proj.forward(&x, &train).unwrap()
    }) / 4000.0;
    close(&mean, &eval, 0.15);
    assert!(
        single
            .proj
            .forward(
                &x,
                &Ctx {
                    train: true,
                    ..Ctx::eval()
                }
            )
            .is_err(),
        "no rng"
    );
}

#[test]
fn rows_of_a_batch_may_take_different_adapters() {
    let mut single = adapted(false);
    attach(&mut single, "other", &config(&["proj"]), 40).unwrap();
    shake(&single, 41);
    let x = random(&[3, 2, 12], 42);
    let row = |i: i64, adapters| {
        let ctx = Ctx {
            adapters,
            ..Ctx::eval()
        };
        single.proj.forward(&x.narrow(0, i, 1), &ctx).unwrap()
    };
    use ferrotune_nn::Adapters::{Named, Off, PerRow};
    let expected = Tensor::cat(
        &[
            row(0, Named(vec!["other".into()])),
            row(1, Off),
            row(2, Named(vec!["default".into()])),
        ],
        0,
    );
    let names = vec![Some("other".to_owned()), None, Some("default".to_owned())];
    let ctx = Ctx {
        adapters: PerRow(names),
        ..Ctx::eval()
    };
    close(&single.proj.forward(&x, &ctx).unwrap(), &expected, 1e-6);
    let ctx = Ctx {
        adapters: PerRow(vec![None]),
        ..Ctx::eval()
    };
    assert!(
        single
            .proj
            .forward(&x, &ctx)
            .unwrap_err()
            .to_string()
            .contains("1 adapter names for 3 rows")
    );
}
