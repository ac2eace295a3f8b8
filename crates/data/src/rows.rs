use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use crate::{Error, Place, Result, RowError};

/// A row's keys and values, in the order of the file.
pub type Fields = Map<String, Value>;

/// A row and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its keys and values.
    pub fields: Fields,
    /// Its file and line.
    pub at: Place,
}

/// What to do with a row that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadLine {
    /// End with an error that names file and line.
    #[default]
    Fail,
    /// Leave it out and count it.
    Skip,
}

/// Rows that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub count: usize,
    /// Why the first eight were, each with file and line.
    pub reasons: Vec<String>,
}

/// Files of rows, which may be streamed any number of times.
#[derive(Clone, Debug)]
pub struct Source {
    files: Vec<(PathBuf, Format)>,
    on_bad: OnBadLine,
}

/// What a line of a file is.
#[derive(Clone, Copy, Debug)]
enum Format {
    /// A JSON object.
    Jsonl,
    /// The value of the key `text`.
    Text,
}

impl Source {
    /// JSONL files, one object a line, read in the order given. Blank lines and a byte-order mark are passed over.
    pub fn jsonl<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        on_bad: OnBadLine,
    ) -> Result<Self> {
        Self::with(paths, on_bad, |_| Format::Jsonl)
    }

    /// Files by their ending: of `.txt` each line is a row with the key `text`, any other is JSONL.
    pub fn open<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        on_bad: OnBadLine,
    ) -> Result<Self> {
        Self::with(paths, on_bad, |path| match path.extension() {
            Some(ending) if ending == "txt" => Format::Text,
            _ => Format::Jsonl,
        })
    }

    fn with<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        on_bad: OnBadLine,
        format: impl Fn(&Path) -> Format,
    ) -> Result<Self> {
        let mut files = Vec::new();
        for path in paths {
            let path = path.as_ref().to_owned();
            let size = fs::metadata(&path).map(|metadata| metadata.len());
            match size {
                Err(source) => return Err(Error::Read { path, source }),
                Ok(0) => return Err(Error::EmptyFile { path }),
                Ok(_) => files.push((path.clone(), format(&path))),
            }
        }
        if files.is_empty() {
            return Err(Error::NoFiles);
        }
        Ok(Self { files, on_bad })
    }

    /// The rows, read as they are asked for.
    pub fn stream(&self) -> Stream {
        let files = self.files.clone().into_iter();
        let rows = files.flat_map(|(path, format)| lines(path, format));
        Stream::new(rows, self.on_bad)
    }
}

type Rows = Box<dyn Iterator<Item = Result<Row>> + Send>;

/// Rows on their way, and the operations on them. Nothing is read or done before a row is asked for.
///
/// An iterator of `Result<Row>`; under [`OnBadLine::Skip`] bad rows, whichever operation found them bad, do not come
/// out but are counted. `by_ref()` leads to an iterator's own `map` and `filter`.
pub struct Stream {
    rows: Rows,
    on_bad: OnBadLine,
    skipped: Skipped,
}

impl Stream {
    fn new(rows: impl Iterator<Item = Result<Row>> + Send + 'static, on_bad: OnBadLine) -> Self {
        Self {
            rows: Box::new(rows),
            on_bad,
            skipped: Skipped::default(),
        }
    }

    /// Rows in memory. Errors name `name` and the row's number from 1.
    pub fn rows<I>(name: &str, rows: I, on_bad: OnBadLine) -> Self
    where
        I: IntoIterator<Item = Fields, IntoIter: Send + 'static>,
    {
        let file: Arc<Path> = Path::new(name).into();
        let placed = (1..).zip(rows).map(move |(line, fields)| {
            Ok(Row {
                fields,
                at: Place {
                    file: file.clone(),
                    line,
                },
            })
        });
        Self::new(placed, on_bad)
    }

    /// Rows left out so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Keeps the rows that `keep` says yes to.
    pub fn filter(self, mut keep: impl FnMut(&Fields) -> bool + Send + 'static) -> Self {
        self.then(move |rows| {
            Box::new(rows.filter(move |row| row.as_ref().map_or(true, |row| keep(&row.fields))))
        })
    }

    /// Changes rows one by one. What `change` refuses is a bad row.
    pub fn map(
        self,
        mut change: impl FnMut(Fields) -> Result<Fields, RowError> + Send + 'static,
    ) -> Self {
        self.then(move |rows| {
            Box::new(rows.map(move |row| {
                let Row { fields, at } = row?;
                match change(fields) {
                    Ok(fields) => Ok(Row { fields, at }),
                    Err(source) => Err(Error::Row { at, source }),
                }
            }))
        })
    }

