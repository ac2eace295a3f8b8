use std::{collections::HashMap, ops::Deref, sync::LazyLock};

use tokenizers::decoders::DecoderWrapper;

use crate::{Error, Result, Tokenizer};

/// Text of tokens that come one at a time.
///
/// What [`push`](Self::push) and [`finish`](Self::finish) give out, joined, is [`Tokenizer::decode`] of all tokens:
/// leading spaces stay right and no character is given out in parts. A token costs the same at any length.
///
/// Owns the tokenizer or borrows it: `T` may be `&Tokenizer` or `Arc<Tokenizer>`.
#[derive(Debug)]
pub struct StreamDecoder<T> {
    tokenizer: T,
    skip_special: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A byte-level decoder: tokens are bytes, of which the last may be the beginning of a character.
    Bytes(Vec<u8>),
    Window(Window),
}

/// Any other decoder looks at a token's neighbours (the first loses its space, the last its suffix), so the tokens
/// given out last are decoded again before the new ones, and their text taken off.
#[derive(Debug, Default)]
struct Window {
    context: Vec<u32>,
    context_text: String,
    pending: Vec<u32>,
    /// Tokens such as `<0xE4>` stand for bytes. A run of them is valid or not as a whole, so it is held until it ends.
    byte_fallback: bool,
}

impl<T: Deref<Target = Tokenizer>> StreamDecoder<T> {
    /// `skip_special` leaves out the tokens that the tokenizer marks as special.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        let state = match tokenizer.inner().get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => State::Bytes(Vec::new()),
            decoder => State::Window(Window {
                byte_fallback: decoder.is_some_and(falls_back),
                ..Window::default()
            }),
        };
        Self {
            tokenizer,
            skip_special,
            state,
        }
    }

    /// Takes a token; gives the text that is certain now, `None` while there is none.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        let Some(token) = self.tokenizer.spelling(id, self.skip_special) else {
            return Ok(None);
        };
        let text = match &mut self.state {
            State::Bytes(bytes) => {
                push_bytes(&token, bytes);
                take_characters(bytes)
            }
            State::Window(window) => {
                window.pending.push(id);
                if window.byte_fallback && is_byte(&token) {
                    return Ok(None);
                }
                window.flush(&self.tokenizer)?
            }
        };
        Ok((!text.is_empty()).then_some(text))
    }

    /// The rest, an unfinished character as U+FFFD.
    pub fn finish(self) -> Result<String> {
        match self.state {
            State::Bytes(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            State::Window(window) if window.pending.is_empty() => Ok(String::new()),
            State::Window(mut window) => window.flush(&self.tokenizer),
        }
    }
}

impl Window {
    fn flush(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let mut ids = std::mem::take(&mut self.context);
        ids.extend_from_slice(&self.pending);
        let text = tokenizer.decode(&ids, false)?;
        let Some(new) = text.strip_prefix(&self.context_text) else {
            let id = ids.last().copied().unwrap_or_default();
            return Err(Error::Rewritten {
                id,
                given: std::mem::take(&mut self.context_text),
                now: text,
            });
        };
        self.context = std::mem::take(&mut self.pending);
        self.context_text = tokenizer.decode(&self.context, false)?;
        Ok(new.to_owned())
    }
}

fn falls_back(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(falls_back),
        _ => false,
    }
}

/// The test of the tokenizers crate's `ByteFallback`.
fn is_byte(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && u8::from_str_radix(&token[3..5], 16).is_ok()
}

/// GPT-2's spelling of bytes: those that print stand for themselves, the others for U+0100 and up, in order.
static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let own = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let (printing, others): (Vec<u8>, Vec<u8>) = (0..=255).partition(own);
    let shifted = ('\u{100}'..).zip(others);
    printing
        .into_iter()
        .map(|byte| (char::from(byte), byte))
        .chain(shifted)
        .collect()
});

/// A token with a character outside that spelling (an added token, say) is its own text.
fn push_bytes(token: &str, bytes: &mut Vec<u8>) {
    let spelt: Option<Vec<u8>> = token.chars().map(|c| BYTES.get(&c).copied()).collect();
    match spelt {
        Some(spelt) => bytes.extend(spelt),
        None => bytes.extend_from_slice(token.as_bytes()),
    }
}

/// Everything but the beginning of a character at the end, with what is invalid replaced as `from_utf8_lossy` would.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let invalid = chunk.invalid();
        let unfinished = used + invalid.len() == bytes.len()
            && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if invalid.is_empty() || unfinished {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        used += invalid.len();
    }
    bytes.drain(..used);
    text
}
