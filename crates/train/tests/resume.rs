//! Checkpoints: exact, whole or not there, and refused when they do not fit.
#![allow(clippy::unwrap_used)]

mod common;

use common::{llama, streams};
use ferrotune_lora::{LoraConfig, attach, peft, train_only};
use ferrotune_nn::libtorch::tch::{Kind, Tensor};
use ferrotune_nn::module::trainable;
use ferrotune_nn::{Decoder, Weights, weights};
use ferrotune_train::artifact::Adapter;
use ferrotune_train::loss::causal_lm;
use ferrotune_train::{AdamW, Options, Packed, Run, Schedule, checkpoint, prepare};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

type LmRun = Run<Decoder, AdamW, Packed>;

fn options() -> Options {
    Options {
        schedule: Schedule::cosine(3, 20),
        seed: 9,
        ..Options::default()
    }
}

/// An adapter with dropout on a frozen model.
fn adapter_run(kind: Kind, r: i64) -> LmRun {
    let mut model = llama(1, kind);
    let config = LoraConfig {
        r,
        lora_alpha: 9.0,
        lora_dropout: 0.2,
        target_modules: ["q_proj", "v_proj", "down_proj"].into(),
        ..LoraConfig::default()
    };
    attach(&mut model, peft::DEFAULT, &config, 4).unwrap();
    train_only(&mut model, peft::DEFAULT).unwrap();
    let loader = Packed::new(streams(5, None), 2).unwrap();
    let artifact = Adapter {
        name: peft::DEFAULT.to_owned(),
        config,
    };
    let run = prepare(model, AdamW::new(1e-2), loader).unwrap();
    run.with(options()).unwrap().saving(artifact)
}

/// All of a model.
fn model_run(kind: Kind) -> LmRun {
    let loader = Packed::new(streams(5, None), 2).unwrap();
    let run = prepare(llama(1, kind), AdamW::new(3e-3), loader).unwrap();
    run.with(options()).unwrap()
}

fn take(run: &mut LmRun, steps: usize) -> Vec<(u64, f64, f64)> {
    (0..steps)
        .map(|_| run.step(causal_lm).unwrap().unwrap())
        .map(|step| (step.step, step.loss, step.grad_norm))
        .collect()
}

fn params(run: &LmRun) -> Vec<Tensor> {
    let all = trainable(run.model());
    all.iter()
        .map(|(_, p)| p.tensor().detach().copy())
        .collect()
}

/// Stops and goes on twice, each time in a new run.
fn resumes_exactly(make: impl Fn() -> LmRun) {
    let mut whole = make();
    let losses = take(&mut whole, 16);
    assert!(
        losses.windows(2).all(|pair| pair[0].1 != pair[1].1),
        "{losses:?}"
    );

    let folder = tempfile::tempdir().unwrap();
    let mut parts = Vec::new();
    let mut saved: Option<PathBuf> = None;
    for steps in [5, 7, 4] {
        let mut run = make();
        if let Some(path) = &saved {
            run.resume(path).unwrap();
        }
        parts.extend(take(&mut run, steps));
        saved = Some(run.save(folder.path()).unwrap());
        // What is done after a checkpoint does not reach it.
        take(&mut run, 2);
    }
    assert_eq!(parts, losses, "bit for bit");
    let mut last = make();
    last.resume(&saved.unwrap()).unwrap();
    assert_eq!(params(&last), params(&whole));
    assert_eq!(last.tokens_seen(), whole.tokens_seen());
}

#[test]
fn an_adapter_with_dropout_resumes_bit_for_bit() {
    resumes_exactly(|| adapter_run(Kind::Float, 3));
    resumes_exactly(|| adapter_run(Kind::BFloat16, 3));
}

#[test]
fn a_whole_model_resumes_bit_for_bit_with_fp32_masters_under_bf16() {
    resumes_exactly(|| model_run(Kind::Float));
    resumes_exactly(|| model_run(Kind::BFloat16));
}

