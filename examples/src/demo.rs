//! The main job from end to end on a generated world of Chinese: pretrain, fine-tune, merge, ask.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, Parser};
use ferrotune::{libtorch::tch::Kind, nn::files};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    checkpoint,
    corpus::{Corpus, CorpusOptions},
    exam::{self, Comparison, Report},
    finetune::Finetune,
    pretrain::Pretrain,
};

/// The options of `demo`.
#[derive(Debug, Clone, Args)]
pub struct Demo {
    /// Folder for data, checkpoints and results
    #[arg(long)]
    pub out: PathBuf,
    /// Another world of numbers, sentences and initial weights
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// What the folder holds, so that another seed or release does not take it for its own.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    recipe: u32,
    seed: u64,
}

/// Raised when corpus, sizes or training change.
const RECIPE: u32 = 1;

#[derive(Parser)]
struct PretrainLine {
    #[command(flatten)]
    options: Pretrain,
}

#[derive(Parser)]
struct FinetuneLine {
    #[command(flatten)]
    options: Finetune,
}

impl Demo {
    /// Does what has not been done yet, and prints the results.
    ///
    /// # Errors
    /// What stops one of the steps.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let start = Instant::now();
        let stamp = Stamp {
            recipe: RECIPE,
            seed: self.seed,
        };
        let path = self.out.join("demo.json");
        if read::<Stamp>(&path).is_some_and(|found| found != stamp) {
            fs::remove_dir_all(&self.out)
                .with_context(|| format!("cannot remove {}", self.out.display()))?;
        }
        fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot make the folder {}", self.out.display()))?;
        files::write_json(&path, &stamp)?;

        let [data, base, adapter, merged] =
            ["data", "base", "adapter", "merged"].map(|name| self.out.join(name));
        let mut took = Vec::new();
        let mut stage = |name: &'static str, done: &Path, work: &dyn Fn() -> Result<()>| {
            let start = Instant::now();
            if done.exists() {
                eprintln!("{name}: stands in {}", done.display());
            } else {
                eprintln!("{name} ...");
                work().with_context(|| name)?;
                took.push((name, start.elapsed()));
            }
            anyhow::Ok(())
        };
        stage("write the corpus", &data.join("eval.jsonl"), &|| {
            Corpus::new(self.seed, CorpusOptions::default()).write_to(&data)?;
            Ok(())
        })?;
        stage("pretrain", &base.join("config.json"), &|| {
            // A run that was cut short left checkpoints that belong to it.
            let resume = base.join("checkpoints").exists();
            self.pretrain(&data, &base, resume)?.run()
        })?;
        let questions = exam::questions(&data.join("eval.jsonl"))?;
        let before = self.out.join("before.json");
        stage("ask the base", &before, &|| {
            examine(&base, None, &questions, &before)
        })?;
        stage("fine-tune", &adapter.join("adapter_config.json"), &|| {
            let resume = adapter.join("checkpoints").exists();
            self.finetune(&data, &base, &adapter, resume)?
                .run()
                .map(drop)
        })?;
        let after = self.out.join("after.json");
        stage("ask the fine-tuned model", &after, &|| {
            examine(&base, Some(&adapter), &questions, &after)
        })?;
        stage("merge", &merged.join("config.json"), &|| {
            checkpoint::merge(&base, &adapter, &merged)
        })?;

        self.report(out, &questions, &took, start.elapsed())
    }

    fn pretrain(&self, data: &Path, base: &Path, resume: bool) -> Result<Pretrain> {
        let seed = self.seed.to_string();
        let mut line = vec!["pretrain".into(), "--data".into()];
        line.push(data.join("pretrain.jsonl").into_os_string());
        line.extend(["--out".into(), base.into(), "--seed".into(), seed.into()]);
        line.extend(["--save-every", "500", "--epochs", "2"].map(Into::into));
        if resume {
            line.push("--resume".into());
        }
        Ok(PretrainLine::try_parse_from(line)?.options)
    }

    fn finetune(&self, data: &Path, base: &Path, out: &Path, resume: bool) -> Result<Finetune> {
        let seed = self.seed.to_string();
        let mut line = vec!["finetune".into(), "--model".into(), base.into()];
        line.extend(["--data".into(), data.join("train.jsonl").into_os_string()]);
        line.extend([
            "--eval-data".into(),
            data.join("eval.jsonl").into_os_string(),
        ]);
        line.extend(["--out".into(), out.into(), "--seed".into(), seed.into()]);
        let options = "--target all-linear --dropout 0 --dtype fp32 --lr 1e-3 --epochs 4 \
                       --batch 2 --max-length 256 --save-every 500";
        line.extend(options.split_whitespace().map(Into::into));
        if resume {
            line.push("--resume".into());
        }
        Ok(FinetuneLine::try_parse_from(line)?.options)
    }

    fn report(
        &self,
        out: &mut impl Write,
        questions: &[exam::Question],
        took: &[(&str, Duration)],
        all: Duration,
    ) -> Result<()> {
        let get = |name: &str| {
            let path = self.out.join(name);
            read::<Report>(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (before, after) = (get("before.json")?, get("after.json")?);
        let comparison = Comparison {
            before: &before,
            after: &after,
        };
        writeln!(
            out,
            "\nHeld-out questions, greedy answers under the same chat template:\n"
        )?;
        writeln!(out, "{comparison}")?;

        let merged = self.out.join("merged");
        let tokenizer = checkpoint::tokenizer(&merged, None)?;
        let model = checkpoint::load(&merged, None, Kind::Float)?;
        writeln!(out, "The merged model answers:")?;
        let mut seen = Vec::new();
        for question in questions {
            if !seen.contains(&&question.category) {
                seen.push(&question.category);
                let answer = exam::answer(&model, &tokenizer, &question.instruction)?;
                writeln!(out, "  {} {answer}", question.instruction)?;
            }
        }
        writeln!(out)?;
        for (name, time) in took {
            writeln!(out, "{name:<26}{:>7.1} s", time.as_secs_f64())?;
        }
        writeln!(out, "{:<26}{:>7.1} s\n", "all", all.as_secs_f64())?;
        for (name, place) in [
            ("adapter (PEFT)", "adapter/adapter_model.safetensors"),
            ("loss curve", "adapter/loss.svg"),
            ("merged checkpoint", "merged"),
        ] {
            writeln!(out, "{name:<19}{}", self.out.join(place).display())?;
        }
        Ok(())
    }
}

/// Asks all questions and keeps the report.
fn examine(
    base: &Path,
    adapter: Option<&Path>,
    questions: &[exam::Question],
    report: &Path,
) -> Result<()> {
    let tokenizer = checkpoint::tokenizer(base, adapter)?;
    let model = checkpoint::load(base, adapter, Kind::Float)?;
    let found = exam::examine(&model, &tokenizer, questions, |_, _| {})?;
    Ok(files::write_json(report, &found)?)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}
