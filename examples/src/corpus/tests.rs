//! What the whole corpus must keep: true sentences, and nothing held out told beforehand.
//!
//! Numbers and dates are read back out of the finished text by a reader of its own, so that a
//! slip in the writer cannot hide itself.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::*;

fn corpus(seed: u64) -> Corpus {
    Corpus::new(
        seed,
        CorpusOptions {
            sentences: 60_000,
            ..CorpusOptions::default()
        },
    )
}

/// All that training reads: the text, and each instruction with its answer.
fn training(corpus: &Corpus) -> Vec<String> {
    let rows = corpus.instructions().iter().map(told);
    corpus
        .pretrain_text()
        .collect::<HashSet<_>>()
        .into_iter()
        .chain(rows)
        .collect()
}

fn told(row: &Row) -> String {
    format!("{}{}", row.instruction, row.output)
}

fn of(rows: &[Row], category: Category) -> impl Iterator<Item = &Row> {
    rows.iter().filter(move |row| row.category == category)
}

/// What a reader finds in a text, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Token {
    Number(u32),
    /// Month and day.
    Date(u32, u32),
    /// From 0 for Monday.
    Weekday(u32),
    /// Days after.
    Offset(i32),
}

/// Reads numbers below a hundred, dates, weekdays and offsets, the longest match first.
fn read(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    'text: while let Some(first) = rest.chars().next() {
        for (word, days) in [
            ("大前天", -3),
            ("前天", -2),
            ("昨天", -1),
            ("明天", 1),
            ("后天", 2),
            ("大后天", 3),
        ] {
            if let Some(after) = rest.strip_prefix(word) {
                tokens.push(Token::Offset(days));
                rest = after;
                continue 'text;
            }
        }
        if let Some(after) = rest.strip_prefix("星期") {
            let day = after.chars().next();
            if let Some(index) = day.and_then(|day| "一二三四五六日".chars().position(|d| d == day))
            {
                tokens.push(Token::Weekday(index as u32));
            }
            rest = after;
            rest = rest.strip_prefix(|_: char| true).unwrap_or(rest);
            continue;
        }
        // 十分 is "very", 一点儿 "a bit", 算一算 "work out", 哪一天 "which day".
        if let Some(after) = ["十分", "一点儿", "算一算", "哪一天"]
            .iter()
            .find_map(|word| rest.strip_prefix(word))
        {
            rest = after;
            continue;
        }
        let Some((number, after)) = number(rest) else {
            rest = &rest[first.len_utf8()..];
            continue;
        };
        rest = after;
        if let Some(after) = rest.strip_prefix('月')
            && let Some((day, after)) = self::number(after)
            && let Some(after) = after.strip_prefix('日')
        {
            tokens.push(Token::Date(number, day));
            rest = after;
        } else if let Some(after) = rest.strip_prefix("天前") {
            tokens.push(Token::Offset(-(number as i32)));
            rest = after;
        } else if let Some(after) = rest.strip_prefix("天后") {
            tokens.push(Token::Offset(number as i32));
            rest = after;
        } else {
            tokens.push(Token::Number(number));
        }
    }
    tokens
}

fn number(text: &str) -> Option<(u32, &str)> {
    let digit = |c: char| match c {
        '两' => Some(2),
        _ => "零一二三四五六七八九"
            .chars()
            .position(|d| d == c)
            .map(|d| d as u32),
    };
    let mut chars = text.chars().peekable();
    let tens = chars.next_if(|&c| c != '零').and_then(|c| {
        if c == '十' {
            Some(None)
        } else {
            digit(c).map(Some)
        }
    });
    let (value, used) = match tens {
        // 十, 十二
        Some(None) => match chars.peek().copied().and_then(digit) {
            Some(ones) => (10 + ones, 2),
            None => (10, 1),
        },
        Some(Some(tens)) if chars.next_if_eq(&'十').is_some() => {
            match chars.peek().copied().and_then(digit) {
                Some(ones) => (10 * tens + ones, 3),
                None => (10 * tens, 2),
            }
        }
        Some(Some(ones)) => (ones, 1),
        None if text.starts_with('零') => (0, 1),
        None => return None,
    };
    let end = text
        .char_indices()
        .nth(used)
        .map_or(text.len(), |(at, _)| at);
    Some((value, &text[end..]))
}

fn numbers(text: &str) -> Vec<u32> {
    read(text)
        .into_iter()
        .filter_map(|t| {
            if let Token::Number(n) = t {
                Some(n)
            } else {
                None
            }
        })
        .collect()
}

