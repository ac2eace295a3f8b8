//! Adapters, names and settings that cannot be: each error names its culprit and leaves the model
//! as it was.
#![allow(clippy::unwrap_used)]

mod common;

use common::nn::{Expected, close, copy, fixtures, json, load, logits, logits_under, write};
use common::{adapted, adapter_dir};
use ferrotune_lora::{LoraConfig, attach, merge, peft, set_active, train_only};
use ferrotune_nn::libtorch::tch::{Kind, Tensor};
use ferrotune_nn::module::params;
use ferrotune_nn::{Adapters, Ctx, Weights, weights};
use serde_json::json;
use std::fs;
use std::path::Path;

fn load_error(model: &str, dir: &Path) -> String {
    let mut decoder = load(fixtures().join(model).join("model"), Kind::Float);
    let ids = Tensor::from_slice(&[5_i64, 9]).unsqueeze(0);
    let base = logits(&decoder, &ids);
    let error = peft::load(&mut decoder, "default", dir)
        .unwrap_err()
        .to_string();
    // Nothing is left of it.
    assert_eq!(logits(&decoder, &ids), base);
    assert!(set_active(&mut decoder, &["default"]).is_err());
    error
}

/// The adapter `qv` with some of its tensors changed.
fn with_tensors(edit: impl FnOnce(&mut Vec<(String, Tensor)>)) -> tempfile::TempDir {
    let dir = copy(&adapter_dir("llama", "qv"));
    let path = dir.path().join("adapter_model.safetensors");
    let file = Expected::open(&path);
    let mut tensors: Vec<(String, Tensor)> = Weights::open(&path)
        .unwrap()
        .names()
        .into_iter()
        .map(|key| (key.clone(), file.get(&key)))
        .collect();
    drop(file);
    edit(&mut tensors);
    weights::save_file(
        &path,
        tensors.iter().map(|(key, tensor)| (key.as_str(), tensor)),
    )
    .unwrap();
    dir
}

const Q1: &str = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";

#[test]
fn bad_adapter_files_are_named() {
    let error = load_error("qwen2", &adapter_dir("llama", "qv"));
    assert!(
        error.contains("q_proj.lora_A.weight` in ")
            && error.contains("[4, 64], the configuration demands [4, 48]"),
        "{error}"
    );
    let missing = with_tensors(|tensors| tensors.retain(|(key, _)| key != Q1));
    let error = load_error("llama", missing.path());
    assert!(
        error.contains(&format!("tensor `{Q1}` is missing in ")),
        "{error}"
    );
    let unknown = with_tensors(|tensors| {
        tensors.push((
            "base_model.model.lm_head.lora_A.weight".into(),
            tensors[0].1.copy(),
        ))
    });
    let error = load_error("llama", unknown.path());
    assert!(
        error.contains("1 tensors that the model does not know")
            && error.contains("lm_head.lora_A"),
        "{error}"
    );
    let dir = copy(&adapter_dir("llama", "qv"));
    let file = dir.path().join("adapter_model.safetensors");
    fs::write(&file, &fs::read(&file).unwrap()[..5000]).unwrap();
    assert!(
        load_error("llama", dir.path())
            .contains("adapter_model.safetensors: not a valid safetensors file")
    );
    fs::write(dir.path().join("adapter_config.json"), "{").unwrap();
    assert!(load_error("llama", dir.path()).contains("adapter_config.json: EOF"));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (key, value) in [
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("lora_dropout", json!(1.5)),
        ("use_dora", json!(true)),
        ("bias", json!("lora_only")),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("fan_in_fan_out", json!(true)),
        ("layers_to_transform", json!([1])),
        ("exclude_modules", json!("q_proj")),
        ("target_parameters", json!(["x"])),
        ("trainable_token_indices", json!([1])),
        ("layer_replication", json!([[0, 1]])),
        ("use_qalora", json!(true)),
        ("alora_invocation_tokens", json!([1])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("rank_pattern", json!({"q_proj": 2.5})),
        ("alpha_pattern", json!({"q_proj": "x"})),
        ("target_modules", json!("(q_proj")),
    ] {
        let dir = copy(&adapter_dir("llama", "qv"));
        let path = dir.path().join("adapter_config.json");
        let mut config = json(&path);
        config[key] = value;
        write(&path, &config);
        let error = load_error("llama", dir.path());
        let named = if key == "target_modules" {
            "(q_proj"
        } else if key == "alpha_pattern" {
            "pattern `q_proj`"
        } else {
            key
        };
        assert!(error.contains(named), "{key}: {error}");
    }
}

#[test]
fn names_and_targets_that_cannot_be_are_refused() {
    let mut model = load(fixtures().join("llama3/model"), Kind::Float);
    let config = |targets: &[&str]| LoraConfig {
        target_modules: serde_json::from_value(json!(targets)).unwrap(),
        ..LoraConfig::default()
    };
    let error = attach(&mut model, "default", &config(&["c_attn"]), 1)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        r#"target_modules ["c_attn"] matches none of the model's linears; there are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"#
    );
    for name in ["", "a.b", "../x"] {
        let error = attach(&mut model, name, &config(&["q_proj"]), 1)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("`{name}` cannot name an adapter")),
            "{error}"
        );
    }
    attach(&mut model, "default", &config(&["q_proj"]), 1).unwrap();
    let error = attach(&mut model, "default", &config(&["v_proj"]), 1)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "the model already has an adapter `default`");
    for error in [
        merge(&mut model, "x").unwrap_err(),
        train_only(&mut model, "x").unwrap_err(),
        set_active(&mut model, &["default", "x"]).unwrap_err(),
        ferrotune_lora::detach(&mut model, "x").unwrap_err(),
        peft::save(&model, "x", &config(&["q_proj"]), Path::new("/nowhere")).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "the model has no adapter `x`");
    }
    // The forward pass does not take a wrong name for "none" either.
    let ids = Tensor::from_slice(&[5_i64, 9]).unsqueeze(0);
    for adapters in [
        Adapters::Named(vec!["x".into()]),
        Adapters::PerRow(vec![Some("x".into())]),
    ] {
        let error = model
            .forward(
                &ids,
                &Ctx {
                    adapters,
                    ..Ctx::eval()
                },
            )
            .unwrap_err()
            .to_string();
        assert_eq!(error, "the model has no adapter `x`");
    }
    // Tied: merging into the output layer would change the embedding.
    attach(&mut model, "head", &config(&["lm_head", "q_proj"]), 1).unwrap();
    let before = logits(&model, &ids);
    let error = merge(&mut model, "head").unwrap_err().to_string();
    assert_eq!(
        error,
        "the adapter of `lm_head` cannot be merged: its weight is `model.embed_tokens.weight` too"
    );
    assert_eq!(logits(&model, &ids), before);
}

#[test]
fn a_merge_that_is_not_finite_is_taken_back() {
    let mut model = adapted(&fixtures().join("llama"), "qv");
    let ids = Tensor::from_slice(&[5_i64, 9, 31]).unsqueeze(0);
    let off = Ctx {
        adapters: Adapters::Off,
        ..Ctx::eval()
    };
    let base = logits_under(&model, &ids, &off);
    let (_, last) = params(&model)
        .into_iter()
        .rfind(|(path, _)| path.contains("lora_B"))
        .unwrap();
    last.assign(&last.tensor().detach().full_like(f64::INFINITY))
        .unwrap();
    let error = merge(&mut model, "default").unwrap_err().to_string();
    assert!(error.contains("non-finite"), "{error}");
    close("base", &logits_under(&model, &ids, &off), &base, 1e-5);
}
