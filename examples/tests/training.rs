//! finetune and pretrain as people run them: to the end, interrupted, resumed, killed, and on bad input.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use common::{command, edit, fails, model, names, succeeds};
use ferrotune::{
    libtorch::tch::{Device, Kind},
    lora::{LoraConfig, peft},
    nn::Decoder,
    text::{ChatTemplate, Tokenizer},
    train::{Step, checkpoint},
};
use ferrotune_examples::corpus::{Corpus, CorpusOptions};

/// A fixture's model with a tokenizer that has a chat template, and rows of every shape.
struct World {
    folder: tempfile::TempDir,
    model: PathBuf,
    data: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = model("llama", folder.path());
        let mut tokenizer = Tokenizer::from_dir(&model).unwrap();
        tokenizer.set_chat_template(ChatTemplate::builtin("chatml").unwrap());
        tokenizer.save(&model).unwrap();
        let data = folder.path().join("rows.jsonl");
        let mut rows = String::new();
        for n in 0..24 {
            rows += &match n % 3 {
                0 => format!(
                    r#"{{"instruction": "{n}加一？", "input": "", "output": "我数到{n}。"}}"#
                ),
                1 => format!(
                    r#"{{"messages": [{{"role": "user", "content": "{n}"}}, {{"role": "assistant", "content": "好{n}"}}]}}"#
                ),
                _ => format!(
                    r#"{{"conversations": [{{"from": "human", "value": "喂{n}"}}, {{"from": "gpt", "value": "在"}}]}}"#
                ),
            };
            rows.push('\n');
        }
        fs::write(&data, rows).unwrap();
        Self {
            folder,
            model,
            data,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `finetune` of 12 steps with dropout into `out`.
    fn finetune(&self, out: &Path) -> Command {
        let mut finetune = command("finetune");
        finetune.arg("--model").arg(&self.model);
        finetune.arg("--data").arg(&self.data);
        finetune.arg("--out").arg(out);
        finetune.args([
            "--r",
            "4",
            "--alpha",
            "8",
            "--dropout",
            "0.1",
            "--dtype",
            "fp32",
        ]);
        finetune.args(["--max-steps", "12", "--batch", "2", "--accumulate", "2"]);
        finetune.args(["--max-length", "64", "--lr", "1e-2", "--seed", "3"]);
        finetune
    }
}

/// The same command without an option and its value.
fn without(command: Command, option: &str) -> Command {
    let args: Vec<_> = command.get_args().collect();
    let at = args.iter().position(|arg| *arg == option).unwrap();
    let mut kept = Command::new(command.get_program());
    kept.args(&args[..at]).args(&args[at + 2..]);
    kept.stdin(Stdio::null());
    kept
}

fn steps(out: &Path) -> Vec<Step> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What must repeat: all but the speed.
fn numbers(out: &Path) -> Vec<(u64, f64, f64, f64, u64)> {
    let row = |s: Step| (s.step, s.loss, s.lr, s.grad_norm, s.tokens);
    steps(out).into_iter().map(row).collect()
}

#[test]
fn a_finetune_leaves_an_adapter_its_tokenizer_metrics_and_a_curve() {
    let world = World::new();
    let out = world.path("out");
    succeeds(world.finetune(&out).arg("--eval-data").arg(&world.data));
    let found = names(&out);
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoints",
        "evaluations.jsonl",
        "loss.svg",
        "metrics.jsonl",
        "tokenizer.json",
    ] {
        assert!(found.contains(&name.to_owned()), "{name} in {found:?}");
    }
    let steps = steps(&out);
    assert_eq!(steps.len(), 12);
    assert!(
        steps[11].loss < 0.8 * steps[0].loss,
        "{} {}",
        steps[0].loss,
        steps[11].loss
    );

    let mut base = Decoder::load(&world.model, Kind::Float, Device::Cpu).unwrap();
    let config: LoraConfig = peft::load(&mut base, peft::DEFAULT, &out).unwrap();
    assert_eq!(
        (config.r, config.lora_alpha, config.lora_dropout),
        (4, 8.0, 0.1)
    );
    assert_eq!(config.target_modules, ["q_proj", "v_proj"].into());

    // The options of a file are those of the command line.
    let toml = world.path("job.toml");
    fs::write(
        &toml,
        "r = 4\nalpha = 8\ndtype = \"fp32\"\nmax-steps = 12\nbatch = 2\naccumulate = 2\n\
         max-length = 64\nlr = 1e-2\nseed = 3\ntarget = [\"q_proj\", \"v_proj\"]\n",
    )
    .unwrap();
    let again = world.path("again");
    let mut finetune = command("finetune");
    finetune.arg("--model").arg(&world.model);
    finetune.arg("--data").arg(&world.data);
    succeeds(finetune.arg("--out").arg(&again).arg("--config").arg(&toml));
    assert_eq!(numbers(&again), numbers(&out));
    let weights = |dir: &Path| fs::read(dir.join(peft::ADAPTER_FILE)).unwrap();
    assert_eq!(weights(&again), weights(&out), "the same to the bit");
}

