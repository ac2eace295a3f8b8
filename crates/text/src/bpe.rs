use std::collections::HashSet;

use serde_json::{Map, json};
use tokenizers::{
    AddedToken, SplitDelimiterBehavior,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    pre_tokenizers::{
        self, PreTokenizerWrapper, byte_level::ByteLevel, sequence::Sequence, split::SplitPattern,
    },
};

use crate::{Error, Result, Tokenizer};

/// Digits and the Chinese characters that numbers are written with.
const NUMERAL: &str = "[0-9零〇一二两三四五六七八九十百千万亿]";
/// Digits and all Chinese characters.
const CHARACTER: &str = r"[0-9\p{Han}]";

/// What [`Tokenizer::train_bpe`] makes. The default suits a small ChatML model: `<|im_end|>` ends a turn and a
/// sequence alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpeOptions {
    /// Tokens in all: special ones, the 256 bytes, and merges for what is left.
    pub vocab_size: usize,
    /// `bos_token`.
    pub bos: String,
    /// `eos_token`.
    pub eos: String,
    /// `pad_token`.
    pub pad: String,
    /// Further special tokens.
    pub special_tokens: Vec<String>,
    /// What stays a token of its own.
    pub split: Split,
}

/// What the merges of a vocabulary never reach across.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// Nothing but what the bytes' own rules separate.
    Nothing,
    /// Every digit and Chinese numeral, so that sums are not learnt by heart as words.
    #[default]
    Numerals,
    /// Every digit and Chinese character: a small model then sees a word as the same tokens wherever it stands.
    Characters,
}

impl Default for BpeOptions {
    fn default() -> Self {
        Self {
            vocab_size: 4096,
            bos: "<|endoftext|>".to_owned(),
            eos: "<|im_end|>".to_owned(),
            pad: "<|endoftext|>".to_owned(),
            special_tokens: vec!["<|im_start|>".to_owned()],
            split: Split::default(),
        }
    }
}

impl Tokenizer {
    /// Trains a byte-level BPE vocabulary (Sennrich et al. 2016, on bytes as in GPT-2): every string round-trips, and
    /// there is no unknown token. The same texts in any order give the same vocabulary.
    pub fn train_bpe<I>(texts: I, options: &BpeOptions) -> Result<Self>
    where
        I: IntoIterator<Item: AsRef<str> + Send, IntoIter: Send>,
    {
        let vocab_size = options.vocab_size;
        let failed = |reason: String| Error::Train { vocab_size, reason };

        let mut special: Vec<&String> = Vec::new();
        for token in [&options.pad, &options.bos, &options.eos]
            .into_iter()
            .chain(&options.special_tokens)
        {
            if !special.contains(&token) {
                special.push(token);
            }
        }
        let least = 256 + special.len();
        if vocab_size < least {
            return Err(failed(format!(
                "the bytes and the special tokens alone are {least}"
            )));
        }
        let mut texts = texts.into_iter().peekable();
        if texts.peek().is_none() {
            return Err(failed("there is no text".to_owned()));
        }

        let bytes = ByteLevel::new(false, false, true);
        let mut split: Vec<PreTokenizerWrapper> = Vec::new();
        let pattern = match options.split {
            Split::Nothing => None,
            Split::Numerals => Some(NUMERAL),
            Split::Characters => Some(CHARACTER),
        };
        if let Some(pattern) = pattern {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let isolated =
                pre_tokenizers::split::Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            split.push(
                isolated
                    .map_err(|source| failed(source.to_string()))?
                    .into(),
            );
        }
        split.push(bytes.into());

        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner
            .with_pre_tokenizer(Some(Sequence::new(split)))
            .with_decoder(Some(bytes))
            .with_post_processor(Some(bytes));
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .special_tokens(
                special
                    .iter()
                    .map(|&token| AddedToken::from(token.clone(), true))
                    .collect(),
            )
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<_>>())
            .build()
            .into();
        inner
            .train(&mut trainer, texts)
            .map_err(|source| failed(source.to_string()))?;

        let mut config = Map::new();
        config.insert("bos_token".to_owned(), json!(options.bos));
        config.insert("eos_token".to_owned(), json!(options.eos));
        config.insert("pad_token".to_owned(), json!(options.pad));
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        Self::new(inner, config)
    }
}
