//! Adapters and the real PEFT, both ways: fresh adapters of its, and ours in its hands.
#![allow(clippy::unwrap_used)]

mod common;

use common::nn::{FP32, close, fixtures, fresh_fixtures, load, logits, peer_logits};
use common::{CASES, MODELS, check_recorded_adapter, check_recorded_pair};
use ferrotune_lora::{LoraConfig, attach, merge, peft};
use ferrotune_nn::libtorch::random::Generator;
use ferrotune_nn::libtorch::tch::{Device, Kind, Tensor};
use ferrotune_nn::module::params;
use serde_json::json;

const IDS: [i64; 11] = [5, 9, 200, 7, 31, 9, 150, 3, 319, 44, 5];

#[test]
#[ignore = "needs the Python peers: cargo xtask peers, or cargo xtask check --full"]
fn fresh_adapters_give_the_logits_of_peft() {
    let fresh = fresh_fixtures();
    for model in MODELS {
        for case in CASES {
            check_recorded_adapter(&fresh.path().join(model), case);
        }
        check_recorded_pair(&fresh.path().join(model));
    }
}

#[test]
#[ignore = "needs the Python peers: cargo xtask peers, or cargo xtask check --full"]
fn adapters_that_we_wrote_give_our_logits_in_peft_and_merged_in_transformers() {
    let row = Tensor::from_slice(&IDS).unsqueeze(0);
    for (i, (model, name, config)) in [
        (
            "llama",
            "default",
            json!({"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"]}),
        ),
        (
            "qwen2",
            "chat",
            json!({"r": 4, "lora_alpha": 5.5, "use_rslora": true, "target_modules": "all-linear",
            "rank_pattern": {r"layers\.1\..*": 2}, "alpha_pattern": {"v_proj": 9}}),
        ),
        (
            "llama3",
            "default",
            json!({"r": 5, "lora_alpha": 11, "target_modules": r".*\.[02]\.self_attn\.(k|o)_proj"}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut config = config;
        config["peft_type"] = json!("LORA");
        let config: LoraConfig = serde_json::from_value(config).unwrap();
        let base_dir = fixtures().join(model).join("model");
        let mut decoder = load(&base_dir, Kind::Float);
        let base = logits(&decoder, &row).squeeze_dim(0);
        attach(&mut decoder, name, &config, 3).unwrap();
        let draw = Generator::new(Device::Cpu, 4).unwrap();
        for (_, param) in params(&decoder)
            .into_iter()
            .filter(|(path, _)| path.contains("lora_B"))
        {
            let mut value = param.tensor().detach().empty_like();
            draw.normal(&mut value, 0.0, 0.1).unwrap();
            param.assign(&value).unwrap();
        }
        let found = logits(&decoder, &row).squeeze_dim(0);
        assert!(
            common::nn::difference(&found, &base).max > 0.3,
            "the adapter matters"
        );

        let dir = tempfile::tempdir().unwrap();
        peft::save(&decoder, name, &config, dir.path()).unwrap();
        let (adapter, base_dir) = (peft::folder(dir.path(), name), base_dir.to_str().unwrap());
        let args = ["--model", base_dir, "--adapter", adapter.to_str().unwrap()];
        let theirs = peer_logits("check_adapter.py", &args, &IDS);
        let apart = close(model, &found, &theirs, FP32);
        merge(&mut decoder, name).unwrap();
        let merged = logits(&decoder, &row).squeeze_dim(0);
        let theirs = peer_logits(
            "check_adapter.py",
            &[&args[..], &["--merge"]].concat(),
            &IDS,
        );
        let apart_merged = close(model, &merged, &theirs, FP32);
        let out = tempfile::tempdir().unwrap();
        decoder
            .save(out.path(), [usize::MAX, 100_000][i % 2])
            .unwrap();
        let theirs = peer_logits(
            "check_model.py",
            &["--model", out.path().to_str().unwrap()],
            &IDS,
        );
        let whole = close(model, &merged, &theirs, FP32);
        eprintln!(
            "{model}: adapter {apart:?}, merged by PEFT {apart_merged:?}, merged by us {whole:?}"
        );
    }
}