/// Waits until a checkpoint stands or the child ends.
fn first_checkpoint(child: &mut Child, out: &Path) {
    let there = || {
        matches!(
            checkpoint::latest(&out.join("checkpoints")),
            Ok((Some(_), _))
        )
    };
    while !there() && child.try_wait().unwrap().is_none() {
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn ctrl_c_saves_and_the_resumed_run_is_the_uninterrupted_one() {
    let world = World::new();
    let (whole, parted) = (world.path("whole"), world.path("parted"));
    let long = |out: &Path| {
        let mut finetune = without(world.finetune(out), "--max-steps");
        finetune.args(["--epochs", "40", "--save-every", "1"]);
        finetune
    };
    succeeds(long(&whole));

    let mut child = long(&parted).stderr(Stdio::piped()).spawn().unwrap();
    first_checkpoint(&mut child, &parted);
    // SAFETY: a signal to our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("interrupted after") && said.contains("--resume"),
        "{said}"
    );
    let done = steps(&parted).len();
    assert!(done < steps(&whole).len(), "interrupted before its end");
    let (latest, damaged) = checkpoint::latest(&parted.join("checkpoints")).unwrap();
    assert!(damaged.is_empty());
    assert!(
        latest.unwrap().ends_with(format!("step-{done:08}")),
        "saved first"
    );
    assert!(
        !parted.join(peft::ADAPTER_FILE).exists(),
        "the result comes at the end"
    );

    // Killed hard this time, then brought to the end.
    let mut child = long(&parted)
        .arg("--resume")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(700));
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(long(&parted).arg("--resume"));
    assert_eq!(numbers(&parted), numbers(&whole), "bit for bit");
    let weights = |dir: &Path| fs::read(dir.join(peft::ADAPTER_FILE)).unwrap();
    assert_eq!(weights(&parted), weights(&whole));
}

#[test]
fn a_second_run_in_a_folder_must_say_that_it_resumes() {
    let world = World::new();
    let out = world.path("out");
    succeeds(world.finetune(&out));
    let good = fs::read(out.join(peft::ADAPTER_FILE)).unwrap();
    let said = fails(world.finetune(&out));
    assert!(
        said.contains("step-00000012") && said.contains("resume"),
        "{said}"
    );
    succeeds(world.finetune(&out).arg("--resume"));
    assert_eq!(fs::read(out.join(peft::ADAPTER_FILE)).unwrap(), good);
    // A job that is started again and again may always say it.
    let new = world.path("new");
    succeeds(world.finetune(&new).arg("--resume"));
    assert_eq!(fs::read(new.join(peft::ADAPTER_FILE)).unwrap(), good);
}

#[test]
fn bad_data_is_named_by_file_and_line_and_skipped_only_when_asked() {
    let world = World::new();
    let fail = |rows: &str| {
        let data = world.path("bad.jsonl");
        fs::write(&data, rows).unwrap();
        let out = world.path("bad");
        let mut finetune = command("finetune");
        finetune.arg("--model").arg(&world.model);
        finetune.arg("--data").arg(&world.data).arg(&data);
        let said = fails(finetune.arg("--out").arg(&out));
        assert!(!out.exists(), "nothing is begun");
        said
    };
    let good = r#"{"instruction": "一", "output": "二"}"#;
    let said = fail(&format!("{good}\n{{\"instruction\": \n"));
    assert!(said.contains("bad.jsonl:2: not JSON"), "{said}");
    let said = fail(&format!("{good}\n\n{{\"question\": \"一\"}}\n"));
    assert!(
        said.contains("bad.jsonl:3: no") && said.contains("`question`"),
        "{said}"
    );
    let said = fail(&format!(
        "{good}\n{{\"messages\": [{{\"role\": \"user\", \"content\": \"一\"}}]}}\n"
    ));
    assert!(said.contains("bad.jsonl:2: no token counts"), "{said}");
    assert!(fail("").contains("bad.jsonl has no rows"));

    let data = world.path("mixed.jsonl");
    fs::write(&data, format!("{good}\nnonsense\n{good}\n{{}}\n")).unwrap();
    let mut finetune = command("finetune");
    finetune
        .arg("--model")
        .arg(&world.model)
        .arg("--data")
        .arg(&data);
    finetune.args(["--epochs", "1", "--skip-bad-lines", "--out"]);
    let output = finetune.arg(world.path("mixed")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("skipped 2 bad lines") && said.contains("mixed.jsonl:4"),
        "{said}"
    );

    fs::write(&data, "nonsense\n{}\n").unwrap();
    let mut finetune = command("finetune");
    finetune
        .arg("--model")
        .arg(&world.model)
        .arg("--data")
        .arg(&data);
    let said = fails(
        finetune
            .args(["--skip-bad-lines", "--out"])
            .arg(world.path("none")),
    );
    assert!(
        said.contains("the dataset is empty: 2 rows were skipped"),
        "{said}"
    );
}

