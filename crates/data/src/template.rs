//! Text made of a row's fields.

use serde_json::Value;

use crate::{
    Error, Fields, Result, RowError, Stream,
    rows::{missing, wrong_kind},
};

enum Piece {
    Text(String),
    Field(String),
}

impl Stream {
    /// Sets `key` to `pattern`, in which `{name}` stands for the row's string or number of that name and `{{`, `}}`
    /// for braces, as in Python's `str.format`. A row that lacks a field is a bad row.
    ///
    /// # Errors
    /// A brace without its fellow.
    pub fn template(self, key: &str, pattern: &str) -> Result<Self> {
        let pieces = parse(pattern)?;
        let key = key.to_owned();
        Ok(self.map(move |mut fields| {
            let text = fill(&pieces, &fields)?;
            fields.insert(key.clone(), Value::String(text));
            Ok(fields)
        }))
    }
}

fn parse(pattern: &str) -> Result<Vec<Piece>> {
    let failed = |reason| Error::Pattern {
        pattern: pattern.to_owned(),
        reason,
    };
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let (brace, after) = rest[at..].split_at(1);
        rest = after;
        if let Some(after) = rest.strip_prefix(brace) {
            text.push_str(brace);
            rest = after;
        } else if brace == "}" {
            return Err(failed("a `}` that closes nothing"));
        } else {
            let (name, after) = rest
                .split_once('}')
                .ok_or_else(|| failed("a `{` that is not closed"))?;
            pieces.push(Piece::Text(std::mem::take(&mut text)));
            pieces.push(Piece::Field(name.to_owned()));
            rest = after;
        }
    }
    text.push_str(rest);
    pieces.push(Piece::Text(text));
    Ok(pieces)
}

fn fill(pieces: &[Piece], fields: &Fields) -> Result<String, RowError> {
    let mut filled = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Field(name) => match fields.get(name) {
                Some(Value::String(text)) => filled.push_str(text),
                Some(Value::Number(number)) => filled.push_str(&number.to_string()),
                Some(other) => return Err(wrong_kind(name, "a string or a number", other)),
                None => return Err(missing(&format!("`{name}`"), fields)),
            },
        }
    }
    Ok(filled)
}
