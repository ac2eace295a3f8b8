use ferrotune_text::Tokenizer;
use rayon::prelude::*;

use crate::{
    Dataset, Error, Example, Fields, Result, Row, RowError, Stream, Tags, rows::wrong_kind,
    to_messages,
};

/// How rows become tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// Tokens an example may have. Of a longer conversation the head is kept; a longer text makes several examples.
    pub max_length: usize,
    /// Whom the speaker tags of conversations stand for.
    pub tags: Tags,
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        Self {
            max_length: 2048,
            tags: Tags::default(),
        }
    }
}

/// Rows that are tokenized side by side; the order of the examples does not depend on it.
const CHUNK: usize = 1024;

/// Tokenizes a stream on rayon's threads, keeping its order.
///
/// A conversation (see [`to_messages`]) is written by the tokenizer's chat template, and the loss counts its answers:
/// weight 1 for every token that touches one of [`ChatTemplate::answer_spans`], 0 for the others. A row with `text`
/// and none of a conversation's keys is plain text: special tokens as the tokenizer adds them, `eos_token` at the
/// end, every token but the first counted.
///
/// A row of which no token counts is a bad row, also when truncation made it one.
///
/// [`ChatTemplate::answer_spans`]: ferrotune_text::ChatTemplate::answer_spans
pub fn tokenize(
    mut stream: Stream,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<Dataset> {
    if options.max_length < 2 {
        let reason = "an example needs a token to predict and one to predict it from";
        return Err(Error::Option {
            option: "max_length",
            value: options.max_length,
            reason,
        });
    }
    let mut examples = Vec::new();
    let mut truncated = 0;
    loop {
        let rows = stream.by_ref().take(CHUNK).collect::<Result<Vec<Row>>>()?;
        if rows.is_empty() {
            break;
        }
        let done: Vec<Result<Tokenized>> = rows
            .into_par_iter()
            .map(|Row { fields, at }| {
                row(&fields, tokenizer, options).map_err(|source| Error::Row { at, source })
            })
            .collect();
        for row in done {
            match row {
                Ok(row) => {
                    truncated += usize::from(row.truncated);
                    examples.extend(row.examples);
                }
                Err(error) => stream.judge(error)?,
            }
        }
    }
    let skipped = stream.skipped().clone();
    if examples.is_empty() {
        return Err(Error::EmptyDataset {
            skipped: skipped.count,
            first: skipped.reasons.into_iter().next(),
        });
    }
    let mut dataset = Dataset::new(examples)?;
    dataset.skipped = skipped;
    dataset.truncated = truncated;
    Ok(dataset)
}

struct Tokenized {
    examples: Vec<Example>,
    truncated: bool,
}

fn row(
    fields: &Fields,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<Tokenized, RowError> {
    let conversation = ["messages", "conversations", "instruction"]
        .iter()
        .any(|&key| fields.contains_key(key));
    match fields.get("text") {
        Some(text) if !conversation => text_row(
            text.as_str()
                .ok_or_else(|| wrong_kind("text", "a string", text))?,
            tokenizer,
            options,
        ),
        _ => chat_row(fields, tokenizer, options),
    }
}

fn chat_row(
    fields: &Fields,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<Tokenized, RowError> {
    let messages = to_messages(fields, &options.tags)?;
    let template = tokenizer.chat_template().ok_or(RowError::NoTemplate)?;
    let (text, answers) = template.answer_spans(&messages)?;
    let encoded = tokenizer.encode_with_offsets(&text, false)?;
    let mut ids = encoded.ids;
    let tokens = ids.len();
    ids.truncate(options.max_length);
    let counts = |token: &std::ops::Range<usize>| {
        answers
            .iter()
            .any(|answer| token.start < answer.end && answer.start < token.end)
    };
    let weights = encoded.ranges[..ids.len()]
        .iter()
        .map(|token| f32::from(u8::from(counts(token))))
        .collect();
    let example = Example::new(ids, weights);
    if example.weight() == 0.0 {
        return Err(RowError::Masked {
            answers: answers.len(),
            tokens,
            kept: example.ids.len(),
        });
    }
    Ok(Tokenized {
        truncated: example.ids.len() < tokens,
        examples: vec![example],
    })
}

fn text_row(
    text: &str,
    tokenizer: &Tokenizer,
    options: &TokenizeOptions,
) -> Result<Tokenized, RowError> {
    let mut ids = tokenizer.encode(text, true)?;
    let eos = tokenizer.eos().ok_or(RowError::NoEos)?;
    if ids.last() != Some(&eos) {
        ids.push(eos);
    }
    // A last piece of one token has nothing to predict it from.
    let pieces = ids
        .chunks(options.max_length)
        .filter(|piece| piece.len() > 1);
    let examples: Vec<Example> = pieces
        .map(|piece| Example::new(piece.to_vec(), vec![1.0; piece.len()]))
        .collect();
    if examples.is_empty() {
        return Err(RowError::Masked {
            answers: 0,
            tokens: ids.len(),
            kept: ids.len(),
        });
    }
    Ok(Tokenized {
        examples,
        truncated: false,
    })
}
