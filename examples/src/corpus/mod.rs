//! A small world of Chinese to learn: text that states it, instructions that ask about it, and
//! questions held out from both.
//!
//! Everything is written from tables and a seed, and every sentence is true. What the held-out
//! questions ask is stated nowhere in the text or the instructions; each subject says at its top
//! what it withholds.
//!
//! ```
//! use ferrotune_examples::corpus::{Corpus, CorpusOptions};
//!
//! let corpus = Corpus::new(7, CorpusOptions::default());
//! for sentence in corpus.pretrain_text().take(3) {
//!     assert!(sentence.ends_with('。'));
//! }
//! assert!(corpus.held_out().iter().all(|row| !corpus.instructions().contains(row)));
//! ```

mod arithmetic;
mod dates;
mod lexical;
mod lexicon;
mod numerals;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use arithmetic::Range;

/// How much the generator writes and how hard the questions are.
#[derive(Clone, Debug)]
pub struct CorpusOptions {
    /// Sentences of the pretraining text.
    pub sentences: usize,
    /// Instruction rows of each category of words.
    pub instructions_per_category: usize,
    /// Instruction rows of arithmetic and of dates, which are reckoned and not looked up.
    pub reckoning_instructions: usize,
    /// Held-out rows of each category; a category with less to ask gives fewer.
    pub held_out_per_category: usize,
    /// No operand or result of the arithmetic is larger.
    pub largest_number: u32,
    /// Of the two operands the smaller is no larger.
    pub smaller_operand: u32,
    /// How many days before or after a weekday are asked for.
    pub weekday_reach: u32,
}

impl Default for CorpusOptions {
    /// What a Llama of some three million parameters learns on two CPU cores in a few minutes.
    fn default() -> Self {
        Self {
            sentences: 70_000,
            instructions_per_category: 400,
            reckoning_instructions: 1600,
            held_out_per_category: 60,
            largest_number: 99,
            smaller_operand: 9,
            weekday_reach: 6,
        }
    }
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// Sums and differences in Chinese numerals.
    Arithmetic,
    /// Days of the week and of the year.
    Dates,
    /// Words of opposite meaning.
    Antonyms,
    /// The measure word of a noun.
    Classifiers,
    /// Whether a sentence praises or blames.
    Sentiment,
}

impl Category {
    /// All categories, in the order of reports.
    pub const ALL: [Self; 5] = [
        Self::Arithmetic,
        Self::Dates,
        Self::Antonyms,
        Self::Classifiers,
        Self::Sentiment,
    ];
}

/// One question with its answer, as an alpaca row.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Row {
    /// The question.
    pub instruction: String,
    /// Always empty; alpaca rows have it.
    pub input: String,
    /// The answer, one to eight characters, without punctuation.
    pub output: String,
    /// What the question is about.
    pub category: Category,
}

impl Row {
    fn new(category: Category, instruction: String, output: String) -> Self {
        Self {
            instruction,
            input: String::new(),
            output,
            category,
        }
    }
}

/// How much of the whole one subject gets.
#[derive(Clone, Copy)]
struct Quota {
    /// Its part of the pretraining text, relative to the other subjects'.
    share: f64,
    instructions: usize,
    held_out: usize,
}

/// Everything that can be said and asked about one subject.
struct Subject {
    quota: Quota,
    sentences: Vec<String>,
    questions: Vec<Row>,
    held_out: Vec<Row>,
}

impl Subject {
    fn new(quota: Quota) -> Self {
        Self {
            quota,
            sentences: Vec::new(),
            questions: Vec::new(),
            held_out: Vec::new(),
        }
    }
}

/// The text, the instructions and the held-out questions of one seed.
pub struct Corpus {
    seed: u64,
    sentences: usize,
    subjects: Vec<Subject>,
    instructions: Vec<Row>,
    held_out: Vec<Row>,
}

