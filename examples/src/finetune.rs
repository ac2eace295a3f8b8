//! A LoRA adapter for a checkpoint, from instruction rows.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use ferrotune::{
    data::{StreamOptions, Streams},
    libtorch::cuda,
    lora::{self, LoraConfig, Targets, peft},
    nn::{Decoder, module::trainable},
    text::{ChatTemplate, Tokenizer},
    train::{AdamW, AdamWStep, Evaluation, Options, Packed, Schedule, artifact::Adapter, prepare},
};
use serde::Deserialize;

use crate::{
    checkpoint,
    cli::Dtype,
    training::{Job, in_order, read, train},
};

/// The options of `finetune`: where they go unsaid, those of `--config` hold, then the defaults.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Finetune {
    /// Folder of the base, a Hugging Face checkpoint with its tokenizer
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// JSON lines of alpaca, sharegpt or messages rows
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// The same, to evaluate on
    #[arg(long, num_args = 1..)]
    pub eval_data: Vec<PathBuf>,
    /// Folder for the adapter, metrics, loss curve and checkpoints
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// A TOML file of these options, named as here
    #[arg(long)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Rank of the update [default: 16]
    #[arg(long)]
    pub r: Option<i64>,
    /// The update is scaled by alpha / r [default: 32]
    #[arg(long)]
    pub alpha: Option<f64>,
    /// Dropout on the adapter's input [default: 0.1]
    #[arg(long)]
    pub dropout: Option<f64>,
    /// Names of linears, all-linear, or one regular expression [default: q_proj,v_proj]
    #[arg(long, value_delimiter = ',')]
    pub target: Vec<String>,
    /// What the base is computed in; the adapter is fp32 [default: bf16]
    #[arg(long, value_enum)]
    pub dtype: Option<Dtype>,
    /// Passes over the data [default: 3]
    #[arg(long)]
    pub epochs: Option<u64>,
    /// End earlier than the data does
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Highest learning rate; warm-up over 3 % of the steps, then a cosine [default: 0.0002]
    #[arg(long)]
    pub lr: Option<f64>,
    /// Packed rows of a micro-batch [default: 4]
    #[arg(long)]
    pub batch: Option<usize>,
    /// Micro-batches of a step [default: 1]
    #[arg(long)]
    pub accumulate: Option<usize>,
    /// Tokens of a packed row; longer conversations lose their end [default: 512]
    #[arg(long)]
    pub max_length: Option<usize>,
    /// Of the adapter, the order and the dropout [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Steps between checkpoints; there is one at the end
    #[arg(long)]
    pub save_every: Option<u64>,
    /// Steps between evaluations; there is one at the end
    #[arg(long)]
    pub eval_every: Option<u64>,
    /// chatml, alpaca or llama2, instead of the checkpoint's own chat template
    #[arg(long)]
    pub template: Option<String>,
    /// Recompute activations in backward instead of keeping them
    #[arg(long)]
    pub checkpointing: bool,
    /// Leave out and count rows that cannot be used, instead of stopping at the first
    #[arg(long)]
    pub skip_bad_lines: bool,
    /// Go on from the newest checkpoint in the output folder, if there is one
    #[arg(long)]
    pub resume: bool,
}

impl Finetune {
    /// These options, with what they leave unsaid from their configuration file.
    ///
    /// # Errors
    /// A file that cannot be read, is no TOML, or has a key that is no option.
    fn with_config(self) -> Result<Self> {
        let Some(path) = &self.config else {
            return Ok(self);
        };
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file: Self = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
        fn or<T>(own: Vec<T>, file: Vec<T>) -> Vec<T> {
            if own.is_empty() { file } else { own }
        }
        Ok(Self {
            model: self.model.or(file.model),
            data: or(self.data, file.data),
            eval_data: or(self.eval_data, file.eval_data),
            out: self.out.or(file.out),
            r: self.r.or(file.r),
            alpha: self.alpha.or(file.alpha),
            dropout: self.dropout.or(file.dropout),
            target: or(self.target, file.target),
            dtype: self.dtype.or(file.dtype),
            epochs: self.epochs.or(file.epochs),
            max_steps: self.max_steps.or(file.max_steps),
            lr: self.lr.or(file.lr),
            batch: self.batch.or(file.batch),
            accumulate: self.accumulate.or(file.accumulate),
            max_length: self.max_length.or(file.max_length),
            seed: self.seed.or(file.seed),
            save_every: self.save_every.or(file.save_every),
            eval_every: self.eval_every.or(file.eval_every),
            template: self.template.or(file.template),
            checkpointing: self.checkpointing || file.checkpointing,
            skip_bad_lines: self.skip_bad_lines || file.skip_bad_lines,
            resume: self.resume || file.resume,
            config: None,
        })
    }

