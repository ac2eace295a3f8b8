//! The decoding loop over a KV cache.

use crate::stop::StopStrings;
use crate::{Error, Result, Sampler, Sampling};
use ferrotune_nn::libtorch::tch::{Kind, Tensor, no_grad_guard};
use ferrotune_nn::{Adapters, Ctx, Decoder, KvCache, files};
use ferrotune_text::{StreamDecoder, Tokenizer};
use serde_json::Value;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// When decoding ends and how tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// At most this many new tokens.
    pub max_tokens: usize,
    /// Tokens that end the text; they are not returned.
    pub eos: Vec<u32>,
    /// Strings that end the text; they are not returned.
    pub stop: Vec<String>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Which adapters apply.
    pub adapters: Adapters,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            eos: Vec::new(),
            stop: Vec::new(),
            sampling: Sampling::GREEDY,
            adapters: Adapters::Active,
        }
    }
}

/// The end-of-text tokens that a checkpoint names in generation_config.json or config.json.
///
/// # Errors
/// A file that is there and does not parse, or an id that is none.
pub fn eos_of(dir: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let config: Value = files::read_json(&path)?;
        let ids = match &config["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.iter().collect(),
            id => vec![id],
        };
        let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let ids: Option<Vec<u32>> = ids.into_iter().map(id).collect();
        return ids.ok_or_else(|| {
            let reason = format!("eos_token_id {}", config["eos_token_id"]);
            ferrotune_nn::Error::Config(format!("{}: {reason}", path.display())).into()
        });
    }
    Ok(Vec::new())
}

/// Room that a cache starts with behind the prompt; one that needs more grows.
const ROOM: usize = 1024;

/// Continues `prompt` and hands each new token to `each`, which says whether to go on.
///
/// # Errors
/// An empty prompt, a NaN, or what `each` returns.
pub fn tokens(
    model: &Decoder,
    prompt: &[u32],
    options: &Options,
    mut each: impl FnMut(u32) -> Result<bool>,
) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let _guard = no_grad_guard();
    let mut sampler = Sampler::new(options.sampling)?;
    let capacity = prompt.len() + options.max_tokens.min(ROOM);
    let ctx = Ctx {
        cache: Some(Arc::new(Mutex::new(KvCache::new(capacity as i64)))),
        adapters: options.adapters.clone(),
        ..Ctx::eval()
    };
    let mut ids: Vec<i64> = prompt.iter().map(|id| i64::from(*id)).collect();
    for _ in 0..options.max_tokens {
        let input = Tensor::f_from_slice(&ids)?
            .f_unsqueeze(0)?
            .f_to_device(model.device())?;
        let hidden = model.hidden(&input, &ctx)?;
        let last = hidden.f_narrow(1, ids.len() as i64 - 1, 1)?;
        let logits = model
            .lm_head()
            .forward(&last, &ctx)?
            .f_view([-1])?
            .f_to_kind(Kind::Float)?;
        let logits = Vec::<f32>::try_from(logits)?;
        let token = sampler.sample(&logits)?;
        if options.eos.contains(&token) || !each(token)? {
            break;
        }
        ids = vec![i64::from(token)];
    }
    Ok(())
}

/// Continues a prompt as text. Each piece of whole characters goes to `show` as it comes; returns
/// all of it.
///
/// # Errors
/// As [`tokens`], or the tokenizer's.
pub fn text(
    model: &Decoder,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &Options,
    mut show: impl FnMut(&str),
) -> Result<String> {
    let mut stream = StreamDecoder::new(tokenizer, true);
    let mut stop = StopStrings::new(&options.stop);
    let mut all = String::new();
    let mut stopped = false;
    let mut emit = |piece: &str| {
        if !piece.is_empty() {
            all.push_str(piece);
            show(piece);
        }
    };
    tokens(model, prompt, options, |token| {
        if let Some(piece) = stream.push(token)? {
            let (shown, met) = stop.push(&piece);
            emit(&shown);
            stopped = met;
        }
        Ok(!stopped)
    })?;
    if !stopped {
        let (shown, met) = stop.push(&stream.finish()?);
        emit(&shown);
        if !met {
            emit(&stop.finish());
        }
    }
    Ok(all)
}
