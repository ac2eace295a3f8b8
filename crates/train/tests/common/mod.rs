//! What several tests need: fixtures, a small model, batches.
#![allow(dead_code, reason = "each test uses a part")]

use ferrotune_data::{Batch, Bin, Dataset, Example, StreamOptions, Streams};
use ferrotune_nn::libtorch::random::Generator;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::module::set_trainable;
use ferrotune_nn::{Decoder, DecoderConfig, Factory, Weights};
use std::path::PathBuf;

pub const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures")).join(name)
}

/// A tensor of a safetensors file.
pub fn tensor(file: &Weights, name: &str) -> Tensor {
    file.load(name, None, None, Device::Cpu).unwrap()
}

/// A random Llama of two blocks, wide enough that its losses move.
pub fn llama(seed: u64, kind: Kind) -> Decoder {
    let config: DecoderConfig = serde_json::from_value(serde_json::json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "initializer_range": 0.2
    }))
    .unwrap();
    let factory = Factory::random(seed, kind, Device::Cpu).unwrap();
    let model = Decoder::new(&factory, config, kind).unwrap();
    set_trainable(&model, true).unwrap();
    model
}

/// Examples of 3 to 14 tokens, each token mostly deciding the next, some of them not counted.
pub fn dataset(examples: u32) -> Dataset {
    let example = |i: u32| {
        let length = 3 + (i * 7) % 12;
        let token = |j: u32| (i * 13 + j * (5 + i % 3) + (i * j) % 2) % 61;
        let ids: Vec<u32> = (0..length).map(token).collect();
        let weight = |j: u32| {
            if j < 2 + i % 2 && j + 1 < length {
                0.0
            } else {
                1.0
            }
        };
        Example::new(ids, (0..length).map(weight).collect())
    };
    Dataset::new((0..examples).map(example).collect()).unwrap()
}

pub fn streams(global_batch: usize, epochs: Option<u64>) -> Streams {
    let options = StreamOptions {
        virtual_streams: 3,
        seed: 5,
        max_length: 32,
        global_batch,
        epochs,
        ..StreamOptions::default()
    };
    Streams::new(dataset(40), options).unwrap()
}

/// One batch of everything.
pub fn whole() -> Batch {
    let bins: Vec<Bin> = streams(100, Some(1)).next_batch().unwrap();
    Batch::collate(&bins)
}

/// Standard normal numbers of a seed.
pub fn random(shape: &[i64], seed: u64) -> Tensor {
    let mut tensor = Tensor::zeros(shape, CPU);
    let generator = Generator::new(Device::Cpu, seed).unwrap();
    generator.normal(&mut tensor, 0.0, 1.0).unwrap();
    tensor
}

/// The largest difference.
pub fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}
