//! Addition and subtraction in words.
//!
//! A pair of numbers is held out as a whole: the two never stand in one training sentence, in
//! either order and whatever their part in it, so that 三十七加二十五 cannot be read off
//! 六十二减二十五等于三十七 either. Pairs of two single digits are never held out; they are the
//! table that every longer sum rests on.

use std::collections::HashSet;

use rand::{Rng, seq::SliceRandom};

use super::{
    Category, Quota, Row, Subject, fill,
    numerals::{count, numeral},
};

/// Which numbers are reckoned with.
#[derive(Clone, Copy)]
pub(super) struct Range {
    /// No operand or result is larger.
    pub(super) number: u32,
    /// Of two operands the smaller is no larger.
    pub(super) smaller: u32,
}

impl Range {
    /// Pairs of operands, the smaller first.
    fn pairs(self) -> impl Iterator<Item = (u32, u32)> {
        (1..=self.number).flat_map(move |b| (1..=b.min(self.smaller)).map(move |a| (a, b)))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Add,
    Subtract,
}

/// `a` and `b` are the operands, as in a + b or a - b; `c` is the result.
#[derive(Clone, Copy)]
struct Fact {
    operation: Operation,
    a: u32,
    b: u32,
    c: u32,
}

/// How many results a series gives.
const SERIES_TERMS: usize = 4;

const SUMS: &[&str] = &[
    "{a}加{b}等于{c}。",
    "{a}加上{b}得{c}。",
    "问：{a}加{b}是多少？答：{c}。",
];
const SUM_STORIES: &[&str] = &["小明有{n}个苹果，又买了{m}个，现在有{k}个。"];
const SUM_QUESTIONS: &[&str] = &[
    "{a}加{b}等于多少？",
    "计算：{a}加{b}。",
    "请算一算{a}加上{b}得多少。",
    "请问{a}加{b}是几？",
];

const DIFFERENCES: &[&str] = &[
    "{a}减{b}等于{c}。",
    "{a}减去{b}得{c}。",
    "问：{a}减{b}是多少？答：{c}。",
];
const DIFFERENCE_STORIES: &[&str] = &["小红有{n}个苹果，吃了{m}个，还剩{k}个。"];
const DIFFERENCE_QUESTIONS: &[&str] = &[
    "{a}减{b}等于多少？",
    "计算：{a}减{b}。",
    "请算一算{a}减去{b}得多少。",
    "请问{a}减{b}是几？",
];

/// All sums and differences of the range, the smaller operand being taken away.
pub(super) fn build(range: Range, quota: Quota, rng: &mut impl Rng) -> Subject {
    let mut pairs: Vec<(u32, u32)> = range.pairs().filter(|&(_, b)| b > 9).collect();
    pairs.shuffle(rng);
    let mut asked = Vec::new();
    pairs.retain(|&(a, b)| {
        let take = asked.len() < quota.held_out / 2 && a + b <= range.number;
        if take {
            // Either order, as the corpus has both.
            asked.push(if rng.random() {
                Fact::sum(a, b)
            } else {
                Fact::sum(b, a)
            });
        }
        !take
    });
    let differences = quota.held_out - asked.len();
    asked.extend(
        pairs
            .iter()
            .take(differences)
            .map(|&(a, b)| Fact::difference(b, a)),
    );
    let withheld: HashSet<(u32, u32)> =
        asked.iter().map(|f| (f.a.min(f.b), f.a.max(f.b))).collect();

    let told = |numbers: &[u32]| {
        let mut pairs = numbers
            .iter()
            .enumerate()
            .flat_map(|(i, &a)| numbers[..i].iter().map(move |&b| (a.min(b), a.max(b))));
        !pairs.any(|pair| withheld.contains(&pair))
    };

    let mut subject = Subject::new(quota);
    let series = all(range)
        .filter(|f| f.b <= range.smaller)
        .map(|f| f.series(range))
        .filter(|s| told(s));
    subject
        .sentences
        .extend(series.filter_map(|s| say_series(&s)));
    for fact in all(range).filter(|f| told(&[f.a, f.b, f.c])) {
        subject.sentences.extend(fact.sentences());
        subject
            .questions
            .extend((0..SUM_QUESTIONS.len()).map(|form| fact.question(form)));
    }
    subject.held_out = asked
        .iter()
        .map(|f| f.question(rng.random_range(0..SUM_QUESTIONS.len())))
        .collect();
    subject
}

/// Every sum in both orders and every difference.
fn all(range: Range) -> impl Iterator<Item = Fact> {
    let sums = range
        .pairs()
        .filter(move |(a, b)| a + b <= range.number)
        .flat_map(|(a, b)| {
            let turned = (a != b).then_some(Fact::sum(b, a));
            [Fact::sum(a, b)].into_iter().chain(turned)
        });
    sums.chain(range.pairs().map(|(a, b)| Fact::difference(b, a)))
}

/// A series in words, if it is long enough to be one.
fn say_series(series: &[u32]) -> Option<String> {
    let &[a, b, first, ref rest @ ..] = series else {
        return None;
    };
    let operation = if first > a { "加" } else { "减" };
    let terms: Vec<_> = std::iter::once(first)
        .chain(rest.iter().copied())
        .map(numeral)
        .collect();
    let said = format!(
        "从{}起每次{operation}{}：{}。",
        numeral(a),
        numeral(b),
        terms.join("、")
    );
    (terms.len() > 1).then_some(said)
}

impl Fact {
    fn sum(a: u32, b: u32) -> Self {
        Self {
            operation: Operation::Add,
            a,
            b,
            c: a + b,
        }
    }

    fn difference(a: u32, b: u32) -> Self {
        Self {
            operation: Operation::Subtract,
            a,
            b,
            c: a - b,
        }
    }

    /// `a`, then `b`, then what comes of adding or taking away `b` again and again.
    fn series(&self, range: Range) -> Vec<u32> {
        let Self {
            operation, a, b, ..
        } = *self;
        let next = |&x: &u32| match operation {
            Operation::Add => (x + b <= range.number).then_some(x + b),
            Operation::Subtract => (x > b).then(|| x - b),
        };
        let terms = std::iter::successors(next(&a), next).take(SERIES_TERMS);
        [a, b].into_iter().chain(terms).collect()
    }

    fn fill(&self, wording: &str) -> String {
        let Self { a, b, c, .. } = *self;
        fill(
            wording,
            &[
                ("{a}", &numeral(a)),
                ("{b}", &numeral(b)),
                ("{c}", &numeral(c)),
                ("{n}", &count(a)),
                ("{m}", &count(b)),
                ("{k}", &count(c)),
            ],
        )
    }

    fn sentences(&self) -> impl Iterator<Item = String> {
        let (plain, stories) = match self.operation {
            Operation::Add => (SUMS, SUM_STORIES),
            Operation::Subtract => (DIFFERENCES, DIFFERENCE_STORIES),
        };
        // Nobody says 还剩零个.
        let stories = if self.c == 0 { &[] } else { stories };
        plain
            .iter()
            .chain(stories)
            .map(|wording| self.fill(wording))
    }

    fn question(&self, form: usize) -> Row {
        let forms = match self.operation {
            Operation::Add => SUM_QUESTIONS,
            Operation::Subtract => DIFFERENCE_QUESTIONS,
        };
        Row::new(
            Category::Arithmetic,
            self.fill(forms[form]),
            numeral(self.c),
        )
    }
}