    /// Gives a key another name, in its place. A row without the key is a bad row.
    pub fn rename(self, from: &str, to: &str) -> Self {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.map(move |fields| {
            if !fields.contains_key(&from) {
                return Err(missing(&format!("`{from}`"), &fields));
            }
            let renamed = |(key, value)| {
                if key == from {
                    (to.clone(), value)
                } else {
                    (key, value)
                }
            };
            Ok(fields.into_iter().map(renamed).collect())
        })
    }

    /// Keeps these keys alone. A row that lacks one is a bad row.
    pub fn select(self, keys: &[&str]) -> Self {
        let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        self.map(
            move |mut fields| match keys.iter().find(|key| !fields.contains_key(*key)) {
                Some(lacking) => Err(missing(&format!("`{lacking}`"), &fields)),
                None => {
                    fields.retain(|key, _| keys.contains(key));
                    Ok(fields)
                }
            },
        )
    }

    fn then(self, wrap: impl FnOnce(Rows) -> Rows) -> Self {
        Self {
            rows: wrap(self.rows),
            ..self
        }
    }

    /// Ends with a bad row, or counts it.
    pub(crate) fn judge(&mut self, error: Error) -> Result<()> {
        if self.on_bad == OnBadLine::Fail || !matches!(error, Error::Row { .. }) {
            return Err(error);
        }
        self.skipped.count += 1;
        if self.skipped.reasons.len() < 8 {
            self.skipped.reasons.push(error.to_string());
        }
        Ok(())
    }
}

impl Iterator for Stream {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.rows.next()? {
                Ok(row) => return Some(Ok(row)),
                Err(error) => {
                    if let Err(error) = self.judge(error) {
                        // After an error there is nothing: a reader that goes on would go on without the bad row.
                        self.rows = Box::new(std::iter::empty());
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("on_bad", &self.on_bad)
            .field("skipped", &self.skipped)
            .finish_non_exhaustive()
    }
}

/// A file's rows: opened at the first, ended by an error of the file itself.
fn lines(path: PathBuf, format: Format) -> impl Iterator<Item = Result<Row>> + Send {
    let file: Arc<Path> = path.as_path().into();
    let mut reader = None;
    let mut line = 0;
    let mut seen = false;
    let mut done = false;
    std::iter::from_fn(move || {
        let failed = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let mut bytes = Vec::new();
        while !done {
            let reader = match &mut reader {
                Some(reader) => reader,
                None => match File::open(&path) {
                    Ok(file) => reader.insert(BufReader::new(file)),
                    Err(source) => {
                        done = true;
                        return Some(Err(failed(source)));
                    }
                },
            };
            bytes.clear();
            line += 1;
            match reader.read_until(b'\n', &mut bytes) {
                Ok(0) => {
                    done = true;
                    return (!seen).then(|| Err(Error::EmptyFile { path: path.clone() }));
                }
                Err(source) => {
                    done = true;
                    return Some(Err(failed(source)));
                }
                Ok(_) => {}
            }
            let text = if line == 1 {
                bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes)
            } else {
                &bytes
            };
            if !text.trim_ascii().is_empty() {
                seen = true;
                let at = Place {
                    file: file.clone(),
                    line,
                };
                return Some(match parse(text, format) {
                    Ok(fields) => Ok(Row { fields, at }),
                    Err(source) => Err(Error::Row { at, source }),
                });
            }
        }
        None
    })
}

fn parse(line: &[u8], format: Format) -> Result<Fields, RowError> {
    if let Format::Text = format {
        let text = std::str::from_utf8(line)?.trim_end();
        return Ok(Fields::from_iter([("text".to_owned(), text.into())]));
    }
    match serde_json::from_slice(line)? {
        Value::Object(fields) => Ok(fields),
        other => Err(wrong_kind("row", "an object", &other)),
    }
}

/// The error for a key that is not there.
pub(crate) fn missing(wanted: &str, fields: &Fields) -> RowError {
    let present: Vec<String> = fields.keys().map(|key| format!("`{key}`")).collect();
    let present = if present.is_empty() {
        "no keys".to_owned()
    } else {
        present.join(", ")
    };
    RowError::MissingKey {
        wanted: wanted.to_owned(),
        present,
    }
}

/// The error for a value of another kind.
pub(crate) fn wrong_kind(key: &str, expected: &'static str, value: &Value) -> RowError {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    RowError::WrongKind {
        key: key.to_owned(),
        expected,
        found,
    }
}