/// The steps of the calendar that a text takes: day, offset and answer.
fn steps(text: &str) -> Vec<(Token, i32, Token)> {
    let tokens = read(text);
    let is_day = |token: &Token| matches!(token, Token::Date(..) | Token::Weekday(_));
    let (days, others): (Vec<Token>, Vec<Token>) = tokens.iter().partition(|&token| is_day(token));
    let offset = match others[..] {
        [Token::Offset(offset)] => offset,
        [Token::Number(days)] if text.contains("每次往后") => days as i32,
        [Token::Number(days)] if text.contains("每次往前") => -(days as i32),
        _ => return Vec::new(),
    };
    days.windows(2)
        .map(|pair| (pair[0], offset, pair[1]))
        .collect()
}

/// Days since 1970-03-01 of a proleptic Gregorian date, after Hinnant's `days_from_civil`.
fn day_number(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * i64::from((month + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year
}

/// Whether `to` is `offset` days from `from` in the years around every kind of February.
fn is_step(from: Token, offset: i32, to: Token) -> bool {
    match (from, to) {
        (Token::Weekday(from), Token::Weekday(to)) => (from as i32 + offset - to as i32) % 7 == 0,
        (Token::Date(month, day), Token::Date(to_month, to_day)) => (2023..=2025).all(|year| {
            let start = day_number(year, month, day);
            (year - 1..=year + 1)
                .any(|to_year| day_number(to_year, to_month, to_day) - start == i64::from(offset))
        }),
        _ => false,
    }
}

#[test]
fn the_calendar_of_the_tests_is_right() {
    assert_eq!(day_number(2024, 3, 1) - day_number(2024, 2, 28), 2);
    assert_eq!(day_number(2023, 3, 1) - day_number(2023, 2, 28), 1);
    assert_eq!(day_number(2100, 3, 1) - day_number(2100, 2, 28), 1);
    assert_eq!(day_number(2024, 1, 1) - day_number(2023, 1, 1), 365);
    assert_eq!(day_number(2025, 1, 1) - day_number(2024, 1, 1), 366);
}

#[test]
fn every_sum_and_difference_is_right() {
    let corpus = corpus(1);
    let mut checked = 0;
    for text in training(&corpus)
        .into_iter()
        .chain(corpus.held_out().iter().map(told))
    {
        let holds: fn(u32, u32, u32) -> bool = if ["加", "和是", "的和", "买"]
            .iter()
            .any(|w| text.contains(w))
        {
            |a, b, c| a + b == c
        } else if ["减", "的差", "吃了"].iter().any(|w| text.contains(w)) {
            |a, b, c| a == b + c
        } else {
            continue;
        };
        let [a, b, ref results @ ..] = numbers(&text)[..] else {
            continue;
        };
        let mut before = a;
        for &result in results {
            assert!(holds(before, b, result), "{text}");
            before = result;
            checked += 1;
        }
    }
    assert!(checked > 5000, "{checked}");
}

#[test]
fn every_date_is_right_in_common_and_leap_years() {
    let corpus = corpus(2);
    let mut checked = 0;
    let mut month_ends = 0;
    for text in training(&corpus)
        .into_iter()
        .chain(corpus.held_out().iter().map(told))
    {
        let steps = steps(&text);
        let about_days = text.contains('月') || text.contains("星期") && !text.contains("七天");
        assert_eq!(about_days, !steps.is_empty(), "unread: {text}");
        for (day, offset, answer) in steps {
            assert!(is_step(day, offset, answer), "{text}");
            checked += 1;
            if let (Token::Date(a, _), Token::Date(b, _)) = (day, answer) {
                month_ends += usize::from(a != b);
            }
        }
    }
    assert!(
        checked > 5000 && month_ends > 200,
        "{checked}, {month_ends} across a month's end"
    );
}

#[test]
fn held_out_numbers_never_stand_together_in_training() {
    for seed in 0..3 {
        let corpus = corpus(seed);
        let pair = |a: u32, b: u32| (a.min(b), a.max(b));
        let withheld: HashSet<_> = of(corpus.held_out(), Category::Arithmetic)
            .map(|row| match numbers(&row.instruction)[..] {
                [a, b] => pair(a, b),
                _ => panic!("unread: {}", row.instruction),
            })
            .collect();
        assert_eq!(withheld.len(), 60);
        for text in training(&corpus) {
            let found = numbers(&text);
            for (i, &a) in found.iter().enumerate() {
                for &b in &found[i + 1..] {
                    assert!(!withheld.contains(&pair(a, b)), "{text}");
                }
            }
        }
    }
}

#[test]
fn held_out_steps_of_the_calendar_are_never_taken_in_training() {
    for seed in 0..3 {
        let corpus = corpus(seed);
        let withheld: Vec<_> = of(corpus.held_out(), Category::Dates)
            .flat_map(|row| steps(&told(row)))
            .collect();
        let operands: HashSet<_> = withheld
            .iter()
            .map(|&(day, offset, _)| (day, offset))
            .collect();
        let dates: HashSet<_> = withheld
            .iter()
            .filter(|(day, ..)| matches!(day, Token::Date(..)))
            .flat_map(|&(day, _, answer)| [(day, answer), (answer, day)])
            .collect();
        assert_eq!((operands.len(), dates.len()), (60, 120));
        for text in training(&corpus) {
            for (day, offset, _) in steps(&text) {
                assert!(!operands.contains(&(day, offset)), "{text}");
            }
            let days: Vec<_> = read(&text)
                .into_iter()
                .filter(|t| matches!(t, Token::Date(..)))
                .collect();
            for (i, &a) in days.iter().enumerate() {
                assert!(
                    days[..i].iter().all(|&b| !dates.contains(&(a, b))),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn held_out_forms_are_asked_of_other_words_only() {
    for seed in 0..3 {
        let corpus = corpus(seed);
        let training = training(&corpus).concat();
        for row in corpus.held_out() {
            // 二十一减九 asks no 十一减九.
            let asked = training.match_indices(&row.instruction).any(|(at, _)| {
                let before = training[..at].chars().next_back();
                !before.is_some_and(|c| "一二三四五六七八九十".contains(c))
            });
            assert!(!asked, "{}", row.instruction);
        }
        for category in [Category::Antonyms, Category::Classifiers] {
            // The form is what is left when the word is blanked out.
            let words = lexical::words(category);
            let form = |row: &Row| {
                let word = words
                    .iter()
                    .filter(|w| row.instruction.contains(**w))
                    .max_by_key(|w| w.len())
                    .unwrap();
                row.instruction.replacen(word, "□", 1)
            };
            let mut seen: HashMap<String, usize> = HashMap::new();
            of(corpus.instructions(), category)
                .for_each(|row| *seen.entry(form(row)).or_default() += 1);
            for row in of(corpus.held_out(), category) {
                assert!(
                    seen.get(&form(row)).is_some_and(|&n| n > 20),
                    "{}",
                    row.instruction
                );
            }
        }
    }
}

#[test]
fn held_out_objects_and_words_never_meet_in_training() {
    for seed in 0..3 {
        let corpus = corpus(seed);
        let texts = training(&corpus);
        for row in of(corpus.held_out(), Category::Sentiment) {
            let (object, word, _) = opinion(&row.instruction);
            let leak = texts
                .iter()
                .find(|text| text.contains(object) && text.contains(word));
            assert_eq!(leak, None, "{}", row.instruction);
        }
    }
}

/// The object, the word and whether the sentence is kind, 不 considered.
fn opinion(text: &str) -> (&'static str, &'static str, bool) {
    let domain = lexicon::DOMAINS
        .iter()
        .find(|d| d.objects.iter().any(|o| text.contains(o)))
        .unwrap();
    let object = domain
        .objects
        .iter()
        .filter(|o| text.contains(**o))
        .max_by_key(|o| o.len())
        .unwrap();
    let find = |words: &'static [&'static str]| words.iter().find(|w| text.contains(**w));
    let negated = text.contains('不');
    match (find(domain.praise), find(domain.blame)) {
        (Some(word), None) => (object, word, !negated),
        (None, Some(word)) if !negated => (object, word, false),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn every_sentiment_follows_from_its_word_and_its_negation() {
    let corpus = corpus(4);
    let mut kind = 0;
    let rows: Vec<_> = corpus
        .instructions()
        .iter()
        .chain(corpus.held_out())
        .collect();
    let sentiment: Vec<_> = rows
        .iter()
        .filter(|row| row.category == Category::Sentiment)
        .collect();
    for row in &sentiment {
        let (_, _, good) = opinion(&row.instruction);
        assert_eq!(
            row.output,
            if good { "正面" } else { "负面" },
            "{}",
            row.instruction
        );
        kind += usize::from(good);
    }
    assert!(
        (sentiment.len() * 3 / 10..sentiment.len() * 7 / 10).contains(&kind),
        "{kind} kind"
    );
    for text in corpus
        .pretrain_text()
        .filter(|text| ["正面", "负面"].iter().any(|label| text.contains(label)))
    {
        assert_eq!(text.contains("正面"), opinion(&text).2, "{text}");
    }
}

#[test]
fn the_tables_leave_one_answer_to_each_question() {
    let distinct = |words: &[&str]| {
        assert_eq!(
            words.iter().collect::<BTreeSet<_>>().len(),
            words.len(),
            "{words:?}"
        )
    };
    let antonyms = lexical::words(Category::Antonyms);
    let nouns = lexical::words(Category::Classifiers);
    distinct(&antonyms);
    distinct(&nouns);
    assert!(antonyms.len() >= 120 && nouns.len() >= 60);

    let (mut praise, mut blame, mut objects) =
        (BTreeSet::new(), BTreeSet::new(), Vec::<&str>::new());
    for domain in lexicon::DOMAINS {
        objects.extend(domain.objects);
        praise.extend(domain.praise);
        blame.extend(domain.blame);
    }
    distinct(&objects);
    assert!(praise.is_disjoint(&blame));
    assert!(praise.len() + blame.len() + objects.len() >= 100);
    let words: Vec<&str> = praise.union(&blame).copied().collect();
    for a in &words {
        assert!(
            words.iter().all(|b| a == b || !a.contains(b)) && !a.contains('不'),
            "{a}"
        );
    }
}

#[test]
fn the_seed_decides_everything() {
    let (one, same, other) = (corpus(5), corpus(5), corpus(6));
    assert!(one.pretrain_text().eq(same.pretrain_text()));
    assert_eq!(
        (one.instructions(), one.held_out()),
        (same.instructions(), same.held_out())
    );
    assert!(one.pretrain_text().ne(other.pretrain_text()));
    assert_ne!(one.instructions(), other.instructions());
    assert_ne!(one.held_out(), other.held_out());
}

#[test]
fn there_is_enough_of_everything() {
    let corpus = corpus(8);
    assert_eq!(corpus.pretrain_text().count(), 60_000);
    assert!(corpus.pretrain_text().collect::<HashSet<_>>().len() > 15_000);
    for category in Category::ALL {
        let counts =
            [corpus.instructions(), corpus.held_out()].map(|rows| of(rows, category).count());
        let rows = match category {
            Category::Arithmetic | Category::Dates => 1600,
            _ => 400,
        };
        assert_eq!(counts, [rows, 60], "{category:?}");
    }
    let rows: Vec<_> = corpus
        .instructions()
        .iter()
        .chain(corpus.held_out())
        .collect();
    assert_eq!(
        rows.iter()
            .map(|row| &row.instruction)
            .collect::<HashSet<_>>()
            .len(),
        rows.len()
    );
    for row in rows {
        assert!((1..=8).contains(&row.output.chars().count()), "{row:?}");
        assert!(!row.instruction.contains('{'), "{row:?}");
    }
    for text in corpus.pretrain_text() {
        assert!(text.ends_with('。') && !text.contains('{'), "{text}");
    }
}

#[test]
fn what_is_written_reads_back() {
    let folder = std::env::temp_dir().join(format!("ferrotune-corpus-{}", std::process::id()));
    let corpus = Corpus::new(
        9,
        CorpusOptions {
            sentences: 50,
            ..CorpusOptions::default()
        },
    );
    corpus.write_to(&folder).unwrap();
    let lines = |name: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let texts: Vec<_> = lines("pretrain.jsonl")
        .iter()
        .map(|row| row["text"].as_str().unwrap().to_owned())
        .collect();
    assert!(corpus.pretrain_text().eq(texts));
    for (name, rows) in [
        ("train.jsonl", corpus.instructions()),
        ("eval.jsonl", corpus.held_out()),
    ] {
        let read = lines(name);
        assert_eq!(read.len(), rows.len());
        for (json, row) in read.iter().zip(rows) {
            assert_eq!(json["instruction"], row.instruction);
            assert_eq!(
                (&json["input"], &json["output"]),
                (&"".into(), &row.output.clone().into())
            );
            assert_eq!(
                json["category"],
                format!("{:?}", row.category).to_lowercase()
            );
        }
    }

    let blocked = folder.join("eval.jsonl");
    let error = corpus.write_to(&blocked).unwrap_err();
    assert!(error.to_string().contains("eval.jsonl"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}
