//! Training data as one resumable stream: rows → messages → tokens with loss weights → packed batches. No tensors.
//!
//! One idea: V fixed virtual streams, each shuffled and packed alone, decide the order of samples; the number of
//! machines does not, and the position in it is a few numbers that can be saved.
//!
//! ```
//! use ferrotune_data::{Batch, OnBadLine, Stream, StreamOptions, Streams, TokenizeOptions, for_rank, tokenize};
//! use ferrotune_text::{BpeOptions, ChatTemplate, Tokenizer};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut tokenizer = Tokenizer::train_bpe(["三加四等于七。"], &BpeOptions::default())?;
//! tokenizer.set_chat_template(ChatTemplate::builtin("chatml")?);
//!
//! // Files are read by `Source::jsonl(paths, OnBadLine::Fail)?.stream()`.
//! let row = |n| serde_json::from_str(&format!(r#"{{"q": "{n}加一？", "output": "我数到{n}。"}}"#)).expect("JSON");
//! let stream = Stream::rows("sums", (0..10).map(row), OnBadLine::Fail).rename("q", "instruction");
//! let dataset = tokenize(stream, &tokenizer, &TokenizeOptions::default())?;
//!
//! let options = StreamOptions { global_batch: 4, virtual_streams: 2, max_length: 100, ..StreamOptions::default() };
//! let mut streams = Streams::new(dataset, options)?;
//! let first = streams.next_batch().expect("ten rows are a batch at least");
//! let batch = Batch::collate(for_rank(&first, 0, 2)?); // rank 0 of 2
//! assert_eq!(batch.labels[..3], batch.ids[1..4]); // shifted already, each segment alone
//! assert!(batch.weight() < batch.tokens() as f64); // answers count, prompts do not
//!
//! let saved = serde_json::to_string(&streams.state())?; // and later, at any number of ranks:
//! streams.resume(&serde_json::from_str(&saved)?)?;
//! # Ok(()) }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod batch;
mod chat;
mod dataset;
pub mod dedup;
mod error;
mod pack;
mod rows;
mod shuffle;
mod streams;
mod template;
mod tokenize;

pub use batch::{Batch, IGNORE};
pub use chat::{Tags, to_messages};
pub use dataset::{Dataset, Example};
pub use error::{Error, Place, Result, RowError};
pub use pack::{Bin, pack};
pub use rows::{Fields, OnBadLine, Row, Skipped, Source, Stream};
pub use streams::{StreamOptions, StreamState, Streams, for_rank, micro_batches};
pub use tokenize::{TokenizeOptions, tokenize};
