//! Checkpoints that cannot be loaded: each error names the file, and the tensor and shapes at fault.
#![allow(clippy::unwrap_used)]

mod common;

use common::{copy, fixtures, json, write};
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::{
    Ctx, Decoder, DecoderConfig, Dense, Factory, Param, Shard, Split, Weights, weights,
};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn error_of(dir: &Path) -> String {
    let error = Decoder::load(dir, Kind::Float, Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// What the copy of a model says after `spoil`.
fn spoilt(model: &str, spoil: impl FnOnce(&Path)) -> String {
    let dir = copy(&fixtures().join(model).join("model"));
    spoil(dir.path());
    let error = error_of(dir.path());
    // The folder's name differs from run to run.
    error.replace(dir.path().to_str().unwrap(), "DIR")
}

fn with_tensors(edit: impl FnOnce(&mut Vec<(String, Tensor)>)) -> String {
    spoilt("llama", |dir| {
        let path = dir.join("model.safetensors");
        let file = Weights::open(&path).unwrap();
        let load = |name: String| {
            (
                name.clone(),
                file.load(&name, None, None, Device::Cpu).unwrap(),
            )
        };
        let mut tensors = file.names().into_iter().map(load).collect();
        edit(&mut tensors);
        let entries = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        weights::save_file(&path, entries).unwrap();
    })
}

fn with_config(model: &str, edit: impl FnOnce(&mut Value)) -> String {
    spoilt(model, |dir| {
        let path = dir.join("config.json");
        let mut config = json(&path);
        edit(&mut config);
        write(path, &config);
    })
}

const UP: &str = "model.layers.1.mlp.up_proj.weight";

fn replace(tensors: &mut [(String, Tensor)], change: impl Fn(&Tensor) -> Tensor) {
    let (_, tensor) = tensors.iter_mut().find(|(name, _)| name == UP).unwrap();
    *tensor = change(tensor);
}

#[test]
fn tensors_that_are_missing_unknown_or_wrong() {
    let error = with_tensors(|tensors| tensors.retain(|(name, _)| name != UP));
    assert_eq!(error, format!("tensor `{UP}` is missing in DIR"));
    let error = with_tensors(|tensors| {
        let extra = tensors[0].1.copy();
        tensors.extend([
            ("model.b".to_owned(), extra.copy()),
            ("model.a".to_owned(), extra),
        ]);
    });
    assert_eq!(
        error,
        "DIR holds 2 tensors that the model does not know, the first is `model.a`"
    );
    // As many numbers, another shape: nothing is reshaped or broadcast.
    let error = with_tensors(|tensors| replace(tensors, |tensor| tensor.transpose(0, 1)));
    let expected = format!(
        "tensor `{UP}` in DIR/model.safetensors has shape [64, 112], the configuration demands [112, 64]"
    );
    assert_eq!(error, expected);
    let error = with_tensors(|tensors| replace(tensors, |tensor| tensor.narrow(0, 0, 1).copy()));
    assert!(
        error.contains("has shape [1, 64], the configuration demands [112, 64]"),
        "{error}"
    );
    let error = with_tensors(|tensors| replace(tensors, |tensor| tensor.to_kind(Kind::Int8)));
    assert_eq!(
        error,
        format!("tensor `{UP}` in DIR/model.safetensors has dtype I8, where a float is needed")
    );
}

#[test]
fn old_checkpoints_may_carry_what_we_compute() {
    let dir = copy(&fixtures().join("llama3/model"));
    let path = dir.path().join("model.safetensors");
    let file = Weights::open(&path).unwrap();
    let mut tensors: Vec<(String, Tensor)> = file
        .names()
        .into_iter()
        .map(|name| {
            (
                name.clone(),
                file.load(&name, None, None, Device::Cpu).unwrap(),
            )
        })
        .collect();
    drop(file);
    let embedding = tensors
        .iter()
        .find(|(name, _)| name == "model.embed_tokens.weight")
        .unwrap()
        .1
        .copy();
    tensors.push(("lm_head.weight".to_owned(), embedding));
    let frequencies = Tensor::ones([12], (Kind::Float, Device::Cpu));
    tensors.push((
        "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(),
        frequencies,
    ));
    weights::save_file(
        &path,
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)),
    )
    .unwrap();
    Decoder::load(dir.path(), Kind::Float, Device::Cpu).unwrap();
}

