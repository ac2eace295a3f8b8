//! Adapters that PEFT has made, against what PEFT computed with them and wrote to disk.
#![allow(clippy::unwrap_used)]

mod common;

use common::nn::{close, copy, files, fixtures, json, load, logits, write};
use common::{
    CASES, MODELS, NAMED, adapted, adapter_dir, check_recorded_adapter, check_recorded_pair,
};
use ferrotune_lora::{LoraConfig, attach, merge, peft, train_only};
use ferrotune_nn::libtorch::autograd::backward;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::module::{params, trainable};
use ferrotune_nn::{Adapters, Ctx, Decoder, Param, Weights};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

#[test]
fn logits_are_those_of_peft_loaded_merged_unmerged_and_off() {
    for model in MODELS {
        for case in CASES {
            check_recorded_adapter(&fixtures().join(model), case);
        }
    }
}

#[test]
fn several_adapters_at_once_are_those_of_peft() {
    for model in MODELS {
        check_recorded_pair(&fixtures().join(model));
    }
}

/// Every tensor of two files, names and dtypes included.
fn assert_same_tensors(ours: &Path, theirs: &Path) {
    let [ours, theirs] = [ours, theirs].map(|path| Weights::open(path).unwrap());
    assert_eq!(ours.names(), theirs.names());
    for key in ours.names() {
        let [one, other] =
            [&ours, &theirs].map(|weights| weights.load(&key, None, None, Device::Cpu).unwrap());
        assert_eq!(one.kind(), other.kind(), "{key}");
        assert_eq!(one, other, "{key}");
    }
}

#[test]
fn a_saved_adapter_is_the_files_that_peft_wrote() {
    for model in MODELS {
        for case in CASES.into_iter().chain([NAMED]) {
            let theirs = adapter_dir(model, case);
            let names: &[&str] = if case == NAMED {
                &["default", "extra"]
            } else {
                &["default"]
            };
            let decoder = adapted(&fixtures().join(model), case);
            let ours = tempfile::tempdir().unwrap();
            for name in names {
                let (from, to) = (peft::folder(&theirs, name), peft::folder(ours.path(), name));
                peft::save(
                    &decoder,
                    name,
                    &LoraConfig::from_dir(&from).unwrap(),
                    ours.path(),
                )
                .unwrap();
                assert_same_tensors(
                    &to.join("adapter_model.safetensors"),
                    &from.join("adapter_model.safetensors"),
                );
                let [one, other] = [&to, &from]
                    .map(|dir| fs::read_to_string(dir.join("adapter_config.json")).unwrap());
                assert_eq!(one.trim_end(), other.trim_end(), "{model}/{case}");
            }
            assert_eq!(files(ours.path()), files(&theirs));
        }
    }
}

#[test]
fn keys_that_we_do_not_know_survive() {
    let dir = copy(&adapter_dir("llama", "qv"));
    let path = dir.path().join("adapter_config.json");
    let mut config = json(&path);
    config["from_a_later_peft"] = json!({"b": [1, 2.5], "a": null});
    write(&path, &config);
    let mut model = load(fixtures().join("llama/model"), Kind::Float);
    let read = peft::load(&mut model, "default", dir.path()).unwrap();
    peft::save(&model, "default", &read, dir.path()).unwrap();
    assert_eq!(json(&path), config);
}

