//! Where the answers stand in the rendered text.

use std::ops::Range;

use crate::{ChatTemplate, Error, Message, Result};

impl ChatTemplate {
    /// The conversation as text, and the byte ranges of the assistant's answers in it: what the loss counts.
    ///
    /// A template with `{% generation %}` says itself where they are. For any other an answer begins where the text
    /// of the messages before it ends, generation prompt included (so precisely what the model is asked to continue),
    /// and runs up to and with the end-of-turn text that follows it, `<|im_end|>` say, without the whitespace after
    /// that. Such a template must render a beginning of the conversation as a beginning of the text; one that does
    /// not is [`Error::Unstable`].
    pub fn answer_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        if self.marks_answers() {
            self.marked_spans(messages)
        } else {
            self.prefix_spans(messages)
        }
    }

    fn prefix_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        let whole = self.render(messages, false)?;
        let mut spans = Vec::new();
        for (index, message) in messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.role == "assistant")
        {
            let end_of = |count: usize, prompt: bool, what| {
                let role = || message.role.clone();
                let prefix =
                    self.render(&messages[..count], prompt)
                        .map_err(|error| Error::Prefix {
                            index,
                            role: role(),
                            what,
                            source: Box::new(error),
                        })?;
                if whole.starts_with(&prefix) {
                    Ok(prefix.len())
                } else {
                    Err(Error::Unstable {
                        index,
                        role: role(),
                        what,
                    })
                }
            };
            let start = end_of(index, true, "before it")?;
            let end = if index + 1 == messages.len() {
                whole.len()
            } else {
                end_of(index + 1, false, "up to it")?
            };
            let answer = whole.get(start..end).unwrap_or_default();
            spans.push(start..start + answer.trim_end().len());
        }
        Ok((whole, spans))
    }

    fn marked_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        // Noncharacters around a number that no message has.
        let taken = |mark: &str| {
            messages
                .iter()
                .any(|message| message.content.contains(mark))
        };
        let mark = |which: char| {
            (0..)
                .map(|n: u64| format!("\u{FDD0}{which}{n}\u{FDD0}"))
                .find(|mark| !taken(mark))
                .unwrap_or_default()
        };
        let (begin, end) = (mark('<'), mark('>'));
        let marked = self.render_marked(messages, false, &begin, &end)?;

        let mut pieces = marked.split(&begin);
        let mut text = pieces.next().unwrap_or_default().to_owned();
        let mut spans = Vec::new();
        for piece in pieces {
            let (answer, rest) = piece.split_once(&end).unwrap_or((piece, ""));
            spans.push(text.len()..text.len() + answer.len());
            text.push_str(answer);
            text.push_str(rest);
        }
        Ok((text, spans))
    }
}
