//! The three shapes that conversations come in.

use std::collections::BTreeMap;

use ferrotune_text::Message;
use serde_json::Value;

use crate::{
    Fields, RowError,
    rows::{missing, wrong_kind},
};

/// Whom a dataset's speaker tags stand for. The default knows `human`, `user`, `gpt`, `assistant` and `system`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tags(BTreeMap<String, String>);

impl Default for Tags {
    fn default() -> Self {
        let known = [
            ("human", "user"),
            ("user", "user"),
            ("gpt", "assistant"),
            ("assistant", "assistant"),
            ("system", "system"),
        ];
        Self(
            known
                .map(|(tag, role)| (tag.to_owned(), role.to_owned()))
                .into(),
        )
    }
}

impl Tags {
    /// Lets `tag` stand for a role of the chat template.
    pub fn with(mut self, tag: &str, role: &str) -> Self {
        self.0.insert(tag.to_owned(), role.to_owned());
        self
    }
}

/// A row as a conversation, by the keys it has:
///
/// | keys | known as |
/// |---|---|
/// | `messages`: objects with `role`, `content` | messages (OpenAI) |
/// | `conversations`: objects with `from`, `value` (or `role`, `content`); `system` | ShareGPT |
/// | `instruction`, `output`; `input`, `system`, `history` of pairs | Alpaca |
///
/// `input` follows the instruction on a line of its own. What is null or an empty string among the optional keys is
/// as good as not there.
pub fn to_messages(row: &Fields, tags: &Tags) -> Result<Vec<Message>, RowError> {
    for key in ["messages", "conversations"] {
        if let Some(turns) = row.get(key) {
            let system = optional(row, "system")?.map(Message::system);
            let turns = list(key, turns)?
                .iter()
                .enumerate()
                .map(|(index, turn)| message(key, index, turn, tags));
            return system.into_iter().map(Ok).chain(turns).collect();
        }
    }
    if row.contains_key("instruction") || row.contains_key("output") {
        return alpaca(row);
    }
    Err(missing(
        "`messages`, `conversations`, or `instruction` and `output`",
        row,
    ))
}

fn message(key: &str, index: usize, turn: &Value, tags: &Tags) -> Result<Message, RowError> {
    let key = |name: &str| format!("{key}[{index}]{name}");
    let Value::Object(turn) = turn else {
        return Err(wrong_kind(&key(""), "an object", turn));
    };
    let (tag, text) = if turn.contains_key("from") {
        ("from", "value")
    } else {
        ("role", "content")
    };
    let get = |name: &str| {
        let value = turn
            .get(name)
            .ok_or_else(|| missing(&format!("`{}`", key(&format!(".{name}"))), turn))?;
        value
            .as_str()
            .ok_or_else(|| wrong_kind(&key(&format!(".{name}")), "a string", value))
    };
    let (tag_value, text) = (get(tag)?, get(text)?);
    let role = tags.0.get(tag_value).ok_or_else(|| RowError::UnknownTag {
        key: key(&format!(".{tag}")),
        tag: tag_value.to_owned(),
        known: tags.0.keys().cloned().collect::<Vec<_>>().join(", "),
    })?;
    Ok(Message::new(role, text))
}

fn alpaca(row: &Fields) -> Result<Vec<Message>, RowError> {
    let required = |key: &str| {
        let value = row
            .get(key)
            .ok_or_else(|| missing(&format!("`{key}`"), row))?;
        value
            .as_str()
            .ok_or_else(|| wrong_kind(key, "a string", value))
    };
    let (instruction, output) = (required("instruction")?, required("output")?);
    let mut messages: Vec<Message> = optional(row, "system")?
        .map(Message::system)
        .into_iter()
        .collect();
    if let Some(history) = row.get("history").filter(|value| !value.is_null()) {
        for (index, pair) in list("history", history)?.iter().enumerate() {
            let [Value::String(question), Value::String(answer)] =
                list(&format!("history[{index}]"), pair)?
            else {
                return Err(wrong_kind(
                    &format!("history[{index}]"),
                    "a pair of strings",
                    pair,
                ));
            };
            messages.extend([Message::user(question), Message::assistant(answer)]);
        }
    }
    let question = match optional(row, "input")? {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction.to_owned(),
    };
    messages.extend([Message::user(question), Message::assistant(output)]);
    Ok(messages)
}

fn optional<'a>(row: &'a Fields, key: &str) -> Result<Option<&'a str>, RowError> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok((!text.is_empty()).then_some(text)),
        Some(other) => Err(wrong_kind(key, "a string", other)),
    }
}

fn list<'a>(key: &str, value: &'a Value) -> Result<&'a [Value], RowError> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| wrong_kind(key, "a list", value))
}
