//! Stop strings in a stream of text.

/// Holds back text that may be the beginning of a stop string.
#[derive(Debug, Clone)]
pub(crate) struct StopStrings {
    strings: Vec<String>,
    held: String,
}

impl StopStrings {
    pub(crate) fn new(strings: &[String]) -> Self {
        let strings = strings
            .iter()
            .filter(|string| !string.is_empty())
            .cloned()
            .collect();
        Self {
            strings,
            held: String::new(),
        }
    }

    /// Takes the next piece; returns what is safe to show, and whether a stop string was completed
    /// (it is not shown, nor what follows it). However the text is cut, the outcome is the same.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        let mut shown = String::new();
        for character in piece.chars() {
            self.held.push(character);
            let ends = |stop: &&String| self.held.ends_with(stop.as_str());
            if let Some(longest) = self.strings.iter().filter(ends).map(String::len).max() {
                shown.push_str(&self.held[..self.held.len() - longest]);
                self.held.clear();
                return (shown, true);
            }
            let keep = self
                .strings
                .iter()
                .map(|stop| overlap(&self.held, stop))
                .max()
                .unwrap_or(0);
            shown.extend(self.held.drain(..self.held.len() - keep));
        }
        (shown, false)
    }

    /// What was held back and no longer can become a stop string.
    pub(crate) fn finish(self) -> String {
        self.held
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .skip(1)
        .filter(|at| text.ends_with(&stop[..*at]))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cut_of_the_text_stops_at_the_same_place(
            text in "[ab中文]{0,24}", stops in prop::collection::vec("[ab中文]{1,3}", 0..3), cut in 1_usize..4,
        ) {
            // The stop string that is complete first; of several that end there, the longest.
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
            let expected = ends
                .filter_map(|end| {
                    let stop = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
                    stop.map(|stop| end - stop.len()).min()
                })
                .next()
                .map_or(&text[..], |at| &text[..at]);
            let characters: Vec<char> = text.chars().collect();
            let (mut found, mut stop) = (String::new(), StopStrings::new(&stops));
            let met = characters.chunks(cut).any(|piece| {
                let (shown, met) = stop.push(&piece.iter().collect::<String>());
                found.push_str(&shown);
                met
            });
            if !met {
                found.push_str(&stop.finish());
            }
            prop_assert_eq!(found, expected);
        }
    }
}