#[test]
fn files_that_are_missing_truncated_or_no_safetensors() {
    let error = spoilt("llama", |dir| {
        fs::remove_file(dir.join("model.safetensors")).unwrap()
    });
    assert!(
        error.starts_with("DIR/model.safetensors: No such file"),
        "{error}"
    );
    let error = spoilt("llama", |dir| {
        fs::remove_file(dir.join("config.json")).unwrap()
    });
    assert!(
        error.starts_with("DIR/config.json: No such file"),
        "{error}"
    );
    let whole = fs::read(fixtures().join("llama/model/model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let with = |bytes: &[u8]| {
        spoilt("llama", |dir| {
            fs::write(dir.join("model.safetensors"), bytes).unwrap()
        })
    };
    let mut longer = whole.clone();
    longer.push(0);
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let cut = &whole[..whole.len() - 1];
    for bytes in [
        &[][..],
        &whole[..5],
        &whole[..100],
        &whole[..header],
        cut,
        &longer,
        &lying,
        b"version https://git-lfs",
    ] {
        let error = with(bytes);
        assert!(
            error.starts_with("DIR/model.safetensors: not a valid safetensors file: "),
            "{error}"
        );
    }
    let error = with(cut);
    assert!(
        error.contains(&format!(
            "its {} bytes are not as many as its header says",
            cut.len()
        )),
        "{error}"
    );
    // A header that is whole but speaks of bytes that overlap or of another length.
    for (from, to) in [("\"F32\"", "\"F64\""), ("\"shape\":[64]", "\"shape\":[65]")] {
        let text = String::from_utf8_lossy(&whole[8..header]).replacen(from, to, 1);
        assert_eq!(text.len(), header - 8);
        let error = with(&[&whole[..8], text.as_bytes(), &whole[header..]].concat());
        assert!(error.contains("not a valid safetensors file"), "{error}");
    }
}

#[test]
fn an_index_that_names_what_is_not_there() {
    let index = |edit: fn(&mut Value)| {
        spoilt("qwen2", |dir| {
            let path = dir.join("model.safetensors.index.json");
            let mut index = json(&path);
            edit(&mut index);
            write(path, &index);
        })
    };
    let second = "model-00002-of-00003.safetensors";
    let error = spoilt("qwen2", |dir| fs::remove_file(dir.join(second)).unwrap());
    assert!(
        error.starts_with(&format!("DIR/{second}: No such file")),
        "{error}"
    );
    let error = index(|index| {
        index["weight_map"]["model.norm.weight"] = json!("model-00009-of-00003.safetensors")
    });
    assert!(
        error.starts_with("DIR/model-00009-of-00003.safetensors: No such file"),
        "{error}"
    );
    let error = index(|index| {
        index["weight_map"]["model.ghost"] = json!("model-00002-of-00003.safetensors")
    });
    assert_eq!(
        error,
        format!("tensor `model.ghost` is missing in DIR/{second}")
    );
    // The tensor is there, but in another file than the index says.
    let error = index(|index| {
        index["weight_map"]["model.embed_tokens.weight"] = json!("model-00002-of-00003.safetensors")
    });
    assert_eq!(
        error,
        format!("tensor `model.embed_tokens.weight` is missing in DIR/{second}")
    );
    let error = index(|index| *index = json!([1]));
    assert!(
        error.starts_with("DIR/model.safetensors.index.json: invalid type"),
        "{error}"
    );
    // An index without the metadata that nobody reads is as good.
    let dir = copy(&fixtures().join("qwen2/model"));
    let path = dir.path().join("model.safetensors.index.json");
    let mut bare = json(&path);
    bare.as_object_mut().unwrap().remove("metadata");
    write(path, &bare);
    Decoder::load(dir.path(), Kind::Float, Device::Cpu).unwrap();
}

#[test]
fn configurations_that_do_not_parse_or_contradict_themselves() {
    for text in ["", "{", "model_type: llama", "[]"] {
        let error = spoilt("llama", |dir| {
            fs::write(dir.join("config.json"), text).unwrap()
        });
        assert!(error.starts_with("DIR/config.json: "), "{error}");
    }
    for (key, value, says) in [
        ("hidden_size", json!(null), "invalid type: null"),
        ("hidden_size", json!(-64), "`hidden_size` is -64"),
        ("num_hidden_layers", json!(0), "`num_hidden_layers` is 0"),
        (
            "num_attention_heads",
            json!(0),
            "`num_attention_heads` is 0",
        ),
        (
            "vocab_size",
            json!(1_u64 << 40),
            "`vocab_size` is 1099511627776",
        ),
        (
            "num_key_value_heads",
            json!(3),
            "4 attention heads are no multiple of 3 key-value heads",
        ),
        ("head_dim", json!(15), "head_dim 15 is odd"),
        (
            "hidden_act",
            json!("gelu"),
            "hidden_act `gelu` is not supported",
        ),
        (
            "use_sliding_window",
            json!(true),
            "use_sliding_window is not supported",
        ),
        (
            "partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor 0.5 is not supported",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "yarn"}),
            "rope type `yarn` is not supported",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8}),
            "lacks the positive number `low_freq_factor`",
        ),
        (
            "model_type",
            json!("mamba"),
            "model_type `mamba` is not supported (known: LlamaForCausalLM",
        ),
        (
            "architectures",
            json!(["LlamaForTokenClassification"]),
            r#"architecture ["LlamaForTokenClassification"] of"#,
        ),
    ] {
        let error = with_config("llama", |config| config[key] = value);
        assert!(
            error.contains("DIR/config.json: ") && error.contains(says),
            "{key}: {error}"
        );
        assert_eq!(
            error.matches("configuration: ").count(),
            usize::from(!says.contains("null")),
            "{error}"
        );
    }
    // The same without a file, where a model is made anew.
    let config: DecoderConfig = serde_json::from_value(json!({
        "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 0
    }))
    .unwrap();
    let factory = Factory::random(3, Kind::Float, Device::Cpu).unwrap();
    let error = Decoder::new(&factory, config, Kind::Float)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "configuration: `num_attention_heads` is 0");
}

