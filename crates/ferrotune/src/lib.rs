//! Fine-tune and run large language models on libtorch: every ferrotune crate under one name.
//!
//! Each crate is a module here behind the feature of its name, all of them on by default; [`quant`], [`text`] and [`data`]
//! alone (`default-features = false, features = ["data"]`) need no libtorch. From rows to an adapter to an answer:
//!
//! ```
//! use ferrotune::{generate, lora, prelude::*, train::loss::causal_lm};
//! use serde_json::{from_value, json};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut tokenizer = Tokenizer::train_bpe(["三加四等于七。"], &BpeOptions { vocab_size: 270, ..BpeOptions::default() })?;
//! tokenizer.set_chat_template(ChatTemplate::builtin("chatml")?); // Tokenizer::from_dir reads a checkpoint's
//! let row = from_value(json!({"instruction": "三加四？", "output": "七。"}))?; // Source::jsonl reads files of them
//! let data = tokenize(Stream::rows("sums", [row], OnBadLine::Fail), &tokenizer, &TokenizeOptions::default())?;
//! let streams = Streams::new(data, StreamOptions { epochs: Some(40), global_batch: 1, ..StreamOptions::default() })?;
//!
//! let config = from_value(json!({
//!     "model_type": "llama", "vocab_size": 270, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2
//! }))?;
//! let mut model = Decoder::new(&Factory::random(3, Kind::Float, Device::Cpu)?, config, Kind::Float)?; // or Decoder::load
//! let settings = LoraConfig { r: 8, lora_alpha: 16.0, target_modules: "all-linear".into(), ..LoraConfig::default() };
//! lora::attach(&mut model, "default", &settings, 0)?;
//! lora::train_only(&mut model, "default")?;
//! let mut run = prepare(model, AdamW::new(0.01), Packed::new(streams, 1)?)?;
//! while run.step(causal_lm)?.is_some() {}
//!
//! let question = tokenizer.chat_template().expect("set above").render(&[Message::user("三加四？")], true)?;
//! let stop = generate::Options { eos: vec![tokenizer.eos().expect("has one")], ..generate::Options::default() };
//! assert_eq!(generate::text(run.model(), &tokenizer, &tokenizer.encode(&question, false)?, &stop, |_| ())?, "七。");
//! # Ok(()) }
//! ```

#[cfg(feature = "data")]
pub use ferrotune_data as data;
#[cfg(feature = "generate")]
pub use ferrotune_generate as generate;
#[cfg(feature = "libtorch")]
pub use ferrotune_libtorch as libtorch;
#[cfg(feature = "lora")]
pub use ferrotune_lora as lora;
#[cfg(feature = "nn")]
pub use ferrotune_nn as nn;
#[cfg(feature = "quant")]
pub use ferrotune_quant as quant;
#[cfg(feature = "text")]
pub use ferrotune_text as text;
#[cfg(feature = "train")]
pub use ferrotune_train as train;

/// What a program needs most, to be imported whole.
pub mod prelude {
    #[cfg(feature = "data")]
    pub use crate::data::{
        Batch, Dataset, OnBadLine, Source, Stream, StreamOptions, Streams, TokenizeOptions,
        tokenize,
    };
    #[cfg(feature = "generate")]
    pub use crate::generate::Sampling;
    #[cfg(feature = "libtorch")]
    pub use crate::libtorch::{
        cuda::best_device,
        tch::{Device, Kind, Tensor},
    };
    #[cfg(feature = "lora")]
    pub use crate::lora::LoraConfig;
    #[cfg(feature = "nn")]
    pub use crate::nn::{Ctx, Decoder, DecoderConfig, Factory, Linear, Module, Param};
    #[cfg(feature = "text")]
    pub use crate::text::{BpeOptions, ChatTemplate, Message, Tokenizer};
    #[cfg(feature = "train")]
    pub use crate::train::{AdamW, Packed, Schedule, prepare};
}
