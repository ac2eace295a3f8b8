use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong with a tokenizer, a chat template or a stream of tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not the JSON it should be.
    #[error("{} is not valid: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A `tokenizer.json` that the tokenizers crate refuses.
    #[error("{} is not a tokenizer: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The tokenizers crate's reason.
        source: tokenizers::Error,
    },
    /// A special token that the configuration names and the vocabulary lacks.
    #[error("{role} `{token}` is not in the vocabulary")]
    UnknownToken {
        /// `bos_token`, `eos_token`, `pad_token` or `unk_token`.
        role: &'static str,
        /// The token's text.
        token: String,
    },
    /// A text that could not be tokenized.
    #[error("cannot tokenize {text:?}: {source}")]
    Encode {
        /// The beginning of the text.
        text: String,
        /// The tokenizers crate's reason.
        source: tokenizers::Error,
    },
    /// Tokens that could not be turned into text.
    #[error("cannot decode {count} tokens ending in id {last}: {source}")]
    Decode {
        /// How many.
        count: usize,
        /// The last of them.
        last: u32,
        /// The tokenizers crate's reason.
        source: tokenizers::Error,
    },
    /// A streamed token that changed text which had been given out already.
    #[error("token {id} changes text already given out: {given:?} became {now:?}")]
    Rewritten {
        /// The token.
        id: u32,
        /// The window's text before it.
        given: String,
        /// The window's text after it.
        now: String,
    },
    /// A vocabulary that could not be trained.
    #[error("cannot train a vocabulary of {vocab_size} tokens: {reason}")]
    Train {
        /// The size that was asked for.
        vocab_size: usize,
        /// Why not.
        reason: String,
    },
    /// A name that is no built-in template.
    #[error("no built-in chat template `{name}`; there are {known}")]
    UnknownTemplate {
        /// The name.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A template that does not parse or render, or that refuses the conversation (`raise_exception`).
    #[error("chat template: {source}")]
    Template {
        /// minijinja's reason, with the template's line.
        #[from]
        source: minijinja::Error,
    },
    /// A template that refuses the beginning of a conversation, which finding an answer needs.
    #[error("message {index} ({role}): the template refuses the conversation {what}: {source}")]
    Prefix {
        /// The message, from 0.
        index: usize,
        /// Its role.
        role: String,
        /// Which part it was.
        what: &'static str,
        /// The template's reason.
        source: Box<Error>,
    },
    /// A template under which an answer cannot be found, because an earlier part of the text depends on later messages.
    #[error(
        "chat template is not stable at message {index} ({role}): the conversation {what} renders to no \
         prefix of the whole, so the answer cannot be told from the prompt; mark them with {{% generation %}} in the template"
    )]
    Unstable {
        /// The message, from 0.
        index: usize,
        /// Its role.
        role: String,
        /// Which part it was.
        what: &'static str,
    },
}