#[test]
fn a_fresh_adapter_changes_nothing_and_its_seed_decides() {
    let ids = Tensor::from_slice(&[5_i64, 9, 200, 7]).unsqueeze(0);
    let mut model = load(fixtures().join("llama/model"), Kind::Float);
    let base = logits(&model, &ids);
    let config = LoraConfig {
        r: 3,
        lora_alpha: 7.0,
        target_modules: ["q_proj", "down_proj"].into(),
        ..LoraConfig::default()
    };
    for (name, seed) in [("a", 1), ("b", 1), ("c", 2)] {
        attach(&mut model, name, &config, seed).unwrap();
    }
    assert_eq!(logits(&model, &ids), base);
    let of = |name: &str| -> Vec<Tensor> {
        let infix = format!("lora_A.{name}.weight");
        params(&model)
            .into_iter()
            .filter(|(path, _)| path.ends_with(&infix))
            .map(|(_, param)| param.tensor().detach())
            .collect()
    };
    let [a, b, c] = ["a", "b", "c"].map(of);
    assert_eq!(a.len(), 6);
    assert!(a.iter().zip(&b).all(|(a, b)| a == b));
    assert!(a.iter().zip(&c).all(|(a, c)| a != c));
    assert_ne!(a[0], a[2], "modules of one shape draw their own numbers");
    for matrix in &a {
        // Uniform within ± 1/√in has deviation 1/√(3 in).
        let (bound, std) = (
            1.0 / (matrix.size()[1] as f64).sqrt(),
            matrix.std(true).double_value(&[]),
        );
        assert!(matrix.abs().max().double_value(&[]) <= bound);
        assert!(
            (std / (bound / 3_f64.sqrt()) - 1.0).abs() < 0.15,
            "{std} {bound}"
        );
    }
}

fn loss(model: &Decoder, ctx: &Ctx) -> Tensor {
    let ids = Tensor::from_slice(&[5_i64, 9, 200, 7, 31, 9]).unsqueeze(0);
    let logits = model.forward(&ids, ctx).unwrap();
    // Random weights, so that no direction is special.
    let weights = Tensor::arange(logits.numel() as i64, (Kind::Float, Device::Cpu)).sin();
    (logits.view([-1]) * weights).sum(Kind::Float)
}

#[test]
fn gradients_reach_every_trainable_parameter_and_no_other() {
    for model in MODELS {
        let mut decoder = adapted(&fixtures().join(model), NAMED);
        for name in ["default", "extra"] {
            // Parameters that were thawed before must freeze, and stale gradients go.
            params(&decoder)
                .iter()
                .for_each(|(_, param)| param.set_trainable(true).unwrap());
            backward(&[&loss(&decoder, &Ctx::eval())], &[None], false).unwrap();
            train_only(&mut decoder, name).unwrap();
            let names: Vec<String> = trainable(&decoder)
                .into_iter()
                .map(|(path, _)| path)
                .collect();
            // Two targets in three layers, A and B each.
            assert_eq!(names.len(), 2 * 3 * 2);
            assert!(
                names
                    .iter()
                    .all(|path| path.ends_with(&format!(".{name}.weight"))),
                "{names:?}"
            );
            backward(&[&loss(&decoder, &Ctx::eval())], &[None], false).unwrap();
            for (path, param) in params(&decoder) {
                let found = param
                    .grad()
                    .map(|grad| grad.abs().max().double_value(&[]) > 0.0);
                assert_eq!(found, names.contains(&path).then_some(true), "{path}");
            }
        }
        // An adapter that the context leaves out has no gradient.
        train_only(&mut decoder, "extra").unwrap();
        let only_default = Ctx {
            adapters: Adapters::Named(vec!["default".into()]),
            ..Ctx::eval()
        };
        assert!(
            backward(&[&loss(&decoder, &only_default)], &[None], false).is_err(),
            "nothing to train"
        );
    }
}

