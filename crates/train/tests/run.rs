//! Single steps of a run, and the loop over them.
#![allow(clippy::unwrap_used)]

mod common;

use common::{apart, llama, random, streams, whole};
use ferrotune_data::Batch;
use ferrotune_nn::libtorch::tch::{Device, Kind, Reduction, Tensor};
use ferrotune_nn::module::{params, set_trainable, trainable};
use ferrotune_nn::{Ctx, Decoder, Factory, Linear, module};
use ferrotune_train::loss::causal_lm;
use ferrotune_train::observe::{EvaluationRow, Metrics, Progress};
use ferrotune_train::{
    AdamW, Error, Evaluation, Fit, Loss, Options, Packed, Repeat, Result, Run, Schedule, Step,
    prepare,
};
use std::cell::Cell;
use std::path::Path;

/// A user's own module.
#[derive(Debug)]
struct Net {
    fc1: Linear,
    fc2: Linear,
}
module!(Net { fc1, fc2 });

impl Net {
    fn new() -> Self {
        let factory = Factory::random(1, Kind::Float, Device::Cpu).unwrap();
        let net = Self {
            fc1: factory.linear("fc1", 3, 12, true, 0.5).unwrap(),
            fc2: factory.linear("fc2", 12, 1, true, 0.5).unwrap(),
        };
        set_trainable(&net, true).unwrap();
        net
    }

    fn forward(&self, x: &Tensor, ctx: &Ctx) -> ferrotune_nn::Result<Tensor> {
        self.fc2.forward(&self.fc1.forward(x, ctx)?.f_tanh()?, ctx)
    }
}

/// sin(a) + b·c on random points.
fn data() -> (Tensor, Tensor) {
    let x = random(&[64, 3], 2);
    let column = |i| x.narrow(1, i, 1);
    let y = column(0).sin() + column(1) * column(2);
    (x, y)
}

#[test]
fn a_users_own_module_learns_through_prepare() {
    let net = Net::new();
    let before: Vec<Tensor> = params(&net)
        .iter()
        .map(|(_, p)| p.tensor().detach().copy())
        .collect();
    let mut run = prepare(net, AdamW::new(0.02), Repeat::new([data()], 300)).unwrap();
    let mut losses = Vec::new();
    while let Some(step) = run
        .step(|net, batch, ctx| {
            let (x, y) = &**batch;
            Loss::mean(&net.forward(x, ctx)?.f_mse_loss(y, Reduction::Mean)?, 64)
        })
        .unwrap()
    {
        losses.push(step.loss);
    }
    assert_eq!(losses.len(), 300);
    assert!(
        losses[299] < 0.1 * losses[0],
        "{} to {}",
        losses[0],
        losses[299]
    );
    for ((path, param), before) in params(run.model()).iter().zip(&before) {
        assert!(
            apart(&param.tensor().detach(), before) > 1e-3,
            "{path} trained"
        );
    }
}

#[test]
fn clipping_scales_all_gradients_to_the_limit_and_reports_what_they_were() {
    let gradients_of = |clip: Option<f64>| {
        let mut run = prepare(Net::new(), Watch::default(), Repeat::new([data()], 1))
            .unwrap()
            .with(Options {
                clip,
                ..Options::default()
            })
            .unwrap();
        let step = run.step(|net, batch, ctx| {
            let (x, y) = &**batch;
            Loss::mean(&net.forward(x, ctx)?.f_mse_loss(y, Reduction::Mean)?, 64)
        });
        let seen = run
            .optimizer()
            .0
            .iter()
            .map(Tensor::copy)
            .collect::<Vec<_>>();
        (step.unwrap().unwrap().grad_norm, seen)
    };
    let norm_of = |gradients: &[Tensor]| -> f64 {
        let squares = gradients
            .iter()
            .map(|g| g.square().sum(None).double_value(&[]));
        squares.sum::<f64>().sqrt()
    };
    let (norm, free) = gradients_of(None);
    assert!((norm - norm_of(&free)).abs() < 1e-6 && norm > 0.5, "{norm}");
    let (again, clipped) = gradients_of(Some(0.25));
    assert_eq!(norm, again, "the norm before clipping");
    assert!((norm_of(&clipped) - 0.25).abs() < 1e-5);
    for (free, clipped) in free.iter().zip(&clipped) {
        assert!(
            apart(&(free * (0.25 / norm)), clipped) < 1e-6,
            "the direction stays"
        );
    }
}

