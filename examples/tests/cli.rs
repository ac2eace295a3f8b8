//! The programs as people run them: logits and merge against recorded outputs of transformers and PEFT, generate
//! against the library. What they say to bad input is in `bad_input.rs`.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::Stdio,
};

use common::{
    adapter, close, command, edit, fails, fixtures, ids, logits, merge, model, names, peer,
    succeeds, tensor,
};
use ferrotune::{
    generate::{self, Options, Sampling},
    libtorch::tch::{Device, Kind, no_grad_guard},
    lora::{self, LoraConfig, peft},
    nn::{Ctx, Decoder, module::params, weights},
    text::{ChatTemplate, Message, Tokenizer},
};
use serde_json::json;

#[test]
fn logits_are_transformers() {
    for name in ["llama", "llama3", "qwen2", "qwen2_tied"] {
        let model = fixtures().join(name).join("model");
        let expected = fixtures().join(name).join("expected.safetensors");
        let found = logits(&model, None, &expected, "fp32");
        close(&found, &tensor(&expected, "logits.f32").get(1), 1e-4);
        // That the library is transformers' in bf16 is proved in nn; here, that the program is the library.
        let _guard = no_grad_guard();
        let ids = tensor(&expected, "ids").narrow(0, 1, 1);
        let library = Decoder::load(&model, Kind::BFloat16, Device::Cpu).unwrap();
        let library = library.forward(&ids, &Ctx::eval()).unwrap().get(0);
        let found = logits(&model, None, &expected, "bf16");
        assert_eq!(found, library.to_kind(Kind::Float), "{name}");
    }
}

#[test]
fn logits_with_an_adapter_and_merged_are_pefts() {
    for (name, variant) in [("llama", "qv"), ("qwen2", "rslora")] {
        let model = fixtures().join(name).join("model");
        let (adapter, expected) = adapter(name, variant);
        let found = logits(&model, Some(&adapter), &expected, "fp32");
        close(&found, &tensor(&expected, "logits").get(1), 1e-4);
        // The base is another model, so this can fail.
        let base = tensor(
            &fixtures().join(name).join("expected.safetensors"),
            "logits.f32",
        );
        let differs = (&found - base.get(1)).abs().max().double_value(&[]);
        assert!(differs > 0.1, "{differs}");

        let dir = tempfile::tempdir().unwrap();
        let merged = dir.path().join("deep/merged");
        succeeds(merge(&model, &adapter, &merged));
        assert_eq!(
            names(&merged),
            ["config.json", "generation_config.json", "model.safetensors"]
        );
        let found = logits(&merged, None, &expected, "fp32");
        close(&found, &tensor(&expected, "merged").get(1), 1e-4);
    }
}

