use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use minijinja::{
    Environment, ErrorKind, Output, State, Value, escape_formatter,
    value::{Kwargs, ValueKind},
};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message in any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }

    /// What frames the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model answers.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// A checkpoint's way of writing a conversation: a Jinja template as transformers runs it.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    source: Arc<str>,
    variables: BTreeMap<String, Value>,
    tagged: bool,
}

const BUILTIN: [(&str, &str); 3] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("llama2", include_str!("templates/llama2.jinja")),
];

/// minijinja knows no `{% generation %}`. A tag becomes a block that prints a mark, between the same whitespace
/// controls: trimming happens at a block's outer ends.
static GENERATION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
        .expect("a constant pattern that a test compiles")
});
const NAME: &str = "chat_template";
const BEGIN: &str = "ferrotune_generation_";
const END: &str = "ferrotune_generation_end";

impl ChatTemplate {
    /// Compiles a template's source.
    pub fn new(source: &str) -> Result<Self> {
        let marked = GENERATION.replace_all(
            source,
            "{%$1 if true %}{{ ferrotune_generation_$2 }}{% endif $3%}",
        );
        let tagged = matches!(marked, Cow::Owned(_));
        let mut env = Environment::new();
        env.set_trim_blocks(true);
        env.set_lstrip_blocks(true);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.set_formatter(python_str);
        env.add_filter("tojson", tojson);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, marked.into_owned())?;
        Ok(Self {
            env: Arc::new(env),
            source: source.into(),
            variables: BTreeMap::new(),
            tagged,
        })
    }

    /// A template for checkpoints that have none: `chatml`, `alpaca` or `llama2`.
    pub fn builtin(name: &str) -> Result<Self> {
        let known = || BUILTIN.map(|(name, _)| name).join(", ");
        let found = BUILTIN.iter().find(|(known, _)| *known == name);
        let (_, source) = found.ok_or_else(|| Error::UnknownTemplate {
            name: name.to_owned(),
            known: known(),
        })?;
        Self::new(source)
    }

    /// Sets a variable of the template: `bos_token`, `tools`, `enable_thinking`, `date_string` ...
    pub fn with_variable(mut self, name: &str, value: impl Serialize) -> Self {
        self.variables
            .insert(name.to_owned(), Value::from_serialize(value));
        self
    }

    /// The source, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template itself marks the answers, with `{% generation %}`.
    pub fn marks_answers(&self) -> bool {
        self.tagged
    }

    /// The conversation as text; `add_generation_prompt` ends it where an answer begins.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_marked(messages, add_generation_prompt, "", "")
    }

    /// `begin` and `end` are printed where `{% generation %}` and `{% endgeneration %}` stand.
    pub(crate) fn render_marked(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        begin: &str,
        end: &str,
    ) -> Result<String> {
        // transformers passes these two always, None when there is none.
        let mut scope: BTreeMap<String, Value> =
            [("tools", Value::from(())), ("documents", Value::from(()))]
                .map(|(k, v)| (k.to_owned(), v))
                .into();
        scope.extend(self.variables.clone());
        scope.insert("messages".to_owned(), Value::from_serialize(messages));
        scope.insert(
            "add_generation_prompt".to_owned(),
            add_generation_prompt.into(),
        );
        scope.insert(BEGIN.to_owned(), begin.into());
        scope.insert(END.to_owned(), end.into());
        Ok(self.env.get_template(NAME)?.render(Value::from(scope))?)
    }
}

/// Python's spelling of what Rust's differs in.
fn python_str(
    out: &mut Output<'_>,
    state: &State<'_, '_>,
    value: &Value,
) -> Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        ValueKind::None => Ok(out.write_str("None")?),
        _ => escape_formatter(out, state, value),
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now").with_source(error)
    })
}

/// `json.dumps` with transformers' defaults: spaces after `,` and `:`, non-ASCII as it is, nothing escaped for HTML.
fn tojson(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut text = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            value.serialize(&mut Serializer::with_formatter(
                &mut text,
                PrettyFormatter::with_indent(indent.as_bytes()),
            ))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut text, Spaced)),
    };
    let failed =
        |source| minijinja::Error::new(ErrorKind::InvalidOperation, "tojson").with_source(source);
    written.map_err(failed)?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if ascii == Some(true) {
        let escape = |unit: u16| {
            if unit < 128 {
                (unit as u8 as char).to_string()
            } else {
                format!("\\u{unit:04x}")
            }
        };
        text = text.encode_utf16().map(escape).collect();
    }
    Ok(Value::from_safe_string(text))
}

/// JSON on one line with Python's separators.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}