#[test]
fn checkpoints_are_what_others_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = adapter_run(Kind::Float, 3);
    take(&mut run, 1);
    let path = run.save(folder.path()).unwrap();
    let mut model = llama(1, Kind::Float);
    let config = peft::load(&mut model, peft::DEFAULT, &path).unwrap();
    assert_eq!((config.r, config.lora_alpha), (3, 9.0));

    let run = model_run(Kind::Float);
    let path = run.save(folder.path()).unwrap();
    let names = Weights::open(&path).unwrap().names();
    assert!(
        names.contains(&"model.layers.1.mlp.gate_proj.weight".to_owned()),
        "{names:?}"
    );
    let envelope = checkpoint::read(&path).unwrap();
    assert_eq!(
        (envelope.format, envelope.step, envelope.world_size),
        (1, 0, 1)
    );
    let files: Vec<&str> = envelope.files.keys().map(String::as_str).collect();
    assert_eq!(
        files,
        [
            weights::SINGLE_FILE,
            "optimizer.safetensors",
            "rng-00000.safetensors"
        ]
    );
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = adapter_run(Kind::Float, 3);
    take(&mut run, 2);
    let path = run.save(folder.path()).unwrap();

    let mut other = adapter_run(Kind::Float, 2);
    let before = params(&other);
    let error = other.resume(&path).unwrap_err().to_string();
    assert!(
        error.contains("lora_A") && error.contains("[3, 24]"),
        "{error}"
    );
    assert_eq!(params(&other), before);

    let loader = Packed::new(streams(6, None), 2).unwrap();
    let mut model = llama(1, Kind::Float);
    attach(
        &mut model,
        peft::DEFAULT,
        &LoraConfig {
            target_modules: "all-linear".into(),
            ..LoraConfig::default()
        },
        1,
    )
    .unwrap();
    train_only(&mut model, peft::DEFAULT).unwrap();
    let mut other = prepare(model, AdamW::new(1e-2), loader).unwrap();
    let error = other.resume(&path).unwrap_err().to_string();
    assert!(
        error.contains("global_batch was 5") && error.contains("6 now"),
        "{error}"
    );
}

#[test]
fn a_damaged_checkpoint_is_found_out_and_the_one_before_it_taken() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = adapter_run(Kind::Float, 3);
    take(&mut run, 1);
    let good = run.save(folder.path()).unwrap();
    take(&mut run, 1);
    let newest = run.save(folder.path()).unwrap();
    let found = |expected: &Path, reasons: &[&str]| {
        let (latest, damaged) = checkpoint::latest(folder.path()).unwrap();
        assert_eq!(latest.as_deref(), Some(expected));
        let damaged: Vec<String> = damaged.iter().map(ToString::to_string).collect();
        assert_eq!(damaged.len(), reasons.len(), "{damaged:?}");
        for (damaged, reason) in damaged.iter().zip(reasons) {
            assert!(
                damaged.contains("step-00000002") && damaged.contains(reason),
                "{damaged}"
            );
        }
    };
    found(&newest, &[]);

    let file = newest.join("optimizer.safetensors");
    let bytes = fs::read(&file).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    fs::write(&file, &flipped).unwrap();
    found(&good, &["optimizer.safetensors is damaged"]);
    assert!(adapter_run(Kind::Float, 3).resume(&newest).is_err());
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    found(&good, &["optimizer.safetensors is damaged"]);
    fs::remove_file(&file).unwrap();
    found(&good, &["optimizer.safetensors is missing"]);
    fs::write(&file, &bytes).unwrap();
    found(&newest, &[]);

    let envelope = newest.join("envelope.json");
    let text = fs::read_to_string(&envelope).unwrap();
    fs::write(&envelope, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    found(&good, &["format 2, this version reads 1"]);
    fs::write(&envelope, &text[..text.len() / 2]).unwrap();
    found(&good, &["envelope.json"]);
    fs::remove_file(&envelope).unwrap();
    found(&good, &["envelope.json"]);
}

const CHILD: &str = "FERROTUNE_TEST_SAVES_BELOW";

/// Not a test of its own: what the killed processes below do.
#[test]
fn saves_until_killed() {
    let Some(folder) = std::env::var_os(CHILD) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let mut run = model_run(Kind::Float);
    if let (Some(path), _) = checkpoint::latest(&folder).unwrap() {
        run.resume(&path).unwrap();
    }
    loop {
        take(&mut run, 1);
        run.save(&folder).unwrap();
        checkpoint::prune(&folder, 2).unwrap();
    }
}

#[test]
fn a_process_killed_while_saving_leaves_a_checkpoint_that_resumes_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let mut reached = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "saves_until_killed"])
            .env(CHILD, folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The first must get as far as a checkpoint, whatever the machine is doing.
        while checkpoint::latest(folder.path()).unwrap().0.is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let (latest, damaged) = checkpoint::latest(folder.path()).unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        let envelope = checkpoint::read(&latest.unwrap()).unwrap();
        assert!(envelope.step >= reached, "no step is lost that was saved");
        reached = envelope.step;
    }
    assert!(reached > 3, "the children did save: {reached}");
    let (latest, _) = checkpoint::latest(folder.path()).unwrap();
    let mut resumed = model_run(Kind::Float);
    resumed.resume(&latest.unwrap()).unwrap();
    let mut whole = model_run(Kind::Float);
    take(&mut whole, reached as usize);
    assert_eq!(params(&resumed), params(&whole));
    assert_eq!(take(&mut resumed, 1), take(&mut whole, 1));
}
