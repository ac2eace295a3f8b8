//! Whole models against what transformers computed with the same checkpoints.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    BF16, Expected, FP32, VARIANTS, check_recorded_logits, close, copy, difference, files,
    fixtures, json, load, logits, logits_under, write,
};
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor, no_grad_guard};
use ferrotune_nn::module::params;
use ferrotune_nn::{
    Block, BlockRunner, Ctx, Decoder, DecoderConfig, Direct, Error, KvCache, Result, Weights,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The largest bf16 difference is a matter of kernels: one rounding that falls the other way shows
/// as 0.04, and transformers' own two attentions lie 0.09 apart. Where this machine's kernels are the
/// recorder's (then fp32 agrees to the last bit) it must hold too; elsewhere the live test demands it.
#[test]
fn logits_are_those_of_transformers() {
    for name in VARIANTS {
        let [fp32, bf16] = check_recorded_logits(&fixtures().join(name));
        assert!(fp32.max > 0.0 || bf16.max < BF16, "{name}: {bf16:?}");
    }
}

/// A model's logits under an edited config.json.
fn under_config(model: &Path, ids: &Tensor, edit: impl FnOnce(&mut Value)) -> Tensor {
    let dir = copy(model);
    let path = dir.path().join("config.json");
    let mut config = json(&path);
    edit(&mut config);
    write(path, &config);
    logits(&load(dir.path(), Kind::Float), ids)
}

fn edit_rope(config: &mut Value, edit: impl FnOnce(&mut Value)) {
    match config.get_mut("rope_parameters") {
        Some(rope) => edit(&mut rope["rope_theta"]),
        None => edit(&mut config["rope_theta"]),
    }
}

/// As if query head h read key head h % kv_heads: the order of heads in q and o is changed alike.
fn interleave_heads(model: &Decoder) {
    let (heads, kv) = (
        model.config().num_attention_heads,
        model.config().kv_heads(),
    );
    let order: Vec<i64> = (0..heads)
        .map(|slot| slot % (heads / kv) * kv + slot / (heads / kv))
        .collect();
    let order = Tensor::from_slice(&order);
    let _guard = no_grad_guard();
    for (path, param) in params(model) {
        let value = param.tensor().detach();
        if path.contains("q_proj") {
            let by_head = value.unflatten(0, [heads, -1]).index_select(0, &order);
            param.assign(&by_head.flatten(0, 1)).unwrap();
        } else if path.ends_with("o_proj.weight") {
            let by_head = value.unflatten(1, [heads, -1]).index_select(1, &order);
            param.assign(&by_head.flatten(1, 2)).unwrap();
        }
    }
}

/// A wrong constant must show, and by as much as it shows in transformers.
#[test]
fn wrong_constants_and_a_wrong_kv_mapping_fail_the_comparison() {
    for name in VARIANTS {
        let fixture = fixtures().join(name);
        let expected = Expected::open(fixture.join("expected.safetensors"));
        let (ids, right) = (expected.get("ids"), expected.get("logits.f32"));
        let facts = json(fixture.join("facts.json"));
        let dir = fixture.join("model");
        let wrong_heads = load(&dir, Kind::Float);
        interleave_heads(&wrong_heads);
        let double = |value: &mut Value| *value = json!(value.as_f64().unwrap() * 2.0);
        let mut cases = vec![
            (
                "rope_theta_doubled",
                under_config(&dir, &ids, |config| edit_rope(config, double)),
            ),
            (
                "rms_norm_eps_1e-3",
                under_config(&dir, &ids, |config| config["rms_norm_eps"] = json!(1e-3)),
            ),
            ("kv_interleaved", logits(&wrong_heads, &ids)),
        ];
        if name == "llama3" {
            let dropped = under_config(&dir, &ids, |config| config["rope_scaling"] = Value::Null);
            cases.push(("rope_scaling_dropped", dropped));
        }
        assert_eq!(cases.len(), facts["wrong"].as_object().unwrap().len());
        for (case, found) in cases {
            let apart = difference(&found, &right).max;
            let in_transformers = facts["wrong"][case].as_f64().unwrap();
            assert!(apart > 10.0 * FP32, "{name}, {case}: {apart}");
            assert!(
                (apart - in_transformers).abs() < 1e-3,
                "{name}, {case}: {apart} {in_transformers}"
            );
        }
    }
}

#[test]
fn both_spellings_of_the_configuration_are_one() {
    for name in VARIANTS {
        let fixture = fixtures().join(name);
        let ids = Expected::open(fixture.join("expected.safetensors")).get("ids");
        let one = logits(&load(fixture.join("model"), Kind::Float), &ids);
        let other = under_config(&fixture.join("model"), &ids, |config| {
            *config = json(fixture.join("config.other.json"));
        });
        assert_eq!(one, other, "{name}");
    }
}

#[test]
fn a_configuration_keeps_the_keys_that_we_do_not_know() {
    for name in VARIANTS {
        for file in ["model/config.json", "config.other.json"] {
            let mut original = json(fixtures().join(name).join(file));
            original["frobnicate"] = json!({"x": [1, 2.5, null], "ü": "中文"});
            let config: DecoderConfig = serde_json::from_value(original.clone()).unwrap();
            let again = serde_json::to_value(&config).unwrap();
            for (key, value) in original.as_object().unwrap() {
                // Null is how a known key says that it is absent.
                if !(value.is_null() && again.get(key).is_none()) {
                    assert_eq!(again.get(key), Some(value), "{name}/{file}: {key}");
                }
            }
        }
    }
}

fn packed(bounds: &[i64]) -> Ctx {
    Ctx {
        cu_seqlens: Some(bounds.into()),
        ..Ctx::eval()
    }
}

#[test]
fn packed_rows_equal_each_sequence_alone() {
    for name in VARIANTS {
        let fixture = fixtures().join(name);
        let expected = Expected::open(fixture.join("expected.safetensors"));
        let (row, bounds) = (
            expected.get("ids").narrow(0, 0, 1),
            expected.list("packed.cu_seqlens"),
        );
        assert_eq!(bounds, [0, 7, 12, 24]);
        let model = load(fixture.join("model"), Kind::Float);
        let found = logits_under(&model, &row, &packed(&bounds));
        close(
            name,
            &found.squeeze_dim(0),
            &expected.get("packed.logits"),
            FP32,
        );

        // Another token at the end of the first sequence changes nothing behind it.
        let changed = row.copy();
        let _ = changed
            .narrow(1, 6, 1)
            .fill_((row.int64_value(&[0, 6]) + 1) % 320);
        let after = logits_under(&model, &changed, &packed(&bounds));
        assert_ne!(found.narrow(1, 6, 1), after.narrow(1, 6, 1));
        assert_eq!(
            found.narrow(1, 7, 17),
            after.narrow(1, 7, 17),
            "{name} leaks"
        );

        // Many short sequences take the other way through attention.
        let bounds = [0, 1, 3, 6, 10, 12, 15, 19, 21, 24];
        let whole = logits_under(&model, &row, &packed(&bounds));
        for pair in bounds.windows(2) {
            let (start, length) = (pair[0], pair[1] - pair[0]);
            let alone = logits(&model, &row.narrow(1, start, length));
            close(name, &whole.narrow(1, start, length), &alone, FP32);
        }
        // In bf16 the rotary tables are rounded, so positions must start anew to give the same.
        let model = load(fixture.join("model"), Kind::BFloat16);
        let found = logits_under(&model, &row, &packed(&[0, 7, 24]));
        let alone = logits(&model, &row.narrow(1, 7, 17));
        close(name, &found.narrow(1, 7, 17), &alone, 1e-3);
    }
}

fn cached(capacity: i64) -> Ctx {
    Ctx {
        cache: Some(Arc::new(Mutex::new(KvCache::new(capacity)))),
        ..Ctx::eval()
    }
}

#[test]
fn a_cache_filled_in_pieces_equals_the_whole() {
    let _guard = no_grad_guard();
    for name in VARIANTS {
        let fixture = fixtures().join(name);
        let expected = Expected::open(fixture.join("expected.safetensors"));
        let (ids, right) = (expected.get("ids"), expected.get("logits.f32"));
        let model = load(fixture.join("model"), Kind::Float);
        // Token by token, pieces of several tokens behind a past, and a buffer that must grow.
        for (pieces, capacity) in [
            (vec![1; 24], 24),
            (vec![7, 5, 1, 11], 24),
            (vec![10, 14], 3),
        ] {
            let ctx = cached(capacity);
            let mut start = 0;
            let parts: Vec<Tensor> = pieces
                .into_iter()
                .map(|length| {
                    start += length;
                    logits_under(&model, &ids.narrow(1, start - length, length), &ctx)
                })
                .collect();
            assert_eq!(ctx.cache.as_ref().unwrap().lock().unwrap().len(), 24);
            close(name, &Tensor::cat(&parts, 1), &right, FP32);
        }
    }
}

/// Fails once, at the second block.
#[derive(Debug, Default)]
struct Stumble(AtomicBool);

impl BlockRunner for Stumble {
    fn run(&self, path: &str, block: Arc<dyn Block>, x: &Tensor, ctx: &Ctx) -> Result<Tensor> {
        if path.ends_with("layers.1") && !self.0.swap(true, Ordering::Relaxed) {
            return Err(Error::Invalid("stumbled".to_owned()));
        }
        Direct.run(path, block, x, ctx)
    }
}

#[test]
fn a_forward_that_failed_leaves_a_cache_that_still_serves() {
    let _guard = no_grad_guard();
    let fixture = fixtures().join("qwen2");
    let expected = Expected::open(fixture.join("expected.safetensors"));
    let (ids, right) = (expected.get("ids"), expected.get("logits.f32"));
    let model = load(fixture.join("model"), Kind::Float);
    let mut ctx = cached(24);
    let _ = logits_under(&model, &ids.narrow(1, 0, 9), &ctx);
    ctx.runner = Arc::new(Stumble::default());
    let rest = ids.narrow(1, 9, 15);
    assert!(
        model
            .forward(&rest, &ctx)
            .unwrap_err()
            .to_string()
            .contains("stumbled")
    );
    close(
        "qwen2",
        &logits_under(&model, &rest, &ctx),
        &right.narrow(1, 9, 15),
        FP32,
    );
}

#[test]
fn tied_weights_count_once() {
    for (name, tied) in [
        ("llama", false),
        ("llama3", true),
        ("qwen2", false),
        ("qwen2_tied", true),
    ] {
        let dir = fixtures().join(name).join("model");
        let model = load(&dir, Kind::Float);
        let names: Vec<String> = params(&model).into_iter().map(|(path, _)| path).collect();
        assert_eq!(
            names.iter().any(|path| path == "lm_head.weight"),
            !tied,
            "{name}"
        );
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(sorted, Weights::open(&dir).unwrap().names(), "{name}");
        // Both uses train the one weight: rows of tokens that do not occur have a gradient too.
        let embedding = model.embedding();
        embedding.set_trainable(true).unwrap();
        let ids = Tensor::from_slice(&[5_i64, 9, 5]).unsqueeze(0);
        let loss = model
            .forward(&ids, &Ctx::eval())
            .unwrap()
            .square()
            .mean(None);
        loss.backward();
        let rows = embedding.grad().unwrap().abs().amax([1], false);
        let elsewhere = rows.index_select(0, &Tensor::from_slice(&[4_i64, 100]));
        assert_eq!(elsewhere.max().double_value(&[]) > 0.0, tied, "{name}");
        assert!(rows.double_value(&[9]) > 0.0);
    }
}

#[test]
fn a_saved_model_is_the_same_model() {
    for name in VARIANTS {
        let fixture = fixtures().join(name);
        let ids = Expected::open(fixture.join("expected.safetensors")).get("ids");
        // As on disk, so that nothing is rounded.
        let kind = if name == "qwen2_tied" {
            Kind::BFloat16
        } else {
            Kind::Float
        };
        let model = load(fixture.join("model"), kind);
        let original = Weights::open(fixture.join("model")).unwrap();
        for max_shard_bytes in [usize::MAX, 60_000] {
            let dir = tempfile::tempdir().unwrap();
            model.save(dir.path(), max_shard_bytes).unwrap();
            let saved = Weights::open(dir.path()).unwrap();
            assert_eq!(saved.names(), original.names(), "{name}");
            for key in saved.names() {
                let [ours, theirs] = [&saved, &original]
                    .map(|weights| weights.load(&key, None, None, Device::Cpu).unwrap());
                assert_eq!(ours.kind(), theirs.kind());
                assert_eq!(ours, theirs, "{name}: {key}");
            }
            assert_eq!(
                logits(&load(dir.path(), kind), &ids),
                logits(&model, &ids),
                "{name}"
            );
            let before = json(fixture.join("model/config.json"));
            let after = json(dir.path().join("config.json"));
            let mut keys = before.as_object().unwrap().iter();
            assert!(
                keys.all(|(key, value)| value.is_null() || after[key] == *value),
                "{name}"
            );
            let single = files(dir.path()) == ["config.json", "model.safetensors"];
            assert_eq!(
                single,
                max_shard_bytes == usize::MAX,
                "{name}: {:?}",
                files(dir.path())
            );
            if !single {
                let index = json(dir.path().join("model.safetensors.index.json"));
                let bytes: usize = params(&model)
                    .iter()
                    .map(|(_, param)| param.tensor().numel() * kind.elt_size_in_bytes())
                    .sum();
                assert_eq!(index["metadata"]["total_size"], bytes);
                // A shard is larger than asked only where it is one tensor.
                let mut held: HashMap<&str, usize> = HashMap::new();
                for file in index["weight_map"].as_object().unwrap().values() {
                    *held.entry(file.as_str().unwrap()).or_default() += 1;
                }
                for (shard, tensors) in held {
                    let length = std::fs::metadata(dir.path().join(shard)).unwrap().len();
                    assert!(length < 64_000 || tensors == 1, "{shard}: {length}");
                }
            }
        }
    }
}

#[test]
fn saving_over_a_checkpoint_replaces_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let models =
        ["llama", "qwen2"].map(|name| load(fixtures().join(name).join("model"), Kind::Float));
    let ids = Tensor::from_slice(&[5_i64, 9, 200, 7]).unsqueeze(0);
    // Single, shards, other shards, single again.
    for (i, max_shard_bytes) in [usize::MAX, 150_000, 150_000, 150_000, usize::MAX]
        .into_iter()
        .enumerate()
    {
        let model = &models[i % 2];
        model.save(dir.path(), max_shard_bytes).unwrap();
        assert_eq!(
            logits(&load(dir.path(), Kind::Float), &ids),
            logits(model, &ids),
            "{i}"
        );
        let mut expected: Vec<String> = if max_shard_bytes == usize::MAX {
            vec!["model.safetensors".into()]
        } else {
            let index = json(dir.path().join("model.safetensors.index.json"));
            let mut shards: Vec<String> = index["weight_map"]
                .as_object()
                .unwrap()
                .values()
                .map(|v| v.as_str().unwrap().to_owned())
                .collect();
            shards.push("model.safetensors.index.json".into());
            shards
        };
        expected.push("config.json".into());
        expected.sort();
        expected.dedup();
        assert_eq!(files(dir.path()), expected, "{i}");
    }
}

#[test]
fn a_saved_configuration_names_the_dtype_that_was_saved() {
    let model = load(fixtures().join("llama/model"), Kind::BFloat16);
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), usize::MAX).unwrap();
    assert_eq!(json(dir.path().join("config.json"))["dtype"], "bfloat16");
    let tensor = Weights::open(dir.path())
        .unwrap()
        .load("model.norm.weight", None, None, Device::Cpu)
        .unwrap();
    assert_eq!(tensor.kind(), Kind::BFloat16);
}
