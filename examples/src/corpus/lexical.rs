//! Antonyms, classifiers and the sentiment of short sentences.
//!
//! A fact about a word cannot be guessed, so training must state it. What antonyms and
//! classifiers hold out is the form of the question: each word is asked about in all forms but
//! one, and that one, seen with other words only, is its test. Sentiment holds out the
//! combination of an object and a word: 这部电影 is judged, and things are called 枯燥, but no
//! training sentence calls 这部电影 枯燥.

use rand::{
    Rng,
    seq::{IndexedRandom, SliceRandom},
};

use super::{
    Category, Quota, Row, Subject, fill,
    lexicon::{ANTONYMS, CLASSIFIERS, DOMAINS},
};

/// The wordings of one category; `{q}` is the word asked about, `{a}` the answer.
struct Wordings {
    category: Category,
    statements: &'static [&'static str],
    questions: &'static [&'static str],
}

const ANTONYM: Wordings = Wordings {
    category: Category::Antonyms,
    statements: &[
        "“{q}”的反义词是“{a}”。",
        "“{q}”和“{a}”意思相反。",
        "与“{q}”意思相反的词是“{a}”。",
        "问：“{q}”的反义词是哪个词？答：{a}。",
        "问：跟“{q}”相反的词是什么？答：{a}。",
    ],
    questions: &[
        "“{q}”的反义词是什么？",
        "请写出“{q}”的反义词。",
        "和“{q}”意思相反的词是什么？",
        "什么词与“{q}”相反？",
        "找一个与“{q}”意思相反的词。",
        "“{q}”的反面怎么说？",
    ],
};

const CLASSIFIER: Wordings = Wordings {
    category: Category::Classifiers,
    statements: &[
        "我们说一{a}{q}。",
        "{q}的量词是“{a}”，例如一{a}{q}。",
        "数{q}用“{a}”：一{a}{q}，两{a}{q}，三{a}{q}。",
        "问：{q}用哪个量词来数？答：{a}。",
        "问：“几＿{q}”，空格里是哪个字？答：{a}。",
    ],
    questions: &[
        "“一＿{q}”，横线上填什么量词？",
        "“{q}”的常用量词是什么？",
        "数“{q}”的时候用哪个量词？",
        "请给“{q}”配一个量词。",
        "“{q}”前面应该用什么量词？",
        "请填空：这里有三＿{q}。",
    ],
};

/// How a sentence praises or blames; `{o}` is the object, `{w}` the word.
const OPINIONS: &[&str] = &[
    "{o}很{w}。",
    "{o}非常{w}。",
    "{o}真{w}。",
    "我觉得{o}特别{w}。",
    "大家都说{o}十分{w}。",
    "{o}太{w}了。",
];
/// How it takes a praise back.
const NEGATIONS: &[&str] = &["{o}一点儿也不{w}。", "我觉得{o}不{w}。"];

const SENTIMENT: Wordings = Wordings {
    category: Category::Sentiment,
    statements: &[
        "“{q}”这句话是{a}的。",
        "有人说：“{q}”这是{a}的评价。",
        "问：“{q}”是哪种评价？答：{a}。",
        "问：这句话表达什么情感？“{q}”答：{a}。",
    ],
    questions: &[
        "判断这句话的情感是正面还是负面：{q}",
        "下面的评价是正面的还是负面的？{q}",
        "“{q}”这句话的情感是什么？",
        "请给这条评论分类（正面或负面）：{q}",
    ],
};

/// Both words of every pair are asked about.
pub(super) fn antonyms(quota: Quota, rng: &mut impl Rng) -> Subject {
    let facts = ANTONYMS
        .iter()
        .flat_map(|&(a, b)| [(a, b), (b, a)])
        .collect();
    withholding_forms(&ANTONYM, facts, quota, rng)
}

pub(super) fn classifiers(quota: Quota, rng: &mut impl Rng) -> Subject {
    let facts = CLASSIFIERS
        .iter()
        .flat_map(|&(classifier, nouns)| nouns.iter().map(move |&noun| (noun, classifier)))
        .collect();
    withholding_forms(&CLASSIFIER, facts, quota, rng)
}

fn withholding_forms(
    wordings: &Wordings,
    mut facts: Vec<(&str, &str)>,
    quota: Quota,
    rng: &mut impl Rng,
) -> Subject {
    let mut subject = Subject::new(quota);
    facts.shuffle(rng);
    for (index, &(word, answer)) in facts.iter().enumerate() {
        subject.sentences.extend(wordings.statements(word, answer));
        // Taking turns, every form is withheld from some words and seen with the others.
        let withheld = index % wordings.questions.len();
        for (form, row) in wordings.questions(word, answer).enumerate() {
            if form != withheld {
                subject.questions.push(row);
            } else if subject.held_out.len() < quota.held_out {
                subject.held_out.push(row);
            }
        }
    }
    subject
}

pub(super) fn sentiment(quota: Quota, rng: &mut impl Rng) -> Subject {
    let mut combinations: Vec<_> = DOMAINS
        .iter()
        .flat_map(|domain| {
            let praise = domain.praise.iter().map(|&word| (word, true));
            let words: Vec<_> = praise
                .chain(domain.blame.iter().map(|&word| (word, false)))
                .collect();
            domain
                .objects
                .iter()
                .flat_map(move |&object| words.clone().into_iter().map(move |w| (object, w)))
        })
        .collect();
    combinations.shuffle(rng);

    let mut subject = Subject::new(quota);
    for (index, &(object, (word, good))) in combinations.iter().enumerate() {
        let mut sentences = opinions(OPINIONS, object, word, good);
        if good {
            sentences.extend(opinions(NEGATIONS, object, word, false));
        }
        if index < quota.held_out {
            let asked = sentences
                .choose(rng)
                .map(|(text, answer)| SENTIMENT.questions(text, answer).collect::<Vec<_>>());
            subject
                .held_out
                .extend(asked.and_then(|rows| rows.choose(rng).cloned()));
            continue;
        }
        for (text, answer) in sentences {
            subject
                .sentences
                .extend(SENTIMENT.statements(&text, answer));
            subject.questions.extend(SENTIMENT.questions(&text, answer));
        }
    }
    subject
}

fn opinions(
    wordings: &[&str],
    object: &str,
    word: &str,
    good: bool,
) -> Vec<(String, &'static str)> {
    let label = if good { "正面" } else { "负面" };
    wordings
        .iter()
        .map(|wording| (fill(wording, &[("{o}", object), ("{w}", word)]), label))
        .collect()
}

impl Wordings {
    fn statements(&self, question: &str, answer: &str) -> impl Iterator<Item = String> {
        self.statements
            .iter()
            .map(move |wording| fill(wording, &[("{q}", question), ("{a}", answer)]))
    }

    fn questions(&self, question: &str, answer: &str) -> impl Iterator<Item = Row> {
        let category = self.category;
        self.questions
            .iter()
            .map(move |form| Row::new(category, fill(form, &[("{q}", question)]), answer.into()))
    }
}

/// The words that a category asks about.
#[cfg(test)]
pub(super) fn words(category: Category) -> Vec<&'static str> {
    match category {
        Category::Antonyms => ANTONYMS.iter().flat_map(|&(a, b)| [a, b]).collect(),
        _ => CLASSIFIERS
            .iter()
            .flat_map(|&(_, nouns)| nouns.iter().copied())
            .collect(),
    }
}
