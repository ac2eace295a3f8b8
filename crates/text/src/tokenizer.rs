use std::{fs, ops::Range, path::Path};

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::processors::PostProcessorWrapper;

use crate::{ChatTemplate, Error, Result, config};

/// A Hugging Face tokenizer with what its checkpoint says about it: special tokens and the chat template.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// `tokenizer_config.json`, with the keys that mean nothing here kept for [`save`](Self::save).
    config: Map<String, Value>,
    /// Ids of [`config::ROLES`], in that order.
    special: [Option<u32>; 4],
    template: Option<ChatTemplate>,
    /// The post-processor as it was read; `inner` has one that leaves offsets whole.
    processor: Option<PostProcessorWrapper>,
}

/// Tokens with the piece of text that each came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte ranges into the text, one a token, on character boundaries, whitespace included. Tokens that share a
    /// character name it whole, each of them; a token that the post-processor added is an empty range.
    pub ranges: Vec<Range<usize>>,
}

impl Tokenizer {
    /// Reads a checkpoint's folder: `tokenizer.json`, and `tokenizer_config.json`, `special_tokens_map.json` and
    /// `chat_template.jinja` where they stand.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = config::read(dir)?;
        let template = config::template(dir, &config)?;
        let mut tokenizer = Self::new(Self::read(&dir.join(config::TOKENIZER))?, config)?;
        if let Some(source) = template {
            tokenizer.set_chat_template(ChatTemplate::new(&source)?);
        }
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` alone: no special token has a role and there is no chat template.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Self::read(path.as_ref())?, Map::new())
    }

    fn read(path: &Path) -> Result<tokenizers::Tokenizer> {
        let bytes = fs::read(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        tokenizers::Tokenizer::from_bytes(bytes).map_err(|source| Error::Tokenizer {
            path: path.to_owned(),
            source,
        })
    }

    pub(crate) fn new(
        mut inner: tokenizers::Tokenizer,
        config: Map<String, Value>,
    ) -> Result<Self> {
        // A checkpoint saved in the middle of training carries that run's cutting and filling up. Neither is ours.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|source| Error::Tokenizer {
                path: config::TOKENIZER.into(),
                source,
            })?;
        let mut special = [None; 4];
        for (slot, role) in special.iter_mut().zip(config::ROLES) {
            if let Some(token) = config::token(&config, role) {
                let id = inner.token_to_id(token);
                *slot = Some(id.ok_or_else(|| Error::UnknownToken {
                    role,
                    token: token.to_owned(),
                })?);
            }
        }
        let processor = inner.get_post_processor().cloned();
        let mut whole = processor.clone();
        whole.iter_mut().for_each(keep_whitespace);
        inner.with_post_processor(whole);
        Ok(Self {
            inner,
            config,
            special,
            template: None,
            processor,
        })
    }

    /// Token ids of a text. `add_special` adds what the post-processor adds (a leading `<s>`, say); a rendered chat
    /// template holds its special tokens already and wants `false`.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(|source| encode_error(text, source))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`encode`](Self::encode), with each token's byte range in `text`.
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoded> {
        let encoding = self
            .inner
            .encode(text, add_special)
            .map_err(|source| encode_error(text, source))?;
        let offsets = encoding
            .get_special_tokens_mask()
            .iter()
            .zip(encoding.get_offsets());
        let mut end = 0;
        let ranges = offsets
            .map(|(&added, &(start, stop))| {
                let range = if added == 1 { end..end } else { start..stop };
                end = range.end;
                range
            })
            .collect();
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            ranges,
        })
    }

    /// Token ids of many texts, on rayon's threads, in order.
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        add_special: bool,
    ) -> Result<Vec<Vec<u32>>> {
        texts
            .par_iter()
            .map(|text| self.encode(text.as_ref(), add_special))
            .collect()
    }

    /// Text of tokens; `skip_special` leaves out those that the tokenizer marks as special. Ids beyond the vocabulary
    /// give nothing. The clean-up of spaces that old configurations ask for (`clean_up_tokenization_spaces`) is not
    /// done: it cannot be undone and spoils Chinese and code alike.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        // Some of the crate's decoders underflow on nothing at all.
        if !ids
            .iter()
            .any(|&id| self.spelling(id, skip_special).is_some())
        {
            return Ok(String::new());
        }
        self.inner
            .decode(ids, skip_special)
            .map_err(|source| Error::Decode {
                count: ids.len(),
                last: ids.last().copied().unwrap_or_default(),
                source,
            })
    }

    /// What decoding sees of an id: `None` beyond the vocabulary, and for a special token that is to be skipped.
    pub(crate) fn spelling(&self, id: u32, skip_special: bool) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        let skip = skip_special && self.inner.get_added_vocabulary().is_special_token(&token);
        (!skip).then_some(token)
    }

    /// Number of tokens, added ones included. A model's embedding may have more rows than this.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token's exact text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Beginning of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.special[0]
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.special[1]
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.special[2]
    }

    /// Unknown piece of text.
    pub fn unk(&self) -> Option<u32> {
        self.special[3]
    }

    /// The checkpoint's chat template, or the one that was set.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Sets the chat template and gives it this tokenizer's `bos_token`, `eos_token`, `pad_token` and `unk_token`.
    pub fn set_chat_template(&mut self, mut template: ChatTemplate) {
        for role in config::ROLES {
            if let Some(token) = config::token(&self.config, role) {
                template = template.with_variable(role, token);
            }
        }
        self.template = Some(template);
    }

    /// The tokenizers crate's own object, for what this type does not offer.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`, the chat template in it, into a folder that exists.
    /// transformers' `AutoTokenizer` reads it back.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        let mut config = self.config.clone();
        config
            .entry("tokenizer_class")
            .or_insert_with(|| json!("PreTrainedTokenizerFast"));
        if let Some(template) = &self.template {
            config.insert("chat_template".to_owned(), json!(template.source()));
        }
        let path = dir.join(config::TOKENIZER);
        let mut inner = self.inner.clone();
        inner.with_post_processor(self.processor.clone());
        let text = inner.to_string(true).map_err(|source| Error::Tokenizer {
            path: path.clone(),
            source,
        })?;
        write(path, &text)?;
        let path = dir.join(config::CONFIG);
        let text = serde_json::to_string_pretty(&config).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        write(path, &text)
    }
}

/// GPT-2's and RoBERTa's post-processors cut whitespace off their tokens' offsets, a token of nothing else to nothing.
fn keep_whitespace(processor: &mut PostProcessorWrapper) {
    match processor {
        PostProcessorWrapper::ByteLevel(bytes) => bytes.trim_offsets = false,
        PostProcessorWrapper::Roberta(roberta) => roberta.trim_offsets = false,
        PostProcessorWrapper::Sequence(sequence) => {
            sequence.as_mut().iter_mut().for_each(keep_whitespace)
        }
        PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Template(_) => {}
    }
}

fn write(path: std::path::PathBuf, text: &str) -> Result<()> {
    fs::write(&path, text).map_err(|source| Error::Write { path, source })
}

fn encode_error(text: &str, source: tokenizers::Error) -> Error {
    Error::Encode {
        text: text.chars().take(40).collect(),
        source,
    }
}
