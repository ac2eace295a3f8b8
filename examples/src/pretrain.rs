//! A small Llama and its tokenizer, both from nothing but text.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use ferrotune::{
    data::{OnBadLine, Source, StreamOptions, Streams},
    libtorch::{cuda, tch::Kind},
    nn::{Decoder, DecoderConfig, Factory, module::params, module::set_trainable},
    text::{BpeOptions, ChatTemplate, Split, Tokenizer},
    train::{AdamW, AdamWStep, Options, Packed, Schedule, prepare},
};
use serde_json::json;

use crate::{
    cli::Dtype,
    corpus::{Corpus, CorpusOptions},
    training::{Job, in_order, read, train},
};

/// The options of `pretrain`.
#[derive(Debug, Clone, Args)]
pub struct Pretrain {
    /// JSON lines with the key `text`, or .txt files, a text a line; without any, the generator's
    /// corpus, which is written to `data` in the output folder
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// The same, to evaluate on
    #[arg(long, num_args = 1..)]
    pub eval_data: Vec<PathBuf>,
    /// Folder for the checkpoint, its tokenizer, metrics and loss curve
    #[arg(long)]
    pub out: PathBuf,
    /// Tokens of the vocabulary at the most; Chinese characters are a token each
    #[arg(long, default_value_t = 2048)]
    pub vocab_size: usize,
    /// Width of the residual stream
    #[arg(long, default_value_t = 192)]
    pub hidden_size: i64,
    /// Width of the MLP
    #[arg(long, default_value_t = 512)]
    pub intermediate_size: i64,
    /// Blocks
    #[arg(long, default_value_t = 4)]
    pub layers: i64,
    /// Query heads
    #[arg(long, default_value_t = 4)]
    pub heads: i64,
    /// Key and value heads
    #[arg(long, default_value_t = 2)]
    pub kv_heads: i64,
    /// Standard deviation of the first weights
    #[arg(long, default_value_t = 0.05)]
    pub initializer_range: f64,
    /// Longest sequence, and tokens of a packed row
    #[arg(long, default_value_t = 256)]
    pub max_length: usize,
    /// Packed rows of a micro-batch
    #[arg(long, default_value_t = 2)]
    pub batch: usize,
    /// Micro-batches of a step
    #[arg(long, default_value_t = 1)]
    pub accumulate: usize,
    /// Passes over the text
    #[arg(long, default_value_t = 1)]
    pub epochs: u64,
    /// Highest learning rate; warm-up over 5 % of the steps, then a cosine
    #[arg(long, default_value_t = 1e-3)]
    pub lr: f64,
    /// Of matrices
    #[arg(long, default_value_t = 0.1)]
    pub weight_decay: f64,
    /// Activations and weights; the optimizer keeps fp32 masters
    #[arg(long, value_enum, default_value = "fp32")]
    pub dtype: Dtype,
    /// Of weights and order
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Steps between checkpoints
    #[arg(long)]
    pub save_every: Option<u64>,
    /// Go on from the newest checkpoint in the output folder, if there is one
    #[arg(long)]
    pub resume: bool,
}

impl Pretrain {
    /// Trains the tokenizer and then the model, and writes both as a checkpoint.
    ///
    /// # Errors
    /// What is wrong with the data or the sizes, or stops the run.
    pub fn run(&self) -> Result<()> {
        let data = self.data()?;
        let tokenizer = tokenizer(&data, self.vocab_size)?;
        let dataset = read(&data, &tokenizer, self.max_length, false)?;
        let mut held_out = Vec::new();
        if !self.eval_data.is_empty() {
            let dataset = read(&self.eval_data, &tokenizer, self.max_length, false)?;
            held_out = in_order(dataset, self.max_length, self.batch)?;
        }
        eprintln!(
            "{} texts, {} tokens, a vocabulary of {}",
            dataset.len(),
            dataset.tokens(),
            tokenizer.vocab_size()
        );
        let streams = Streams::new(
            dataset,
            StreamOptions {
                seed: self.seed,
                max_length: self.max_length,
                global_batch: self.batch * self.accumulate,
                epochs: Some(self.epochs),
                ..StreamOptions::default()
            },
        )?;
        let steps = streams.total_batches().unwrap_or(0) as u64;

        let model = self.model(&tokenizer)?;
        set_trainable(&model, true)?;
        let size: usize = params(&model)
            .iter()
            .map(|(_, param)| param.tensor().numel())
            .sum();
        eprintln!("{size} parameters, {steps} steps");
        let optimizer = AdamW::with(AdamWStep {
            lr: self.lr,
            betas: (0.9, 0.95),
            eps: 1e-8,
            weight_decay: self.weight_decay,
        });
        let loader = Packed::new(streams, self.accumulate)?;
        let mut run = prepare(model, optimizer, loader)?.with(Options {
            schedule: Schedule::cosine(steps.div_ceil(20), steps),
            seed: self.seed,
            ..Options::default()
        })?;
        let job = Job {
            name: "pretrain",
            out: &self.out,
            resume: self.resume,
            max_steps: None,
            save_every: self.save_every,
            eval_every: None,
            held_out: &held_out,
        };
        train(&mut run, &job)?;
        tokenizer.save(&self.out)?;
        run.model().save(&self.out, usize::MAX)?;
        Ok(())
    }

    fn data(&self) -> Result<Vec<PathBuf>> {
        if !self.data.is_empty() {
            return Ok(self.data.clone());
        }
        let folder = self.out.join("data");
        Corpus::new(self.seed, CorpusOptions::default()).write_to(&folder)?;
        Ok(vec![folder.join("pretrain.jsonl")])
    }

    fn model(&self, tokenizer: &Tokenizer) -> Result<Decoder> {
        let kind: Kind = self.dtype.into();
        let config: DecoderConfig = serde_json::from_value(json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.vocab_size(),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.max_length,
            "rms_norm_eps": 1e-6,
            "initializer_range": self.initializer_range,
            "tie_word_embeddings": true,
            "rope_theta": 10000.0,
            "bos_token_id": tokenizer.bos(),
            "eos_token_id": tokenizer.eos(),
            "pad_token_id": tokenizer.pad(),
            "torch_dtype": match self.dtype { Dtype::Fp32 => "float32", Dtype::Bf16 => "bfloat16" },
        }))?;
        let factory = Factory::random(self.seed, kind, cuda::best_device()?)?;
        Ok(Decoder::new(&factory, config, kind)?)
    }
}

/// A vocabulary of the texts' own, with ChatML's turns.
fn tokenizer(files: &[PathBuf], vocab_size: usize) -> Result<Tokenizer> {
    let mut texts = Vec::new();
    for row in Source::open(files, OnBadLine::Fail)?.stream() {
        if let Some(text) = row?.fields.get("text").and_then(|text| text.as_str()) {
            texts.push(text.to_owned());
        }
    }
    let options = BpeOptions {
        vocab_size,
        split: Split::Characters,
        ..BpeOptions::default()
    };
    let mut tokenizer = Tokenizer::train_bpe(&texts, &options)?;
    tokenizer.set_chat_template(ChatTemplate::builtin("chatml")?);
    Ok(tokenizer)
}
