//! `tokenizer_config.json` and its neighbours: special tokens, and the chat template in the four places it may stand.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{Error, Result};

pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const CONFIG: &str = "tokenizer_config.json";
pub(crate) const SPECIAL_MAP: &str = "special_tokens_map.json";
pub(crate) const TEMPLATE: &str = "chat_template.jinja";

/// The roles that a checkpoint may give to a token, under the names of the files and of the templates.
pub(crate) const ROLES: [&str; 4] = ["bos_token", "eos_token", "pad_token", "unk_token"];

/// The text of a file, or `None` where there is none.
fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn object(path: PathBuf) -> Result<Map<String, Value>> {
    match read_if_there(&path)? {
        Some(text) => serde_json::from_str(&text).map_err(|source| Error::Json { path, source }),
        None => Ok(Map::new()),
    }
}

/// `tokenizer_config.json`, with the special tokens it lacks filled in from `special_tokens_map.json`.
pub(crate) fn read(dir: &Path) -> Result<Map<String, Value>> {
    let mut config = object(dir.join(CONFIG))?;
    for (role, token) in object(dir.join(SPECIAL_MAP))? {
        if ROLES.contains(&role.as_str()) && config.get(&role).is_none_or(Value::is_null) {
            config.insert(role, token);
        }
    }
    Ok(config)
}

/// A special token's text: a string, or an object with `content`.
pub(crate) fn token<'a>(config: &'a Map<String, Value>, role: &str) -> Option<&'a str> {
    match config.get(role)? {
        Value::String(text) => Some(text),
        Value::Object(token) => token.get("content")?.as_str(),
        _ => None,
    }
}

/// The template's source: `chat_template.jinja` first, as in transformers, then the configuration's string or the
/// `default` of its list.
pub(crate) fn template(dir: &Path, config: &Map<String, Value>) -> Result<Option<String>> {
    if let Some(source) = read_if_there(&dir.join(TEMPLATE))? {
        return Ok(Some(source));
    }
    Ok(match config.get("chat_template") {
        Some(Value::String(source)) => Some(source.clone()),
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned),
        _ => None,
    })
}
