//! Exact match on questions with one right answer, by category.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context, Result};
use ferrotune::{
    generate::{self, Options},
    nn::Decoder,
    text::{Message, Tokenizer},
};
use serde::{Deserialize, Serialize};

/// A question as it stands in a file of rows.
#[derive(Debug, Clone, Deserialize)]
pub struct Question {
    /// What is asked.
    pub instruction: String,
    /// The right answer.
    pub output: String,
    /// What it is about.
    pub category: String,
}

/// Right answers and questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Answers that are the right one to the letter.
    pub right: usize,
    /// Questions.
    pub asked: usize,
}

impl Score {
    /// Right answers in a hundred.
    pub fn percent(&self) -> f64 {
        100.0 * self.right as f64 / self.asked.max(1) as f64
    }
}

/// How a model did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// For each category.
    pub categories: BTreeMap<String, Score>,
}

impl Report {
    /// Over all categories.
    pub fn overall(&self) -> Score {
        self.categories
            .values()
            .fold(Score::default(), |sum, score| Score {
                right: sum.right + score.right,
                asked: sum.asked + score.asked,
            })
    }
}

/// The questions in a file of JSON lines.
///
/// # Errors
/// A line that is no question, with its number.
pub fn questions(path: &Path) -> Result<Vec<Question>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    (1..)
        .zip(text.lines())
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| format!("{}:{number}", path.display()))
        })
        .collect()
}

/// The answer to one question by the tokenizer's chat template, the most likely token each time.
///
/// # Errors
/// A tokenizer without a template, or what the model finds wrong.
pub fn answer(model: &Decoder, tokenizer: &Tokenizer, question: &str) -> Result<String> {
    let template = tokenizer
        .chat_template()
        .context("the tokenizer has no chat template")?;
    let options = Options {
        // The right answers have at most eight characters.
        max_tokens: 32,
        eos: tokenizer.eos().into_iter().collect(),
        ..Options::default()
    };
    let text = template.render(&[Message::user(question)], true)?;
    let prompt = tokenizer.encode(&text, false)?;
    let answer = generate::text(model, tokenizer, &prompt, &options, |_| {})?;
    Ok(answer.trim().to_owned())
}

/// Asks every question and counts the right answers; the others go to `wrong`.
///
/// # Errors
/// As [`answer`].
pub fn examine(
    model: &Decoder,
    tokenizer: &Tokenizer,
    questions: &[Question],
    mut wrong: impl FnMut(&Question, &str),
) -> Result<Report> {
    let mut report = Report::default();
    for question in questions {
        let answer = answer(model, tokenizer, &question.instruction)?;
        let score = report
            .categories
            .entry(question.category.clone())
            .or_default();
        score.asked += 1;
        if answer == question.output {
            score.right += 1;
        } else {
            wrong(question, &answer);
        }
    }
    Ok(report)
}

/// Two reports side by side.
pub struct Comparison<'a> {
    /// Before the fine-tune.
    pub before: &'a Report,
    /// After it.
    pub after: &'a Report,
}

impl fmt::Display for Comparison<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14}{:>7}{:>9}{:>9}",
            "exact match", "asked", "before", "after"
        )?;
        let mut row = |name: &str, before: Score, after: Score| {
            let (asked, before, after) = (after.asked, before.percent(), after.percent());
            writeln!(f, "{name:<14}{asked:>7}{before:>8.1}%{after:>8.1}%")
        };
        for (name, after) in &self.after.categories {
            let before = self
                .before
                .categories
                .get(name)
                .copied()
                .unwrap_or_default();
            row(name, before, *after)?;
        }
        row("overall", self.before.overall(), self.after.overall())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_adds_up() {
        let report = |right| Report {
            categories: BTreeMap::from([
                ("dates".to_owned(), Score { right, asked: 4 }),
                ("sums".to_owned(), Score { right: 1, asked: 1 }),
            ]),
        };
        let (before, after) = (report(0), report(3));
        let text = Comparison {
            before: &before,
            after: &after,
        }
        .to_string();
        assert!(
            text.contains("dates               4     0.0%    75.0%"),
            "{text}"
        );
        assert!(
            text.contains("overall             5    20.0%    80.0%"),
            "{text}"
        );
    }
}