#[test]
fn merging_keeps_dtype_tokenizer_and_replaces_an_older_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("llama", dir.path());
    let (adapter, expected) = adapter("llama", "qv");
    // In bf16, and config.json is wrong about it, as it is in many a checkpoint.
    Decoder::load(&base, Kind::BFloat16, Device::Cpu)
        .unwrap()
        .save(&base, 100_000)
        .unwrap();
    assert!(base.join(weights::INDEX_FILE).exists());
    edit(base.join("config.json"), |config| {
        config["dtype"] = json!("float32")
    });

    // An older result, in shards that the new one must not be read with.
    let out = dir.path().join("merged");
    fs::create_dir(&out).unwrap();
    for name in names(&base) {
        fs::copy(base.join(&name), out.join(&name)).unwrap();
    }
    fs::write(out.join("chat_template.jinja"), "older").unwrap();
    fs::write(out.join("README.md"), "mine").unwrap();
    succeeds(merge(&base, &adapter, &out));
    assert_eq!(
        names(&out),
        [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    for name in names(&out).iter().filter(|name| name.contains("tokenizer")) {
        assert_eq!(
            fs::read(out.join(name)).unwrap(),
            fs::read(base.join(name)).unwrap()
        );
    }
    let weight = tensor(
        &out.join("model.safetensors"),
        "model.layers.0.self_attn.q_proj.weight",
    );
    assert_eq!(weight.kind(), Kind::BFloat16);
    let found = logits(&out, None, &expected, "fp32");
    close(&found, &tensor(&expected, "merged").get(1), 2e-1);

    // The tokenizer that training left beside the adapter is the one to go with it.
    let trained = dir.path().join("trained");
    fs::create_dir(&trained).unwrap();
    for name in names(&adapter) {
        fs::copy(adapter.join(&name), trained.join(&name)).unwrap();
    }
    let mut tokenizer = Tokenizer::from_dir(&base).unwrap();
    tokenizer.set_chat_template(ChatTemplate::builtin("alpaca").unwrap());
    tokenizer.save(&trained).unwrap();
    succeeds(merge(&base, &trained, &out));
    let read = Tokenizer::from_dir(&out).unwrap();
    assert!(
        read.chat_template()
            .unwrap()
            .source()
            .contains("### Instruction")
    );
}

#[test]
fn merging_onto_an_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("llama", dir.path());
    let (adapter, _) = adapter("llama", "qv");
    let before = fs::read(base.join("model.safetensors")).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&base, &link).unwrap();
    for out in [base.clone(), base.join("../model"), link] {
        let said = fails(merge(&base, &adapter, &out));
        assert!(said.contains(out.to_str().unwrap()), "{said}");
    }
    assert_eq!(fs::read(base.join("model.safetensors")).unwrap(), before);
    let own = dir.path().join("adapter");
    fs::create_dir(&own).unwrap();
    for name in names(&adapter) {
        fs::copy(adapter.join(&name), own.join(&name)).unwrap();
    }
    fails(merge(&base, &own, &own));
    assert_eq!(names(&own), names(&adapter));
}

#[test]
fn help_is_no_failure() {
    for program in ["logits", "merge", "generate"] {
        let help = succeeds(command(program).arg("--help"));
        assert!(help.contains("--model"), "{help}");
    }
}

/// What the library says, with the settings that the program takes.
fn said(base: &Path, with: Option<&Path>, prompt: &[u32], change: impl Fn(&mut Options)) -> String {
    let mut model = Decoder::load(base, Kind::Float, Device::Cpu).unwrap();
    if let Some(adapter) = with {
        peft::load(&mut model, peft::DEFAULT, adapter).unwrap();
    }
    let tokenizer = Tokenizer::from_dir(base).unwrap();
    let mut options = Options {
        max_tokens: 40,
        eos: vec![2, tokenizer.eos().unwrap()],
        ..Options::default()
    };
    change(&mut options);
    generate::text(&model, &tokenizer, prompt, &options, |_| ()).unwrap()
}

#[test]
fn generate_continues_a_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("llama", dir.path());
    let (adapter, _) = adapter("llama", "qv");
    let prompt = "三加四";
    let ids = Tokenizer::from_dir(&base)
        .unwrap()
        .encode(prompt, true)
        .unwrap();
    let generate = |args: &[&str]| {
        let mut generate = command("generate");
        generate
            .arg("--model")
            .arg(&base)
            .args(["--prompt", prompt, "--max-tokens", "40"]);
        succeeds(generate.args(args))
    };
    let greedy = said(&base, None, &ids, |_| ());
    assert!(greedy.chars().count() > 10, "{greedy:?}");
    assert_eq!(generate(&[]), format!("{greedy}\n"));
    let adapted = said(&base, Some(&adapter), &ids, |_| ());
    assert_ne!(adapted, greedy);
    assert_eq!(
        generate(&["--adapter", adapter.to_str().unwrap()]),
        format!("{adapted}\n")
    );

    // The ninth character and what follows is cut off; the earlier ones do not hold it.
    let stop: String = greedy.chars().skip(8).take(2).collect();
    let head = greedy.split(&stop).next().unwrap();
    let out = generate(&["--stop", "never said", "--stop", &stop]);
    assert_eq!(out, format!("{head}\n"));

    let sampling = Sampling {
        temperature: 0.9,
        top_k: 50,
        top_p: 0.95,
        seed: 7,
    };
    let drawn = said(&base, None, &ids, |options| options.sampling = sampling);
    assert_ne!(drawn, greedy);
    let draw = ["--temperature", "0.9", "--top-k", "50", "--top-p", "0.95"];
    let with_seed = |seed| generate(&[&draw[..], &["--seed", seed]].concat());
    assert_eq!(with_seed("7"), format!("{drawn}\n"));
    assert_ne!(with_seed("8"), with_seed("7"));
    // Only that it runs: 16 bits may say something else.
    generate(&["--dtype", "bf16"]);
}

