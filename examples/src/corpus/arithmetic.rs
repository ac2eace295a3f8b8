//! Addition and subtraction in words.
//!
//! A pair of numbers is held out as a whole: the two never stand in one training sentence, in
//! either order and whatever their part in it, so that 三十七加二十五 cannot be read off
//! 六十二减二十五等于三十七 either. Pairs of two single digits are never held out; they are the
//! table that every longer sum rests on.

use std::collections::HashSet;

use rand::{Rng, seq::SliceRandom};

use super::{Category, Quota, Row, Subject, fill, numerals::{count, numeral}};

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

const SUMS: &[&str] = &[
    "{a}加{b}等于{c}。",
    "{a}加上{b}得{c}。",
    "{a}与{b}的和是{c}。",
    "问：{a}加{b}是多少？答：{c}。",
    "问：{a}与{b}的和是多少？答：{c}。",
];
const SUM_STORIES: &[&str] = &["小明有{n}个苹果，又买了{m}个，现在有{k}个。"];
const SUM_QUESTIONS: &[&str] = &[
    "{a}加{b}等于多少？",
    "计算：{a}加{b}。",
    "请算一算{a}加上{b}得多少。",
    "{a}与{b}的和是几？",
];

const DIFFERENCES: &[&str] = &[
    "{a}减{b}等于{c}。",
    "{a}减去{b}得{c}。",
    "{a}与{b}的差是{c}。",
    "问：{a}减{b}是多少？答：{c}。",
    "问：{a}与{b}的差是多少？答：{c}。",
];
const DIFFERENCE_STORIES: &[&str] = &["小红有{n}个苹果，吃了{m}个，还剩{k}个。"];
const DIFFERENCE_QUESTIONS: &[&str] = &[
    "{a}减{b}等于多少？",
    "计算：{a}减{b}。",
    "请算一算{a}减去{b}得多少。",
    "{a}与{b}的差是几？",
];

/// All sums and differences whose operands and result are at most `largest`, operands at least 1.
pub(super) fn build(largest: u32, quota: Quota, rng: &mut impl Rng) -> Subject {
    let mut pairs: Vec<(u32, u32)> =
        (10..=largest).flat_map(|b| (1..=b).map(move |a| (a, b))).collect();
    pairs.shuffle(rng);
    let mut asked = Vec::new();
    pairs.retain(|&(a, b)| {
        let take = asked.len() < quota.held_out / 2 && a + b <= largest;
        if take {
            // Either order, as the corpus has both.
            asked.push(if rng.random() { Fact::sum(a, b) } else { Fact::sum(b, a) });
        }
        !take
    });
    let differences = quota.held_out - asked.len();
    asked.extend(pairs.iter().take(differences).map(|&(a, b)| Fact::difference(b, a)));
    let withheld: HashSet<(u32, u32)> = asked.iter().map(|f| (f.a.min(f.b), f.a.max(f.b))).collect();

    let mut subject = Subject::new(quota);
    for fact in all(largest) {
        if fact.pairs().iter().any(|pair| withheld.contains(pair)) {
            continue;
        }
        subject.sentences.extend(fact.sentences());
        subject.questions.extend((0..SUM_QUESTIONS.len()).map(|form| fact.question(form)));
    }
    subject.held_out = asked.iter().map(|f| f.question(rng.random_range(0..SUM_QUESTIONS.len()))).collect();
    subject
}

fn all(largest: u32) -> impl Iterator<Item = Fact> {
    (1..=largest).flat_map(move |a| {
        let sums = (1..=largest - a).map(move |b| Fact::sum(a, b));
        sums.chain((1..=a).map(move |b| Fact::difference(a, b)))
    })
}

impl Fact {
    fn sum(a: u32, b: u32) -> Self {
        Self { operation: Operation::Add, a, b, c: a + b }
    }

    fn difference(a: u32, b: u32) -> Self {
        Self { operation: Operation::Subtract, a, b, c: a - b }
    }

    /// The three unordered pairs that a sentence about this fact puts side by side.
    fn pairs(&self) -> [(u32, u32); 3] {
        [(self.a, self.b), (self.a, self.c), (self.b, self.c)].map(|(x, y)| (x.min(y), x.max(y)))
    }

    fn fill(&self, wording: &str) -> String {
        let Self { a, b, c, .. } = *self;
        fill(wording, &[
            ("{a}", &numeral(a)),
            ("{b}", &numeral(b)),
            ("{c}", &numeral(c)),
            ("{n}", &count(a)),
            ("{m}", &count(b)),
            ("{k}", &count(c)),
        ])
    }

    fn sentences(&self) -> impl Iterator<Item = String> {
        let (plain, stories) = match self.operation {
            Operation::Add => (SUMS, SUM_STORIES),
            Operation::Subtract => (DIFFERENCES, DIFFERENCE_STORIES),
        };
        // Nobody says 还剩零个.
        let stories = if self.c == 0 { &[] } else { stories };
        plain.iter().chain(stories).map(|wording| self.fill(wording))
    }

    fn question(&self, form: usize) -> Row {
        let forms = match self.operation {
            Operation::Add => SUM_QUESTIONS,
            Operation::Subtract => DIFFERENCE_QUESTIONS,
        };
        Row::new(Category::Arithmetic, self.fill(forms[form]), numeral(self.c))
    }
}
