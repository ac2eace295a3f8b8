//! `adapter_config.json` as PEFT writes it.

use crate::{Error, Result};
use ferrotune_nn::files;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Which linears get an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// Names: a path that is one of them, or ends with `.name`.
    Names(Vec<String>),
    /// A regular expression that matches the whole path, or `all-linear`: all but the output layer.
    Pattern(String),
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Targets {
    fn from(names: [S; N]) -> Self {
        Targets::Names(names.map(Into::into).into())
    }
}

impl From<&str> for Targets {
    fn from(pattern: &str) -> Self {
        Targets::Pattern(pattern.to_owned())
    }
}

/// The settings of a LoRA adapter (Hu et al., 2021), with PEFT's names and defaults.
/// Keys that we do not use survive in `extra`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// The rank.
    #[serde(default = "eight_i64")]
    pub r: i64,
    /// The update is scaled by `lora_alpha / r`.
    #[serde(default = "eight")]
    pub lora_alpha: f64,
    /// Dropout on the adapter's input, in training only.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Which linears.
    pub target_modules: Targets,
    /// Scale by `lora_alpha / sqrt(r)` instead (Kalajdzievski, 2023).
    #[serde(default)]
    pub use_rslora: bool,
    /// Ranks of single modules, by a regular expression on the end of the path; the first hit wins.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub rank_pattern: Map<String, Value>,
    /// Alphas of single modules, likewise.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub alpha_pattern: Map<String, Value>,
    /// Every other key.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

fn eight() -> f64 {
    8.0
}
fn eight_i64() -> i64 {
    8
}
fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Map<String, Value>, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".to_owned(),
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Targets::Names(Vec::new()),
            use_rslora: false,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            extra: BTreeMap::new(),
        }
    }
}

/// The features that PEFT's files can ask for and this crate does not build, with the values that
/// mean "off".
const OFF: [(&str, &[&str]); 17] = [
    ("use_dora", &["false", "null"]),
    ("bias", &["\"none\"", "null"]),
    ("lora_bias", &["false", "null"]),
    ("modules_to_save", &["null", "[]"]),
    ("fan_in_fan_out", &["false", "null"]),
    ("layers_to_transform", &["null", "[]"]),
    ("exclude_modules", &["null", "[]"]),
    ("target_parameters", &["null", "[]"]),
    ("trainable_token_indices", &["null", "[]"]),
    ("layer_replication", &["null", "[]"]),
    ("use_qalora", &["false", "null"]),
    ("use_bdlora", &["false", "null"]),
    ("alora_invocation_tokens", &["null", "[]"]),
    ("arrow_config", &["null"]),
    ("kasa_config", &["null"]),
    ("monteclora_config", &["null"]),
    ("velora_config", &["null"]),
];

const INIT: &str = "init_lora_weights";

/// Initialisations that leave the base as it is. Under any other (pissa, olora, loftq, …) the
/// adapter belongs to a base that PEFT changes on loading.
const PLAIN_INIT: [&str; 6] = [
    "null",
    "true",
    "false",
    "\"gaussian\"",
    "\"eva\"",
    "\"orthogonal\"",
];

impl LoraConfig {
    /// Reads `adapter_config.json` in `dir`.
    ///
    /// # Errors
    /// A file that does not parse, another kind of adapter, or a feature that is not built.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("adapter_config.json");
        let config: Self = files::read_json(&path)?;
        config.check().map_err(|error| match error {
            Error::Config(reason) => Error::Config(format!("{}: {reason}", path.display())),
            other => other,
        })?;
        Ok(config)
    }

    /// Writes `adapter_config.json` into `dir`: keys sorted, an indent of two.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let path = dir.join("adapter_config.json");
        let value = serde_json::to_value(self).map_err(|source| ferrotune_nn::Error::Json {
            path: path.clone(),
            source,
        })?;
        let mut keys: BTreeMap<String, Value> = match value {
            Value::Object(map) => map.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        // PEFT reads an integer alpha as what it is; keep 32 from turning into 32.0.
        if self.lora_alpha.fract() == 0.0 {
            keys.insert("lora_alpha".to_owned(), Value::from(self.lora_alpha as i64));
        }
        keys.entry("task_type".to_owned())
            .or_insert_with(|| "CAUSAL_LM".into());
        Ok(files::write_json(&path, &keys)?)
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// The setting at fault.
    pub fn check(&self) -> Result<()> {
        let fail = |reason: String| Err(Error::Config(reason));
        if self.peft_type != "LORA" {
            return fail(format!("peft_type `{}` is not LORA", self.peft_type));
        }
        if self.r < 1 {
            return fail(format!("r is {}", self.r));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return fail(format!("lora_dropout {} is not in 0..1", self.lora_dropout));
        }
        for (key, off) in OFF {
            if let Some(value) = self
                .extra
                .get(key)
                .filter(|value| !off.contains(&value.to_string().as_str()))
            {
                return fail(format!("`{key}: {value}` is not supported"));
            }
        }
        let init = self.extra.get(INIT).unwrap_or(&Value::Null);
        if !PLAIN_INIT.contains(&init.to_string().as_str()) {
            return fail(format!("`{INIT}: {init}` is not supported"));
        }
        Ok(())
    }

    /// Says that a fresh adapter starts as this crate starts one.
    pub(crate) fn check_init(&self) -> Result<()> {
        match self.extra.get(INIT) {
            None | Some(Value::Null | Value::Bool(true)) => Ok(()),
            Some(init) => Err(Error::Config(format!(
                "a fresh adapter with `{INIT}: {init}` is not supported"
            ))),
        }
    }

    /// Says whether `path` is a target.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub fn targets(&self, path: &str) -> Result<bool> {
        Ok(match &self.target_modules {
            Targets::Names(names) => names.iter().any(|name| is_or_ends_with(path, name)),
            Targets::Pattern(all) if all == "all-linear" => !is_or_ends_with(path, "lm_head"),
            Targets::Pattern(pattern) => regex(&format!("^(?:{pattern})$"))?.is_match(path),
        })
    }

    /// The rank and scale of the adapter at `path`.
    ///
    /// # Errors
    /// A pattern that is no regular expression or whose value is no number.
    pub fn rank_and_scale(&self, path: &str) -> Result<(i64, f64)> {
        let r = first_hit(&self.rank_pattern, path)?.unwrap_or(self.r as f64);
        let alpha = first_hit(&self.alpha_pattern, path)?.unwrap_or(self.lora_alpha);
        if r < 1.0 || r.fract() != 0.0 {
            return Err(Error::Config(format!(
                "rank_pattern gives r = {r} at `{path}`"
            )));
        }
        let divisor = if self.use_rslora { r.sqrt() } else { r };
        Ok((r as i64, alpha / divisor))
    }
}

fn is_or_ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// PEFT: `re.match(r"(.*\.)?({key})$", path)`, first hit wins.
fn first_hit(patterns: &Map<String, Value>, path: &str) -> Result<Option<f64>> {
    for (key, value) in patterns {
        if regex(&format!(r"^(?:.*\.)?(?:{key})$"))?.is_match(path) {
            return value
                .as_f64()
                .map(Some)
                .ok_or_else(|| Error::Config(format!("the value of pattern `{key}` is {value}")));
        }
    }
    Ok(None)
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|source| Error::Pattern {
        pattern: pattern.to_owned(),
        source,
    })
}