impl Corpus {
    /// Decides what is held out and writes the rows; the same seed and options give the same corpus.
    pub fn new(seed: u64, options: CorpusOptions) -> Self {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let asked = options.held_out_per_category;
        let words = |share| Quota {
            share,
            instructions: options.instructions_per_category,
            held_out: asked,
        };
        let reckoning = options.reckoning_instructions;
        let sums = Quota {
            share: 0.42,
            instructions: reckoning,
            held_out: asked,
        };
        // Weekdays are few: a sixteenth of the date rows is theirs, and none of the questions held out.
        let week = Quota {
            share: 0.08,
            instructions: reckoning / 16,
            held_out: 0,
        };
        let year = Quota {
            share: 0.30,
            instructions: reckoning - reckoning / 16,
            held_out: asked,
        };
        let numbers = Range {
            number: options.largest_number,
            smaller: options.smaller_operand,
        };
        let mut subjects = vec![
            arithmetic::build(numbers, sums, rng),
            dates::weekdays(options.weekday_reach, week, rng),
            dates::days(year, rng),
            lexical::antonyms(words(0.08), rng),
            lexical::classifiers(words(0.06), rng),
            lexical::sentiment(words(0.06), rng),
        ];

        let mut instructions = Vec::new();
        let mut held_out = Vec::new();
        for subject in &mut subjects {
            let mut questions = std::mem::take(&mut subject.questions);
            questions.shuffle(rng);
            instructions.extend(questions.into_iter().take(subject.quota.instructions));
            held_out.append(&mut subject.held_out);
        }
        instructions.shuffle(rng);
        Self {
            seed,
            sentences: options.sentences,
            subjects,
            instructions,
            held_out,
        }
    }

    /// The sentences of the pretraining text, subjects mixed by their shares.
    ///
    /// A subject says all that it has to say, in random order, before it repeats itself.
    pub fn pretrain_text(&self) -> impl Iterator<Item = String> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // Another stream than the one that decided what is held out.
        rng.set_stream(1);
        let mut decks: Vec<Vec<&str>> = vec![Vec::new(); self.subjects.len()];
        let total: f64 = self.subjects.iter().map(|s| s.quota.share).sum();
        (0..self.sentences).filter_map(move |_| {
            let mut point = rng.random_range(0.0..total);
            let index = self.subjects.iter().position(|subject| {
                point -= subject.quota.share;
                point < 0.0
            })?;
            let deck = &mut decks[index];
            if deck.is_empty() {
                deck.extend(self.subjects[index].sentences.iter().map(String::as_str));
                deck.shuffle(&mut rng);
            }
            deck.pop().map(String::from)
        })
    }

    /// The rows to fine-tune on, in random order.
    pub fn instructions(&self) -> &[Row] {
        &self.instructions
    }

    /// The questions that neither the text nor the instructions answer, by category.
    pub fn held_out(&self) -> &[Row] {
        &self.held_out
    }

    /// Writes `pretrain.jsonl` (`{"text": …}`), `train.jsonl` and `eval.jsonl` (alpaca rows with
    /// their category) into `folder`, which is made where missing.
    ///
    /// # Errors
    ///
    /// When the folder or a file cannot be written, with its path.
    pub fn write_to(&self, folder: &Path) -> io::Result<()> {
        #[derive(Serialize)]
        struct Text {
            text: String,
        }
        std::fs::create_dir_all(folder).map_err(|e| at(folder, e))?;
        write_lines(
            &folder.join("pretrain.jsonl"),
            self.pretrain_text().map(|text| Text { text }),
        )?;
        write_lines(&folder.join("train.jsonl"), &self.instructions)?;
        write_lines(&folder.join("eval.jsonl"), &self.held_out)
    }
}

fn write_lines<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> io::Result<()> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        for row in rows {
            serde_json::to_writer(&mut file, &row)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    write().map_err(|e| at(path, e))
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Puts the values into the placeholders of a wording.
fn fill(wording: &str, values: &[(&str, &str)]) -> String {
    values
        .iter()
        .fold(wording.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        })
}