/// An optimizer that keeps the gradients it is given.
#[derive(Debug, Default)]
struct Watch(Vec<Tensor>, Vec<(String, ferrotune_nn::Param)>);

impl ferrotune_train::Optimizer for Watch {
    fn bind(&mut self, params: &[(String, ferrotune_nn::Param)]) -> Result<()> {
        self.1 = params.to_vec();
        Ok(())
    }
    fn lr(&self) -> f64 {
        1.0
    }
    fn step(&mut self, _: f64) -> Result<()> {
        self.0 = self
            .1
            .iter()
            .filter_map(|(_, p)| p.grad())
            .map(|g| g.copy())
            .collect();
        Ok(())
    }
    fn state(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }
    fn load_state(&mut self, _: &ferrotune_nn::Weights) -> Result<()> {
        Ok(())
    }
}

fn values(model: &Decoder) -> Vec<Tensor> {
    let all = params(model);
    all.iter()
        .map(|(_, p)| p.tensor().detach().copy())
        .collect()
}

#[test]
fn a_nan_ends_the_step_and_leaves_every_parameter() {
    for poisoned in ["loss", "gradient"] {
        let model = llama(1, Kind::Float);
        let loader = Packed::new(streams(4, Some(1)), 2).unwrap();
        let mut run = prepare(model, AdamW::new(0.1), loader).unwrap();
        run.step(causal_lm).unwrap().unwrap();
        let before = values(run.model());
        let error = run.step(|model, batch, ctx| {
            let loss = causal_lm(model, batch, ctx)?;
            let nan = match poisoned {
                "loss" => Tensor::from(f32::NAN),
                // √0 is 0 and its slope is not finite.
                _ => {
                    let zero = trainable(model)[0].1.tensor().f_sub(&before[0])?;
                    zero.f_square()?.f_sum(Kind::Float)?.f_sqrt()?
                }
            };
            let sum = loss.sum.f_add(&nan)?;
            Ok(Loss { sum, ..loss })
        });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains(poisoned) && error.ends_with("at step 2"),
            "{error}"
        );
        assert_eq!(values(run.model()), before);
        assert!(
            trainable(run.model())
                .iter()
                .all(|(_, p)| p.grad().is_none())
        );
        // The run itself is sound: the next step goes through.
        assert_eq!(run.step(causal_lm).unwrap().unwrap().step, 2);
    }
}

#[test]
fn what_cannot_train_is_named() {
    let frozen = Net::new();
    set_trainable(&frozen, false).unwrap();
    let loader = Repeat::new([data()], 1);
    let error = prepare(frozen, AdamW::new(0.1), loader).unwrap_err();
    assert!(matches!(error, Error::NothingTrains), "{error}");

    let mut masked = whole();
    masked.weights.fill(0.0);
    let loader = Repeat::new([masked], 1);
    let mut run = prepare(llama(1, Kind::Float), AdamW::new(0.1), loader).unwrap();
    let error = run
        .step(|model, batch, ctx| causal_lm(model, batch, ctx))
        .unwrap_err();
    assert!(matches!(error, Error::NoTarget { step: 1 }), "{error}");
}

#[test]
fn evaluation_is_the_weighted_mean_and_changes_nothing() {
    let loader = Packed::new(streams(4, Some(1)), 1).unwrap();
    let run = prepare(llama(1, Kind::Float), AdamW::new(0.1), loader).unwrap();
    let before = values(run.model());
    let judge = |batches: Vec<Batch>| run.evaluate(batches, causal_lm).unwrap();
    let one = judge(vec![whole()]);
    let parts = std::iter::from_fn({
        let mut streams = streams(3, Some(1));
        move || streams.next_batch()
    });
    let parts = judge(parts.map(|bins| Batch::collate(&bins)).collect());
    assert!((one.loss - parts.loss).abs() < 1e-5, "{one:?} {parts:?}");
    assert_eq!(one.tokens, parts.tokens);
    assert!((one.perplexity().ln() - one.loss).abs() < 1e-12 && one.loss > 3.0);
    assert_eq!(values(run.model()), before);
}

type LmRun = Run<Decoder, AdamW, Packed>;

fn lm_run(steps: u64) -> LmRun {
    let loader = Packed::new(streams(4, None), 1).unwrap();
    prepare(llama(1, Kind::Float), AdamW::new(3e-3), loader)
        .unwrap()
        .with(Options {
            schedule: Schedule::cosine(2, steps),
            ..Options::default()
        })
        .unwrap()
}

fn judge(run: &LmRun) -> Result<Evaluation> {
    run.evaluate([whole()], causal_lm)
}

