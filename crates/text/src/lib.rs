//! Text in and out of a language model: Hugging Face tokenizers, chat templates, streaming decode. No tensors.
//!
//! One idea: a conversation becomes text by the *checkpoint's own* template, text becomes tokens by its own
//! tokenizer, and byte ranges tie the two together, so that what the loss counts is found and not guessed.
//!
//! ```
//! use ferrotune_text::{BpeOptions, ChatTemplate, Message, StreamDecoder, Tokenizer};
//!
//! let corpus = ["今天天气很好。", "三加四等于七。", "你好，世界！"];
//! let mut tokenizer = Tokenizer::train_bpe(corpus, &BpeOptions { vocab_size: 300, ..BpeOptions::default() })?;
//! tokenizer.set_chat_template(ChatTemplate::builtin("chatml")?); // from_dir reads a checkpoint's own
//!
//! let chat = [Message::user("三加四？"), Message::assistant("七。")];
//! let template = tokenizer.chat_template().expect("set above");
//! let (text, answers) = template.answer_spans(&chat)?;
//! assert_eq!(&text[answers[0].clone()], "七。<|im_end|>");
//!
//! let ids = tokenizer.encode(&text, false)?;
//! let mut stream = StreamDecoder::new(&tokenizer, true);
//! let mut said = String::new();
//! for id in ids {
//!     said.extend(stream.push(id)?); // whole characters only, however the tokens cut them
//! }
//! said.push_str(&stream.finish()?);
//! assert_eq!(said, "user\n三加四？\nassistant\n七。\n");
//! # Ok::<(), ferrotune_text::Error>(())
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bpe;
mod config;
mod error;
mod spans;
mod stream;
mod template;
mod tokenizer;

pub use bpe::{BpeOptions, Split};
pub use error::{Error, Result};
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Message};
pub use tokenizer::{Encoded, Tokenizer};
pub use tokenizers;