/// Independent of autograd's way through the adapter: with W' = W + s B A, dB = s dW' Aᵀ and
/// dA = s Bᵀ dW'. Ranks and scales differ between the modules of this case.
#[test]
fn gradients_follow_from_those_of_the_merged_weight() {
    let fixture = fixtures().join("qwen2");
    let config = LoraConfig::from_dir(&adapter_dir("qwen2", "rslora")).unwrap();
    let mut merged = adapted(&fixture, "rslora");
    merge(&mut merged, "default").unwrap();
    params(&merged)
        .iter()
        .for_each(|(_, param)| param.set_trainable(true).unwrap());
    backward(&[&loss(&merged, &Ctx::eval())], &[None], false).unwrap();
    let dense: HashMap<String, Param> = params(&merged).into_iter().collect();

    let mut model = adapted(&fixture, "rslora");
    train_only(&mut model, "default").unwrap();
    backward(&[&loss(&model, &Ctx::eval())], &[None], false).unwrap();
    let own: HashMap<String, Param> = trainable(&model).into_iter().collect();
    let mut scales = Vec::new();
    for (path, a) in &own {
        let Some(path) = path.strip_suffix(".lora_A.default.weight") else {
            continue;
        };
        let b = &own[&format!("{path}.lora_B.default.weight")];
        let (r, scale) = config.rank_and_scale(path).unwrap();
        assert_eq!(a.tensor().size()[0], r, "{path}");
        scales.push((scale * 1e6) as i64);
        let dw = dense[&format!("{path}.weight")].grad().unwrap() * scale;
        let da = b.tensor().detach().transpose(0, 1).matmul(&dw);
        let db = dw.matmul(&a.tensor().detach().transpose(0, 1));
        close(path, &a.grad().unwrap(), &da, 1e-4);
        close(path, &b.grad().unwrap(), &db, 1e-4);
    }
    assert_eq!(scales.len(), 7 * 3);
    scales.sort_unstable();
    scales.dedup();
    assert!(scales.len() >= 4, "{scales:?}");
}

#[test]
fn targets_and_patterns_match_as_in_peft() {
    let targets = |targets: Value, path: &str| {
        let config: LoraConfig =
            serde_json::from_value(json!({"peft_type": "LORA", "target_modules": targets}))
                .unwrap();
        config.targets(path).unwrap()
    };
    let q = "model.layers.11.self_attn.q_proj";
    assert!(targets(json!(["v_proj", "q_proj"]), q));
    assert!(targets(json!(["self_attn.q_proj"]), q) && targets(json!([q]), q));
    assert!(!targets(json!(["proj"]), q) && !targets(json!(["1.self_attn.q_proj"]), q));
    // A regular expression must match the whole path; a list is no regular expression.
    assert!(targets(json!(r".*\.1\d\.self_attn\.(q|k)_proj"), q));
    assert!(!targets(json!(r"self_attn\.q_proj"), q) && !targets(json!(r".*self_attn"), q));
    assert!(!targets(json!(["q_pro."]), q) && !targets(json!(["q_pro(j|x)"]), q));
    assert!(targets(json!("a|.*q_proj"), q) && !targets(json!("a|.*q_pro"), q));
    assert!(targets(json!("all-linear"), q) && !targets(json!("all-linear"), "lm_head"));
    assert!(!targets(json!(["all-linear"]), q));

    let of = |config: Value, path: &str| {
        let config: LoraConfig = serde_json::from_value(config).unwrap();
        config.rank_and_scale(path).unwrap()
    };
    let base = json!({"peft_type": "LORA", "target_modules": "all-linear"});
    assert_eq!(of(base.clone(), q), (8, 1.0), "PEFT's defaults");
    let mut config = base;
    config["r"] = json!(4);
    config["lora_alpha"] = json!(6);
    assert_eq!(of(config.clone(), q), (4, 1.5));
    config["use_rslora"] = json!(true);
    assert_eq!(of(config.clone(), q), (4, 3.0));
    // The first hit wins, and a key matches whole parts of the path at its end.
    config["rank_pattern"] =
        json!({"proj": 1, r"layers\.1\.self_attn\.q_proj": 2, "q_proj": 9, r"layers\.11.*": 16});
    config["alpha_pattern"] = json!({"v_proj|q_proj": 12, "q_proj": 1});
    assert_eq!(of(config.clone(), q), (9, 4.0));
    assert_eq!(of(config, "model.layers.11.mlp.up_proj"), (16, 1.5));
}