    /// Trains the adapter and writes it, with the tokenizer, as PEFT does. Returns the last
    /// evaluation.
    ///
    /// # Errors
    /// What is wrong with model, data or options, or stops the run.
    pub fn run(self) -> Result<Option<Evaluation>> {
        let options = self.with_config()?;
        let dir = options.model.as_ref().context("--model is missing")?;
        let out = options.out.as_ref().context("--out is missing")?;
        let batch = options.batch.unwrap_or(4);
        let accumulate = options.accumulate.unwrap_or(1);
        let max_length = options.max_length.unwrap_or(512);
        let seed = options.seed.unwrap_or(0);

        let tokenizer = options.tokenizer()?;
        let dataset = read(
            &options.data,
            &tokenizer,
            max_length,
            options.skip_bad_lines,
        )?;
        let mut held_out = Vec::new();
        if !options.eval_data.is_empty() {
            let dataset = read(
                &options.eval_data,
                &tokenizer,
                max_length,
                options.skip_bad_lines,
            )?;
            held_out = in_order(dataset, max_length, batch)?;
        }
        eprintln!("{} examples, {} tokens", dataset.len(), dataset.tokens());
        let streams = Streams::new(
            dataset,
            StreamOptions {
                seed,
                max_length,
                global_batch: batch * accumulate,
                // --max-steps alone may take as many passes as it needs.
                epochs: options.epochs.or(options.max_steps.is_none().then_some(3)),
                ..StreamOptions::default()
            },
        )?;
        let steps = [streams.total_batches().map(|n| n as u64), options.max_steps];
        let steps = steps.into_iter().flatten().min().unwrap_or(0);

        let kind = options.dtype.unwrap_or(Dtype::Bf16).into();
        let mut model = Decoder::load(dir, kind, cuda::best_device()?)
            .with_context(|| format!("cannot load the model {}", dir.display()))?;
        ensure!(
            tokenizer.vocab_size() as i64 <= model.config().vocab_size,
            "the tokenizer has {} tokens, the model only {}",
            tokenizer.vocab_size(),
            model.config().vocab_size
        );
        let config = options.lora();
        lora::attach(&mut model, peft::DEFAULT, &config, seed)?;
        lora::train_only(&mut model, peft::DEFAULT)?;
        let size: usize = trainable(&model)
            .iter()
            .map(|(_, param)| param.tensor().numel())
            .sum();
        eprintln!("{size} trainable parameters, {steps} steps");

        let optimizer = AdamW::with(AdamWStep {
            lr: options.lr.unwrap_or(2e-4),
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
        });
        let mut run = prepare(model, optimizer, Packed::new(streams, accumulate)?)?
            .with(Options {
                schedule: Schedule::cosine((steps * 3).div_ceil(100), steps),
                seed,
                checkpointing: options.checkpointing,
                ..Options::default()
            })?
            .saving(Adapter {
                name: peft::DEFAULT.to_owned(),
                config: config.clone(),
            });
        let job = Job {
            name: "finetune",
            out,
            resume: options.resume,
            max_steps: options.max_steps,
            save_every: options.save_every,
            eval_every: options.eval_every,
            held_out: &held_out,
        };
        let evaluation = train(&mut run, &job)?;
        tokenizer.save(out)?;
        peft::save(run.model(), peft::DEFAULT, &config, out)?;
        Ok(evaluation)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        let dir = self.model.as_ref().context("--model is missing")?;
        let mut tokenizer = checkpoint::tokenizer(dir, None)?;
        if let Some(name) = &self.template {
            tokenizer.set_chat_template(ChatTemplate::builtin(name)?);
        }
        Ok(tokenizer)
    }

    fn lora(&self) -> LoraConfig {
        let target_modules = match &self.target[..] {
            [] => ["q_proj", "v_proj"].into(),
            // What is no plain name is a pattern.
            [one] if one == "all-linear" || one.contains(|c: char| !is_name(c)) => {
                Targets::Pattern(one.clone())
            }
            names => Targets::Names(names.to_vec()),
        };
        let mut config = LoraConfig {
            r: self.r.unwrap_or(16),
            lora_alpha: self.alpha.unwrap_or(32.0),
            lora_dropout: self.dropout.unwrap_or(0.1),
            target_modules,
            ..LoraConfig::default()
        };
        if let Some(dir) = &self.model {
            let base = dir.display().to_string();
            config
                .extra
                .insert("base_model_name_or_path".to_owned(), base.into());
        }
        config
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '.'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.toml");
        fs::write(
            &path,
            "r = 4\nalpha = 8.0\nmax-length = 99\ntarget = [\"o_proj\"]\n",
        )
        .unwrap();
        let options = Finetune {
            r: Some(2),
            config: Some(path.clone()),
            ..Finetune::default()
        };
        let options = options.with_config().unwrap();
        let found = (options.r, options.alpha, options.max_length, options.lr);
        assert_eq!(found, (Some(2), Some(8.0), Some(99), None));
        assert_eq!(options.lora().target_modules, ["o_proj"].into());
        assert_eq!(options.lora().lora_dropout, 0.1);

        fs::write(&path, "rank = 4\n").unwrap();
        let options = Finetune {
            config: Some(path),
            ..Finetune::default()
        };
        let error = format!("{:#}", options.with_config().unwrap_err());
        assert!(
            error.contains("job.toml") && error.contains("rank"),
            "{error}"
        );
    }

    #[test]
    fn targets_are_names_or_a_pattern() {
        let targets = |text: &[&str]| {
            let options = Finetune {
                target: text.iter().map(|t| (*t).to_owned()).collect(),
                ..Finetune::default()
            };
            options.lora().target_modules
        };
        assert_eq!(targets(&[]), ["q_proj", "v_proj"].into());
        assert_eq!(targets(&["all-linear"]), "all-linear".into());
        assert_eq!(targets(&[r".*\.[qk]_proj"]), r".*\.[qk]_proj".into());
        assert_eq!(targets(&["mlp.up_proj"]), ["mlp.up_proj"].into());
    }
}
