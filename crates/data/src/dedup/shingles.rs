use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// What of a text is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shingles {
    /// So many characters (Unicode scalar values) that follow each other. For Chinese, and for mixed text.
    Chars(usize),
    /// So many words that follow each other. A word is a run of letters and digits; a character of a script that is
    /// written without spaces (Chinese, Japanese) is one alone.
    Words(usize),
}

impl Shingles {
    /// The hashes of all shingles of `text`, in the order of the text, repeated as they are in it, into `out`.
    ///
    /// `units` is room for the text's characters or words; both are cleared first. A text with fewer than n units has
    /// one shingle, the text. No text has none.
    pub fn hash(self, text: &str, units: &mut Vec<u32>, out: &mut Vec<u32>) {
        units.clear();
        let n = match self {
            Self::Chars(n) => {
                units.extend(text.chars().map(u32::from));
                n
            }
            Self::Words(n) => {
                words(text, |word| units.push(hash_word(word)));
                n
            }
        };
        out.clear();
        if units.len() < n {
            // Of another length than any shingle, so of another value.
            let whole = units.iter().fold(SEED, |hash, unit| step(hash, *unit));
            out.push(finish(whole ^ n as u32));
            return;
        }
        out.resize(units.len() - n + 1, SEED);
        // One unit of all shingles after the other: the compiler makes vectors of it.
        for i in 0..n {
            for (hash, unit) in out.iter_mut().zip(&units[i..]) {
                *hash = step(*hash, *unit);
            }
        }
        for hash in out.iter_mut() {
            *hash = finish(*hash);
        }
    }

    /// Checks that a shingle is something.
    pub(crate) fn check(self) -> Result<()> {
        let (Self::Chars(n) | Self::Words(n)) = self;
        if n == 0 {
            return Err(Error::Option {
                option: "ngram",
                value: 0,
                reason: "a shingle has one character or word at least",
            });
        }
        Ok(())
    }
}

/// Written as on a command line: `char:5`, `word:3`.
impl fmt::Display for Shingles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chars(n) => write!(f, "char:{n}"),
            Self::Words(n) => write!(f, "word:{n}"),
        }
    }
}

impl FromStr for Shingles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse::<usize>().ok().filter(|n| *n > 0);
        let parsed = match text.split_once(':') {
            Some(("char", n)) => number(n).map(Self::Chars),
            Some(("word", n)) => number(n).map(Self::Words),
            _ => None,
        };
        parsed.ok_or_else(|| format!("`{text}` is neither char:N nor word:N, N at least 1"))
    }
}

const SEED: u32 = 0x9e37_79b9;

/// A polynomial in an odd number.
fn step(hash: u32, unit: u32) -> u32 {
    hash.wrapping_mul(0x0100_0193)
        .wrapping_add(unit.wrapping_mul(0x85eb_ca6b))
}

/// MurmurHash3's last mixing: a change of one bit changes each with probability a half.
fn finish(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

fn hash_word(word: &str) -> u32 {
    word.chars()
        .flat_map(char::to_lowercase)
        .fold(SEED, |hash, c| step(hash, u32::from(c)))
}

/// Calls `each` with every word.
fn words<'t>(text: &'t str, mut each: impl FnMut(&'t str)) {
    let mut begin = None;
    for (at, c) in text.char_indices() {
        let alone = without_spaces(c);
        if let (Some(start), true) = (begin, alone || !c.is_alphanumeric()) {
            each(&text[start..at]);
            begin = None;
        }
        if alone {
            each(&text[at..at + c.len_utf8()]);
        } else if c.is_alphanumeric() && begin.is_none() {
            begin = Some(at);
        }
    }
    if let Some(start) = begin {
        each(&text[start..]);
    }
}

/// Han, Hiragana, Katakana and Bopomofo.
fn without_spaces(c: char) -> bool {
    matches!(u32::from(c),
        0x3040..=0x312f | 0x31a0..=0x31bf | 0x31f0..=0x31ff | 0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff
        | 0x20000..=0x323af)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(shingles: Shingles, text: &str) -> Vec<u32> {
        let (mut units, mut out) = (vec![7], vec![7]);
        shingles.hash(text, &mut units, &mut out);
        out
    }

    #[test]
    fn words_are_runs_and_single_characters() {
        let mut found = Vec::new();
        words("GPT-4 用了 2 张H100，対話する。", |word| {
            found.push(word)
        });
        assert_eq!(
            found,
            [
                "GPT", "4", "用", "了", "2", "张", "H100", "対", "話", "す", "る"
            ]
        );
    }

    #[test]
    fn shingles_are_those_of_a_window() {
        for (shingles, text, windows) in [
            (
                Shingles::Chars(3),
                "今天天气好",
                vec!["今天天", "天天气", "天气好"],
            ),
            (
                Shingles::Words(2),
                "The cat, the CAT",
                vec!["the cat", "Cat the", "the cat"],
            ),
        ] {
            let alone: Vec<u32> = windows.iter().flat_map(|w| hashes(shingles, w)).collect();
            assert_eq!(hashes(shingles, text), alone, "{text}");
        }
    }

    #[test]
    fn short_texts_are_whole_and_their_own() {
        let five = Shingles::Chars(5);
        assert_eq!(hashes(five, "好的"), hashes(five, "好的"));
        let different = ["", "好", "好的", "好的好的", "好的好的好"];
        for (i, a) in different.iter().enumerate() {
            assert_eq!(hashes(five, a).len(), 1);
            for b in &different[i + 1..] {
                assert_ne!(hashes(five, a), hashes(five, b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for text in ["char:5", "word:3"] {
            assert_eq!(text.parse::<Shingles>().unwrap().to_string(), text);
        }
        for text in ["char:0", "char", "line:2", "word:-1", "char:5 "] {
            assert!(text.parse::<Shingles>().unwrap_err().contains(text));
        }
    }
}
