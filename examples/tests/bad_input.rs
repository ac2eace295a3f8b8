//! What the programs say to bad input, and what they leave behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::{
    adapter, close, command, edit, fails, ids, logits, merge, model, names, run, succeeds, tensor,
};
use ferrotune::{
    libtorch::tch::{Device, Kind, Tensor},
    nn::{Decoder, weights},
};
use serde_json::json;

/// The limit on a file's size stands for a full disk: with its signal ignored, writing fails; otherwise it kills.
#[test]
fn a_full_disk_and_a_kill_leave_nothing_that_loads() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("llama", dir.path());
    let (adapter, expected) = adapter("llama", "qv");
    let limited = |program: &str, trap: &str, out: &Path| {
        let script = format!("{trap}ulimit -f 64; exec \"$@\"");
        let merge = merge(&base, &adapter, out);
        let logits = {
            let mut logits = command("logits");
            logits.arg("--model").arg(&base);
            // 24 tokens are 30 kB of logits; ten times that do not fit.
            logits.args(["--ids", &vec![ids(&expected, 0); 10].join(",")]);
            logits.arg("--out").arg(out);
            logits
        };
        let command = if program == "merge" { &merge } else { &logits };
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script, "sh"]);
        shell.arg(command.get_program()).args(command.get_args());
        shell
    };
    let ignore = "trap '' XFSZ; ";

    let out = dir.path().join("logits.safetensors");
    let said = fails(&mut limited("logits", ignore, &out));
    assert!(said.contains("logits.safetensors"), "{said}");
    assert!(!out.exists());
    let out = dir.path().join("merged");
    let said = fails(&mut limited("merge", ignore, &out));
    assert!(said.contains("model.safetensors"), "{said}");
    assert_eq!(
        names(dir.path()),
        ["model"],
        "the folder that was made is gone again"
    );

    let killed = run(&mut limited("merge", "", &out));
    assert_eq!(killed.status.code(), None, "{killed:?}");
    assert!(Decoder::load(&out, Kind::Float, Device::Cpu).is_err());
    // The next run succeeds, and what is good then stays good.
    succeeds(merge(&base, &adapter, &out));
    let good = fs::read(out.join("model.safetensors")).unwrap();
    fails(&mut limited("merge", ignore, &out));
    run(&mut limited("merge", "", &out));
    assert_eq!(fs::read(out.join("model.safetensors")).unwrap(), good);
    close(
        &logits(&out, None, &expected, "fp32"),
        &tensor(&expected, "merged").get(1),
        1e-4,
    );
}

