use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a row stands: a file and a line, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, or the name given to rows in memory.
    pub file: Arc<Path>,
    /// The line, or the number of the row in memory.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Everything that can go wrong between files and batches.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No file was given.
    #[error("no data files were given")]
    NoFiles,
    /// A file that could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file without a single row.
    #[error("{} has no rows", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },
    /// A bad row. With [`OnBadLine::Skip`](crate::OnBadLine) it is counted instead.
    #[error("{at}: {source}")]
    Row {
        /// The row.
        at: Place,
        /// What is wrong with it.
        source: RowError,
    },
    /// A dataset of nothing.
    #[error("the dataset is empty: {skipped} rows were skipped{}", first.as_deref().map(|r| format!(", the first for {r}")).unwrap_or_default())]
    EmptyDataset {
        /// Rows that were left out.
        skipped: usize,
        /// Why the first was.
        first: Option<String>,
    },
    /// An example that cannot be trained on.
    #[error("example {index}: {reason}")]
    Example {
        /// Its number, from 0.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// An option that makes no sense.
    #[error("{option} = {value}: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What it was set to.
        value: usize,
        /// Why that cannot be.
        reason: &'static str,
    },
    /// A similarity from which texts would be duplicates.
    #[error("threshold = {threshold}: it must lie between 0 and 1")]
    Threshold {
        /// What it was set to.
        threshold: f64,
    },
    /// A pattern for [`Stream::template`](crate::Stream::template) that is none.
    #[error("the pattern {pattern:?} has {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A saved state of another stream than this one.
    #[error("cannot resume: {what} was {saved} when the state was saved and is {here} now")]
    OtherStream {
        /// What differs.
        what: &'static str,
        /// As it was saved.
        saved: String,
        /// As it is here.
        here: String,
    },
}

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// A line that is not JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A line of text that is not UTF-8.
    #[error("not UTF-8: {0}")]
    Utf8(#[from] std::str::Utf8Error),
    /// A key that the row lacks.
    #[error("no {wanted}; the row has {present}")]
    MissingKey {
        /// What was looked for.
        wanted: String,
        /// The keys it has.
        present: String,
    },
    /// A value of another kind than expected.
    #[error("{key} is {found}, not {expected}")]
    WrongKind {
        /// The key, with the index in a list where there is one; `row` is the row itself.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A speaker that no role is known for.
    #[error("{key} is `{tag}`, which stands for no role; known are {known}")]
    UnknownTag {
        /// Where it stands.
        key: String,
        /// The speaker.
        tag: String,
        /// Those there are.
        known: String,
    },
    /// A row none of whose tokens count in the loss.
    #[error(
        "no token counts in the loss: {answers} answers in {tokens} tokens, of which max_length keeps {kept}"
    )]
    Masked {
        /// Answers in the row.
        answers: usize,
        /// Tokens of the whole row.
        tokens: usize,
        /// Tokens kept.
        kept: usize,
    },
    /// A conversation, and a tokenizer that has no template to write it with.
    #[error("the row is a conversation and the tokenizer has no chat template")]
    NoTemplate,
    /// A text whose end cannot be marked.
    #[error("the row is plain text and the tokenizer has no eos_token")]
    NoEos,
    /// The tokenizer or the chat template refused it.
    #[error(transparent)]
    Text(#[from] ferrotune_text::Error),
    /// A [`Stream::map`](crate::Stream::map) of the caller refused it.
    #[error("{0}")]
    Refused(String),
}
