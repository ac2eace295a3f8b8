//! The model and the work: a random Llama with LoRA on its queries and values.

use anyhow::Result;
use ferrotune_data::{Batch, Bin, Example};
use ferrotune_lora::{LoraConfig, attach, peft, train_only};
use ferrotune_nn::libtorch::tch::{Device, Kind};
use ferrotune_nn::{Decoder, DecoderConfig, Factory};

/// Sizes of a Llama.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Shape {
    /// Width of the residual stream
    #[arg(long, default_value_t = Shape::COMPARED.hidden)]
    pub hidden: i64,
    /// Blocks
    #[arg(long, default_value_t = Shape::COMPARED.layers)]
    pub layers: i64,
    /// Query heads
    #[arg(long, default_value_t = Shape::COMPARED.heads)]
    pub heads: i64,
    /// Key and value heads
    #[arg(long, default_value_t = Shape::COMPARED.kv_heads)]
    pub kv_heads: i64,
    /// Width of the MLP
    #[arg(long, default_value_t = Shape::COMPARED.intermediate)]
    pub intermediate: i64,
    /// Rows of the embedding
    #[arg(long, default_value_t = Shape::COMPARED.vocab)]
    pub vocab: i64,
}

impl Shape {
    /// What is compared with the peers unless asked otherwise: 134 million parameters.
    pub const COMPARED: Self = Self {
        hidden: 768,
        layers: 12,
        heads: 12,
        kv_heads: 12,
        intermediate: 2048,
        vocab: 32_000,
    };

    /// What the criterion benchmarks train: a step of 1,024 tokens takes about 100 ms.
    pub const SMALL: Self = Self {
        hidden: 256,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        intermediate: 704,
        vocab: 4096,
    };

    /// The shape as `config.json` would say it.
    ///
    /// # Errors
    /// None that these keys can cause.
    pub fn config(&self) -> Result<DecoderConfig> {
        Ok(serde_json::from_value(serde_json::json!({
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
        }))?)
    }

    /// A model of random weights in `kind`.
    ///
    /// # Errors
    /// Sizes that contradict each other.
    pub fn random(&self, kind: Kind) -> Result<Decoder> {
        let factory = Factory::random(7, kind, Device::Cpu)?;
        Ok(Decoder::new(&factory, self.config()?, kind)?)
    }

    /// Width of a query, key or value head.
    pub fn head_dim(&self) -> i64 {
        self.hidden / self.heads
    }
}

/// Freezes the model and attaches a fresh adapter of rank 16 to its queries and values.
///
/// # Errors
/// libtorch's.
pub fn add_lora(model: &mut Decoder) -> Result<()> {
    let config = LoraConfig {
        r: 16,
        lora_alpha: 32.0,
        target_modules: ["q_proj", "v_proj"].into(),
        ..LoraConfig::default()
    };
    attach(model, peft::DEFAULT, &config, 11)?;
    Ok(train_only(model, peft::DEFAULT)?)
}

/// Rows of `length` tokens, one a segment, all of whose tokens but the first count.
pub fn rows(ids: &[u32], length: usize) -> Batch {
    let mut bin = Bin::default();
    for row in ids.chunks(length) {
        bin.push(&Example::new(row.to_vec(), vec![1.0; row.len()]));
    }
    Batch::collate(&[bin])
}

/// `count` ids below `vocab` that look random and are always the same.
pub fn ids(count: usize, vocab: i64) -> Vec<u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) % vocab.unsigned_abs()
    };
    (0..count).map(|_| next() as u32).collect()
}