#[test]
fn bad_models_and_adapters_are_named_by_every_program() {
    type Damage = fn(&Path, &Path);
    let cases: [(&str, Damage, &[&str]); 11] = [
        (
            "no model",
            |model, _| fs::remove_dir_all(model).unwrap(),
            &["model/"],
        ),
        (
            "no config",
            |model, _| fs::remove_file(model.join("config.json")).unwrap(),
            &["model/config.json"],
        ),
        (
            "no weights",
            |model, _| fs::remove_file(model.join("model.safetensors")).unwrap(),
            &["model/model.safetensors"],
        ),
        (
            "truncated",
            |model, _| {
                let path = model.join("model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
            },
            &["model/model.safetensors", "not a valid safetensors file"],
        ),
        (
            "wrong shape",
            |model, _| {
                let path = model.join("model.safetensors");
                let name = "model.layers.1.mlp.up_proj.weight";
                let all = weights(&path);
                let cut = all.iter().map(|(key, tensor)| {
                    let narrow = key == name;
                    let part = narrow.then(|| tensor.narrow(0, 0, 100));
                    (key.clone(), part.unwrap_or(tensor.shallow_clone()))
                });
                let cut: Vec<_> = cut.collect();
                weights::save_file(&path, cut.iter().map(|(k, t)| (k.as_str(), t))).unwrap();
            },
            &[
                "`model.layers.1.mlp.up_proj.weight`",
                "[100, 64]",
                "[112, 64]",
            ],
        ),
        (
            "config against weights",
            |model, _| edit(model.join("config.json"), |c| c["vocab_size"] = json!(321)),
            &["`model.embed_tokens.weight`", "[320, 64]", "[321, 64]"],
        ),
        (
            "too few layers",
            |model, _| {
                edit(model.join("config.json"), |c| {
                    c["num_hidden_layers"] = json!(2)
                })
            },
            &["model.layers.2.", "does not know"],
        ),
        (
            "unknown architecture",
            |model, _| {
                edit(model.join("config.json"), |config| {
                    config["model_type"] = json!("gpt2");
                    config["architectures"] = json!(["GPT2LMHeadModel"]);
                })
            },
            &["GPT2LMHeadModel", "LlamaForCausalLM"],
        ),
        (
            "no adapter",
            |_, adapter| fs::remove_dir_all(adapter).unwrap(),
            &["adapter/adapter_config.json"],
        ),
        (
            "no target",
            |_, adapter| {
                let path = adapter.join("adapter_config.json");
                edit(path, |config| config["target_modules"] = json!(["c_attn"]));
            },
            &["adapter", "c_attn", "q_proj"],
        ),
        (
            "truncated adapter",
            |_, adapter| {
                let path = adapter.join("adapter_model.safetensors");
                let bytes = fs::read(&path).unwrap();
                fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
            },
            &["adapter/adapter_model.safetensors"],
        ),
    ];
    for (case, damage, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let base = model("llama", dir.path());
        let own = dir.path().join("adapter");
        fs::create_dir(&own).unwrap();
        let (adapter, _) = adapter("llama", "qv");
        for name in names(&adapter) {
            fs::copy(adapter.join(&name), own.join(&name)).unwrap();
        }
        damage(&base, &own);
        let before = names(dir.path());
        for program in ["logits", "merge", "generate"] {
            let mut command = command(program);
            command.arg("--model").arg(&base).arg("--adapter").arg(&own);
            match program {
                "logits" => command
                    .args(["--ids", "1,2", "--out"])
                    .arg(dir.path().join("out")),
                "merge" => command.arg("--out").arg(dir.path().join("out")),
                _ => command.args(["--prompt", "你好"]),
            };
            let said = fails(&mut command);
            for part in expected {
                assert!(said.contains(part), "{case}, {program}: {said}");
            }
            assert_eq!(names(dir.path()), before, "{case}, {program}");
        }
    }
}

fn weights(path: &Path) -> Vec<(String, Tensor)> {
    let weights = ferrotune::nn::Weights::open(path).unwrap();
    let load = |name: String| {
        let tensor = weights.load(&name, None, None, Device::Cpu).unwrap();
        (name, tensor)
    };
    weights.names().into_iter().map(load).collect()
}

#[test]
fn bad_arguments_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("llama", dir.path());
    let logits = |ids: &str, out: &str, named: &str| {
        let mut logits = command("logits");
        logits.arg("--model").arg(&base).args(["--ids", ids]);
        let said = fails(logits.arg("--out").arg(dir.path().join(out)));
        assert!(said.contains(named), "{said}");
        assert_eq!(names(dir.path()), ["model"]);
    };
    logits("1,320", "out", "token id 320 is outside");
    logits("1,-1", "out", "token id -1 is outside");
    logits("1,x", "out", "'x'");
    logits("1,2", "missing/out", "missing/out");
    // A folder of that name cannot be replaced.
    logits("1,2", "model", "model");

    let generate = |args: &[&str], named: &str| {
        let mut generate = command("generate");
        let said = fails(generate.arg("--model").arg(&base).args(args));
        assert!(said.contains(named), "{said}");
    };
    generate(&["--prompt", ""], "no tokens");
    generate(&["--prompt", "a", "--temperature", "-1"], "temperature -1");
    generate(&["--prompt", "a", "--top-p", "0"], "top_p 0");
    generate(&["--prompt", "a", "--dtype", "int3"], "int3");
    fs::remove_file(base.join("tokenizer.json")).unwrap();
    generate(&["--prompt", "a"], "model/tokenizer.json");
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../crates/text/tests/fixtures/byte_level/tokenizer.json"),
        base.join("tokenizer.json"),
    )
    .unwrap();
    // Another tokenizer's ids, of which the model has no embedding for one.
    generate(&["--prompt", "<think>"], "token id 400 is outside");
}