#[test]
fn generate_chats_by_the_template() {
    let dir = tempfile::tempdir().unwrap();
    let base = model("llama", dir.path());
    let chat = ["--chat", "--prompt", "你好", "--max-tokens", "40"];
    let said_so = fails(command("generate").arg("--model").arg(&base).args(chat));
    assert!(said_so.contains("no chat template"), "{said_so}");

    let mut tokenizer = Tokenizer::from_dir(&base).unwrap();
    tokenizer.set_chat_template(ChatTemplate::builtin("chatml").unwrap());
    tokenizer.save(&base).unwrap();
    let answer = |messages: &[Message]| {
        let template = tokenizer.chat_template().unwrap();
        let text = template.render(messages, true).unwrap();
        let ids = tokenizer.encode(&text, false).unwrap();
        said(&base, None, &ids, |_| ())
    };
    let mut history = vec![Message::user("你好")];
    let first = answer(&history);
    let out = succeeds(command("generate").arg("--model").arg(&base).args(chat));
    assert_eq!(out, format!("{first}\n"));

    history.extend([Message::assistant(&first), Message::user("三加四")]);
    let second = answer(&history);
    assert_ne!(
        second,
        answer(&[Message::user("三加四")]),
        "the history counts"
    );
    let mut chat = command("generate")
        .arg("--model")
        .arg(&base)
        .args(["--max-tokens", "40"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = chat.stdin.take().unwrap();
    let mut output = chat.stdout.take().unwrap();
    input.write_all("你好\n".as_bytes()).unwrap();
    // The first answer is there before anything else is asked.
    let mut bytes = vec![0; first.len() + 1];
    output.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), format!("{first}\n"));
    input.write_all("\n三加四".as_bytes()).unwrap();
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, format!("{second}\n"));
    assert!(chat.wait().unwrap().success());
}

#[test]
#[ignore = "needs the Python peers: cargo xtask check --full"]
fn transformers_reads_what_merge_writes() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen2", "qwen2_tied"] {
        let base = fixtures().join(name).join("model");
        let own = dir.path().join("adapter");
        random_adapter(&base, &own);
        let [merged, theirs, pefts] = ["merged", "theirs", "pefts"].map(|to| dir.path().join(to));
        succeeds(merge(&base, &own, &merged));
        let ids = ids(&fixtures().join(name).join("expected.safetensors"), 0);
        peer(
            "check_model.py",
            &[("--model", &merged), ("--out", &theirs)],
            &ids,
        );
        let folders: [(&str, &Path); 3] =
            [("--model", &base), ("--adapter", &own), ("--out", &pefts)];
        peer("check_adapter.py", &folders, &ids);
        let again = dir.path().join("again");
        let mut logits = command("logits");
        logits.arg("--model").arg(&merged).args(["--ids", &ids]);
        succeeds(logits.arg("--out").arg(&again));
        let [theirs, again, pefts] = [theirs, again, pefts].map(|file| tensor(&file, "logits"));
        close(&theirs, &again, 1e-4);
        // The tied checkpoint is stored in bf16, which rounds what is merged.
        let tolerance = if name == "qwen2_tied" { 1e-1 } else { 1e-4 };
        close(&theirs, &pefts, tolerance);
    }
}

/// An adapter that changes a good deal, and alpha is not r.
fn random_adapter(base: &Path, to: &Path) {
    let mut model = Decoder::load(base, Kind::Float, Device::Cpu).unwrap();
    let config = LoraConfig {
        r: 3,
        lora_alpha: 5.0,
        target_modules: "all-linear".into(),
        ..LoraConfig::default()
    };
    lora::attach(&mut model, peft::DEFAULT, &config, 1).unwrap();
    let _guard = no_grad_guard();
    for (path, param) in params(&model) {
        if path.contains("lora_B") {
            let _ = param.tensor().shallow_clone().uniform_(-0.1, 0.1);
        }
    }
    peft::save(&model, peft::DEFAULT, &config, to).unwrap();
}