fn lines<R: serde::de::DeserializeOwned>(path: &Path) -> Vec<R> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_fit_leaves_metrics_evaluations_a_curve_and_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (out, checkpoints) = (folder.path(), folder.path().join("checkpoints"));
    let fit = Fit {
        max_steps: Some(7),
        save_every: Some(2),
        eval_every: Some(3),
        ..Fit::new(&checkpoints)
    };
    let mut run = lm_run(7);
    let mut observers = (Progress::new("test"), Metrics::new(out));
    let ended = run
        .fit(
            &fit,
            causal_lm,
            Some(&mut judge),
            &mut [&mut observers.0, &mut observers.1],
            || false,
        )
        .unwrap();
    assert!(!ended.interrupted);
    assert_eq!(ended.checkpoint, checkpoints.join("step-00000007"));

    let steps: Vec<Step> = lines(&out.join("metrics.jsonl"));
    assert_eq!(
        steps.iter().map(|row| row.step).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7]
    );
    assert_eq!(
        steps.iter().map(|row| row.tokens).sum::<u64>(),
        run.tokens_seen()
    );
    assert!(
        steps
            .iter()
            .all(|row| row.tokens_per_s > 0.0 && row.grad_norm > 0.0)
    );
    assert!((steps[0].lr - 1.5e-3).abs() < 1e-12 && (steps[1].lr - 3e-3).abs() < 1e-12);
    let keys: serde_json::Value = lines(&out.join("metrics.jsonl")).remove(0);
    let keys: Vec<&String> = keys.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        ["step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s"]
    );

    let evaluations: Vec<EvaluationRow> = lines(&out.join("evaluations.jsonl"));
    assert_eq!(
        evaluations.iter().map(|row| row.step).collect::<Vec<_>>(),
        [3, 6, 7]
    );
    assert_eq!(ended.evaluation, Some(evaluations[2].evaluation));
    assert_eq!(ended.evaluation.unwrap().loss, judge(&run).unwrap().loss);

    let svg = std::fs::read_to_string(out.join("loss.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<circle").count() == 3);
    let mut kept: Vec<String> = std::fs::read_dir(&checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["step-00000006", "step-00000007"], "the newest two");

    let error = lm_run(7)
        .fit(&fit, causal_lm, None, &mut [], || false)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("step-00000007: a run begins here anew"),
        "{error}"
    );
}

#[test]
fn an_interrupted_fit_saves_first_and_goes_on_with_the_same_rows() {
    let whole_run = tempfile::tempdir().unwrap();
    let parted = tempfile::tempdir().unwrap();
    let fit = |folder: &Path| Fit {
        max_steps: Some(9),
        eval_every: Some(4),
        ..Fit::new(folder.join("checkpoints"))
    };
    let carry_out = |folder: &Path, run: &mut LmRun, stop_after: u64| {
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > stop_after
        };
        let mut metrics = Metrics::new(folder);
        run.fit(
            &fit(folder),
            causal_lm,
            Some(&mut judge),
            &mut [&mut metrics],
            stop,
        )
        .unwrap()
    };
    assert!(!carry_out(whole_run.path(), &mut lm_run(9), 100).interrupted);

    let first = carry_out(parted.path(), &mut lm_run(9), 5);
    assert!(first.interrupted);
    assert!(first.checkpoint.ends_with("step-00000005"));
    // A step after the checkpoint whose row was written half.
    let metrics = parted.path().join("metrics.jsonl");
    let mut text = std::fs::read_to_string(&metrics).unwrap();
    text.push_str("{\"step\":6,\"loss\":1.0,\"lr\":1.0,\"grad_norm\":1.0,\"tokens\":1,\"tokens_per_s\":1.0}\n{\"st");
    std::fs::write(&metrics, text).unwrap();
    let mut run = lm_run(9);
    run.resume(&first.checkpoint).unwrap();
    assert!(!carry_out(parted.path(), &mut run, 100).interrupted);

    let numbers = |folder: &Path| -> Vec<(u64, f64, f64, f64, u64)> {
        let rows: Vec<Step> = lines(&folder.join("metrics.jsonl"));
        let row = |r: Step| (r.step, r.loss, r.lr, r.grad_norm, r.tokens);
        rows.into_iter().map(row).collect()
    };
    assert_eq!(numbers(parted.path()), numbers(whole_run.path()));
    let judged = |folder: &Path| lines::<EvaluationRow>(&folder.join("evaluations.jsonl"));
    assert_eq!(judged(parted.path()), judged(whole_run.path()));
}