#[test]
fn bad_models_and_options_are_named() {
    let world = World::new();
    let out = world.path("out");
    let said = fails(world.finetune(&out).args(["--target", "nothing_proj"]));
    assert!(
        said.contains("nothing_proj") && said.contains("q_proj"),
        "{said}"
    );
    let said = fails(command("finetune").arg("--model").arg(&world.model));
    assert!(said.contains("--out is missing"), "{said}");
    let said = fails(
        command("finetune")
            .arg("--model")
            .arg(&world.model)
            .arg("--out")
            .arg(&out),
    );
    assert!(said.contains("no data files"), "{said}");
    let said = fails(world.finetune(&out).args(["--template", "nonsense"]));
    assert!(
        said.contains("nonsense") && said.contains("chatml"),
        "{said}"
    );

    edit(world.model.join("config.json"), |config| {
        config["vocab_size"] = 200.into()
    });
    let said = fails(world.finetune(&out));
    assert!(
        said.contains("embed_tokens") && said.contains("[200, 64]"),
        "{said}"
    );
    edit(world.model.join("config.json"), |config| {
        config["model_type"] = "gpt9".into()
    });
    let said = fails(world.finetune(&out));
    assert!(said.contains("gpt9"), "{said}");
    assert!(!out.join("checkpoints").exists());
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint() {
    let world = World::new();
    let out = world.path("out");
    // Weights of 1e38 within a few steps.
    let mut finetune = without(world.finetune(&out), "--lr");
    let said = fails(finetune.args(["--save-every", "1", "--lr", "1e38"]));
    assert!(said.contains("at step"), "{said}");
    let (latest, damaged) = checkpoint::latest(&out.join("checkpoints")).unwrap();
    assert!(latest.is_some() && damaged.is_empty());
    assert!(!out.join(peft::ADAPTER_FILE).exists());
}

/// The limit on a file's size stands for a full disk.
#[test]
fn a_full_disk_ends_the_run_and_keeps_the_last_checkpoint() {
    let world = World::new();
    let out = world.path("out");
    succeeds(world.finetune(&out));
    let good = checkpoint::latest(&out.join("checkpoints"))
        .unwrap()
        .0
        .unwrap();
    let resumed = without(world.finetune(&out), "--max-steps");
    let mut shell = Command::new("sh");
    // 16 blocks of 512 bytes: the metrics fit, an adapter does not.
    let limit = "trap '' XFSZ; ulimit -f 16; exec \"$@\"";
    shell.args(["-c", limit, "sh"]).arg(resumed.get_program());
    let said = fails(
        shell
            .args(resumed.get_args())
            .args(["--resume", "--max-steps", "14"]),
    );
    assert!(
        said.contains("adapter_model.safetensors") && said.contains("step-00000014"),
        "{said}"
    );
    let (latest, damaged) = checkpoint::latest(&out.join("checkpoints")).unwrap();
    assert!(damaged.is_empty());
    assert_eq!(latest.unwrap(), good);
    assert_eq!(
        names(&out.join("checkpoints")),
        ["step-00000012"],
        "and nothing half written"
    );
}

#[test]
fn pretraining_makes_a_checkpoint_that_loads_and_continues_text() {
    let folder = tempfile::tempdir().unwrap();
    let options = CorpusOptions {
        sentences: 200,
        ..CorpusOptions::default()
    };
    Corpus::new(1, options).write_to(folder.path()).unwrap();
    let text = folder.path().join("more.txt");
    fs::write(&text, "今天天气很好。\n明天天气也很好。\n").unwrap();
    let out = folder.path().join("base");
    let mut pretrain = command("pretrain");
    pretrain
        .arg("--data")
        .arg(folder.path().join("pretrain.jsonl"))
        .arg(&text);
    pretrain
        .arg("--out")
        .arg(&out)
        .args(["--vocab-size", "400", "--hidden-size", "32"]);
    pretrain.args(["--intermediate-size", "64", "--layers", "2", "--heads", "2"]);
    pretrain.args([
        "--kv-heads",
        "1",
        "--max-length",
        "64",
        "--batch",
        "4",
        "--epochs",
        "3",
    ]);
    succeeds(&mut pretrain);
    let steps = steps(&out);
    assert!(steps[steps.len() - 1].loss < 0.8 * steps[0].loss);
    let model = Decoder::load(&out, Kind::Float, Device::Cpu).unwrap();
    assert!(model.config().tie_word_embeddings);
    let mut generate = command("generate");
    generate
        .arg("--model")
        .arg(&out)
        .args(["--prompt", "今天", "--max-tokens", "5"]);
    assert!(!succeeds(&mut generate).trim().is_empty());
}