#[test]
fn a_configuration_that_contradicts_the_weights() {
    for (model, key, value, says) in [
        (
            "llama",
            "hidden_size",
            json!(32),
            "`model.embed_tokens.weight` in DIR/model.safetensors has shape [320, 64], the configuration demands [320, 32]",
        ),
        (
            "llama",
            "intermediate_size",
            json!(96),
            "has shape [112, 64], the configuration demands [96, 64]",
        ),
        (
            "llama",
            "num_key_value_heads",
            json!(4),
            "k_proj.weight` in DIR/model.safetensors has shape [32, 64], the configuration demands [64, 64]",
        ),
        (
            "llama",
            "num_hidden_layers",
            json!(4),
            "tensor `model.layers.3.input_layernorm.weight` is missing in DIR",
        ),
        (
            "llama",
            "num_hidden_layers",
            json!(2),
            "DIR holds 9 tensors that the model does not know, the first is `model.layers.2.",
        ),
        (
            "llama",
            "attention_bias",
            json!(true),
            "q_proj.bias` is missing in DIR",
        ),
        (
            "llama3",
            "attention_bias",
            json!(false),
            "tensors that the model does not know, the first is `model.layers.0.self_attn.k_proj.bias`",
        ),
        (
            "llama3",
            "tie_word_embeddings",
            json!(false),
            "tensor `lm_head.weight` is missing in DIR",
        ),
        (
            "qwen2",
            "vocab_size",
            json!(321),
            "`model.embed_tokens.weight` in DIR/model-00001-of-00003.safetensors has shape [320, 48], the configuration demands [321, 48]",
        ),
    ] {
        let error = with_config(model, |config| config[key] = value);
        assert!(error.contains(says), "{key}: {error}");
    }
}

#[test]
fn forward_refuses_what_does_not_fit() {
    let model = common::load(fixtures().join("llama/model"), Kind::Float);
    let ids = Tensor::from_slice(&[5_i64, 9, 31]);
    let row = ids.unsqueeze(0);
    let error = |ids: &Tensor, ctx: Ctx| model.forward(ids, &ctx).unwrap_err().to_string();
    assert!(!error(&ids, Ctx::eval()).is_empty(), "no batch");
    let text = error(&Tensor::from_slice(&[5_i64, 320]).unsqueeze(0), Ctx::eval());
    assert!(
        text.starts_with("embedding on [320, 64] Float, [1, 2] Int64: index out of range"),
        "{text}"
    );
    let text = error(
        &row,
        Ctx {
            cu_seqlens: Some([0, 2].into()),
            ..Ctx::eval()
        },
    );
    assert_eq!(
        text,
        "cu_seqlens [0, 2] do not cut a row of 3 tokens into sequences"
    );
    let text = error(
        &row,
        Ctx {
            positions: Some(Tensor::from_slice(&[0_i64, 1])),
            ..Ctx::eval()
        },
    );
    assert!(text.starts_with("rotary on [1, 4, 3, 16] Float"), "{text}");
    let deep = Tensor::from_slice(&[0_i64, 1, 2]).view([1, 1, 3]);
    let text = error(
        &row,
        Ctx {
            positions: Some(deep),
            ..Ctx::eval()
        },
    );
    assert_eq!(text, "positions of shape [1, 1, 3]");
}

#[test]
fn a_linear_refuses_what_does_not_fit() {
    let random = Factory::random(3, Kind::Float, Device::Cpu).unwrap();
    let linear = random.linear("proj", 6, 4, true, 0.5).unwrap();
    let weight = linear.op().dense().unwrap();
    let part = |rank, world, dim| {
        let shard = Shard {
            split: Split::Out,
            rank,
            world,
        };
        shard.of(&weight, dim).map(|part| part.size())
    };
    assert_eq!(part(1, 2, 0).unwrap(), [2, 6]);
    for (rank, world, dim) in [
        (0, 3, 0),
        (2, 2, 0),
        (-1, 2, 0),
        (0, 0, 0),
        (0, 2, 2),
        (0, 2, -1),
    ] {
        let error = part(rank, world, dim).unwrap_err().to_string();
        let expected = format!("[4, 6] has no part {rank} of {world} along dimension {dim}");
        assert_eq!(error, expected);
    }
    let x = Tensor::ones([2, 5], (Kind::Float, Device::Cpu));
    let error = linear.forward(&x, &Ctx::eval()).unwrap_err().to_string();
    assert!(
        error.starts_with("linear on [2, 5] Float, [4, 6] Float, [4] Float: "),
        "{error}"
    );
    let flat = Dense::new(Param::new(Tensor::ones([6], (Kind::Float, Device::Cpu))));
    let mut linear = linear;
    let error = linear.set_op(Box::new(flat)).unwrap_err().to_string();
    assert_eq!(error, "an operator of shape (0, 0) for (4, 6)");
}
