//! Tokens and weights, against transformers' own (`../../text/tests/fixtures`).
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use ferrotune_data::{
    Dataset, Error, Example, Fields, OnBadLine, Stream, TokenizeOptions, tokenize,
};
use ferrotune_text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../text/tests/fixtures")
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_dir(fixtures().join("byte_level")).unwrap()
}

fn stream(rows: &[Value], on_bad: OnBadLine) -> Stream {
    let rows: Vec<Fields> = rows
        .iter()
        .map(|row| row.as_object().unwrap().clone())
        .collect();
    Stream::rows("rows", rows, on_bad)
}

fn options(max_length: usize) -> TokenizeOptions {
    TokenizeOptions {
        max_length,
        ..TokenizeOptions::default()
    }
}

#[test]
fn weights_are_transformers_assistant_mask() {
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(fixtures().join("golden.json")).unwrap())
            .unwrap();
    let cases = golden["masks"].as_array().unwrap();
    let rows: Vec<Value> =
        cases.iter().map(|case| json!({"messages": golden["conversations"][case["conversation"].as_u64().unwrap() as usize]})).collect();
    // As many as it takes to be spread over threads.
    let rows: Vec<Value> = rows.iter().cycle().take(2500).cloned().collect();
    let dataset = tokenize(stream(&rows, OnBadLine::Fail), &tokenizer(), &options(2048)).unwrap();
    assert_eq!(dataset.len(), 2500);
    for (example, case) in dataset.examples().iter().zip(cases.iter().cycle()) {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        let mask: Vec<f32> = serde_json::from_value(case["mask"].clone()).unwrap();
        assert_eq!((&example.ids, &example.weights), (&ids, &mask));
    }
}

#[test]
fn exactly_these_tokens_count() {
    let mut tokenizer = tokenizer();
    tokenizer.set_chat_template(ChatTemplate::builtin("chatml").unwrap());
    let rows = [json!({"instruction": "三加四", "output": "七。"})];
    let dataset = tokenize(stream(&rows, OnBadLine::Fail), &tokenizer, &options(64)).unwrap();
    let example = &dataset.examples()[0];
    let counted: Vec<u32> = example
        .ids
        .iter()
        .zip(&example.weights)
        .filter(|(_, weight)| **weight == 1.0)
        .map(|(id, _)| *id)
        .collect();
    // The last line feed belongs to the template and not to the answer.
    assert_eq!(tokenizer.decode(&counted, false).unwrap(), "七。<|im_end|>");
    assert_eq!(example.weight(), counted.len() as f64);
    assert_eq!(
        tokenizer.decode(&example.ids, false).unwrap(),
        "<|im_start|>user\n三加四<|im_end|>\n<|im_start|>assistant\n七。<|im_end|>\n"
    );
    assert_eq!((dataset.truncated(), dataset.skipped().count), (0, 0));
}

/// Every token of a conversation as text, with whether it counts.
fn spelled(tokenizer: &Tokenizer, row: Value) -> Vec<(String, bool)> {
    let dataset = tokenize(stream(&[row], OnBadLine::Fail), tokenizer, &options(256)).unwrap();
    let example = &dataset.examples()[0];
    let token = |id: &u32| tokenizer.decode(&[*id], false).unwrap();
    example
        .ids
        .iter()
        .zip(&example.weights)
        .map(|(id, weight)| (token(id), *weight == 1.0))
        .collect()
}

/// Runs of tokens that count alike, as text.
fn runs(tokens: &[(String, bool)]) -> Vec<(String, bool)> {
    let mut runs: Vec<(String, bool)> = Vec::new();
    for (text, counts) in tokens {
        match runs.last_mut() {
            Some(run) if run.1 == *counts => run.0.push_str(text),
            _ => runs.push((text.clone(), *counts)),
        }
    }
    runs
}

/// ASCII, so that each token alone is whole text.
#[test]
fn every_answer_of_a_conversation_counts_and_nothing_else() {
    let row = json!({"system": "be brief", "conversations": [
        {"from": "human", "value": "one"}, {"from": "gpt", "value": "two"},
        {"from": "human", "value": "two"}, {"from": "gpt", "value": "three four"},
    ]});
    let expect: Vec<(String, bool)> = [
        ("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n", false),
        ("two<|im_end|>", true),
        ("\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n", false),
        ("three four<|im_end|>", true),
        ("\n", false),
    ]
    .map(|(text, counts)| (text.to_owned(), counts))
    .into();
    // The fixture's own template marks its answers; the built-in one leaves them to be found.
    let mut tokenizer = tokenizer();
    assert!(tokenizer.chat_template().unwrap().marks_answers());
    let marked = spelled(&tokenizer, row.clone());
    assert_eq!(runs(&marked), expect);
    tokenizer.set_chat_template(ChatTemplate::builtin("chatml").unwrap());
    assert!(!tokenizer.chat_template().unwrap().marks_answers());
    assert_eq!(spelled(&tokenizer, row), marked);

    // A template may mark what it likes: here the thought counts too, the end of the turn does not.
    let own = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
               {% endgeneration %}{% else %}{{ m.content }}{% endif %}|{% endfor %}";
    tokenizer.set_chat_template(ChatTemplate::new(own).unwrap());
    let row = json!({"messages": [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "<think>x</think>two"},
        {"role": "user", "content": "four"}, {"role": "assistant", "content": "five"},
    ]});
    let counted: Vec<String> = runs(&spelled(&tokenizer, row))
        .into_iter()
        .filter_map(|(text, counts)| counts.then_some(text))
        .collect();
    assert_eq!(counted, ["<think>x</think>two", "five"]);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let tokenizer = tokenizer();
    let rows: Vec<Value> = (0..3000)
        .map(|n| match n % 7 {
            0 => json!({"instruction": "没有答案"}),
            1 => json!({"text": format!("第{n}句。").repeat(n % 5 + 1)}),
            _ => json!({"instruction": format!("{n}加一"), "output": format!("{}。", n + 1)}),
        })
        .collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| tokenize(stream(&rows, OnBadLine::Skip), &tokenizer, &options(48)).unwrap())
    };
    let one = run(1);
    assert_eq!(one.skipped().count, 429);
    assert!(one.skipped().reasons[7].starts_with("rows:50: "));
    for threads in [2, 7] {
        let many = run(threads);
        assert_eq!(one.examples(), many.examples());
        assert_eq!(one.fingerprint(), many.fingerprint());
        assert_eq!(one.skipped(), many.skipped());
    }
    // In the order of the rows: each answer says its number.
    let numbers: Vec<usize> = one
        .examples()
        .iter()
        .filter_map(|example| {
            let text = tokenizer.decode(&example.ids, true).unwrap();
            text.split("user\n")
                .nth(1)?
                .split('加')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    assert!(numbers.len() > 2000 && numbers.is_sorted());
}

#[test]
fn long_conversations_keep_their_head_and_long_texts_all() {
    let tokenizer = tokenizer();
    let rows = [json!({"instruction": "三加四", "output": "七。七。七。"})];
    let whole = tokenize(stream(&rows, OnBadLine::Fail), &tokenizer, &options(64))
        .unwrap()
        .examples()[0]
        .clone();
    let cut = tokenize(
        stream(&rows, OnBadLine::Fail),
        &tokenizer,
        &options(whole.ids.len() - 4),
    )
    .unwrap();
    assert_eq!(cut.examples()[0].ids, whole.ids[..whole.ids.len() - 4]);
    assert_eq!(
        cut.examples()[0].weights,
        whole.weights[..whole.ids.len() - 4]
    );
    assert_eq!(cut.truncated(), 1);

    let text = "今天天气很好，我们去公园散步吧。hello";
    let mut ids = tokenizer.encode(text, true).unwrap();
    ids.push(tokenizer.eos().unwrap());
    let dataset = tokenize(
        stream(&[json!({"text": text})], OnBadLine::Fail),
        &tokenizer,
        &options(5),
    )
    .unwrap();
    let pieces: Vec<&[u32]> = dataset
        .examples()
        .iter()
        .map(|example| &example.ids[..])
        .collect();
    assert_eq!(
        pieces.concat(),
        ids[..ids.len() - usize::from(ids.len() % 5 == 1)]
    );
    assert!(
        pieces.len() > 2
            && dataset
                .examples()
                .iter()
                .all(|e| e.weights[0] == 0.0 && e.weights[1..].iter().all(|w| *w == 1.0))
    );
}

#[test]
fn rows_without_a_counted_token_are_bad_rows() {
    let tokenizer = tokenizer();
    let good = json!({"instruction": "问", "output": "答"});
    let long = json!({"instruction": "问".repeat(200), "output": "答"});
    let silent = json!({"messages": [{"role": "user", "content": "问"}]});
    for (bad, reason) in [(&long, "1 answers in"), (&silent, "0 answers in")] {
        let rows = [good.clone(), bad.clone(), good.clone()];
        let error = tokenize(stream(&rows, OnBadLine::Fail), &tokenizer, &options(100))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("rows:2: no token counts in the loss: ") && error.contains(reason),
            "{error}"
        );
        let dataset = tokenize(stream(&rows, OnBadLine::Skip), &tokenizer, &options(100)).unwrap();
        assert_eq!((dataset.len(), dataset.skipped().count), (2, 1));
        assert_eq!(dataset.skipped().reasons, [error]);
    }
    let error = tokenize(
        stream(&[silent], OnBadLine::Skip),
        &tokenizer,
        &options(100),
    )
    .unwrap_err();
    assert!(
        matches!(&error, Error::EmptyDataset { skipped: 1, first: Some(reason) } if reason.contains("rows:1"))
    );
    assert!(
        error.to_string().starts_with(
            "the dataset is empty: 1 rows were skipped, the first for rows:1: no token"
        )
    );
    let error = tokenize(stream(&[], OnBadLine::Fail), &tokenizer, &options(100)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the dataset is empty: 0 rows were skipped"
    );
}

#[test]
fn what_the_tokenizer_lacks_is_said() {
    let bare = Tokenizer::from_file(fixtures().join("byte_level/tokenizer.json")).unwrap();
    let fails = |row: Value, tokenizer: &Tokenizer, max_length| {
        tokenize(
            stream(&[row], OnBadLine::Fail),
            tokenizer,
            &options(max_length),
        )
        .unwrap_err()
        .to_string()
    };
    assert_eq!(
        fails(json!({"instruction": "a", "output": "b"}), &bare, 9),
        "rows:1: the row is a conversation and the tokenizer has no chat template"
    );
    assert_eq!(
        fails(json!({"text": "a"}), &bare, 9),
        "rows:1: the row is plain text and the tokenizer has no eos_token"
    );
    assert_eq!(
        fails(json!({"text": 1}), &tokenizer(), 9),
        "rows:1: text is a number, not a string"
    );
    assert_eq!(
        fails(json!({"text": ""}), &tokenizer(), 9),
        "rows:1: no token counts in the loss: 0 answers in 1 tokens, of which max_length keeps 1"
    );
    assert!(fails(json!({"text": "a"}), &tokenizer(), 1).starts_with("max_length = 1: "));
    let mut refusing = tokenizer();
    refusing.set_chat_template(ChatTemplate::new("{{ raise_exception('不行') }}").unwrap());
    assert!(fails(json!({"instruction": "a", "output": "b"}), &refusing, 9).contains("不行"));
}

#[test]
fn datasets_are_checked_and_told_apart() {
    let example = |ids: &[u32], weights: &[f32]| Example {
        ids: ids.to_vec(),
        weights: weights.to_vec(),
    };
    let print = |examples: Vec<Example>| Dataset::new(examples).unwrap().fingerprint().to_owned();
    let base = print(vec![
        example(&[1, 2], &[0.0, 1.0]),
        example(&[3, 4], &[0.0, 1.0]),
    ]);
    assert_eq!(base.len(), 64);
    assert_eq!(
        base,
        print(vec![
            example(&[1, 2], &[0.0, 1.0]),
            example(&[3, 4], &[0.0, 1.0])
        ])
    );
    for other in [
        vec![example(&[3, 4], &[0.0, 1.0]), example(&[1, 2], &[0.0, 1.0])],
        vec![example(&[1, 2, 3, 4], &[0.0, 1.0, 0.0, 1.0])],
        vec![example(&[1, 2], &[0.0, 1.0]), example(&[3, 4], &[0.0, 0.5])],
    ] {
        assert_ne!(base, print(other));
    }
    let good = example(&[1, 2], &[0.0, 1.0]);
    for (bad, reason) in [
        (example(&[1], &[0.0, 1.0]), "1 ids and 2 weights"),
        (example(&[1, 2], &[0.0, f32::NAN]), "a weight of NaN"),
        (example(&[1, 2], &[1.0, 0.0]), "no token counts in the loss"),
    ] {
        let error = Dataset::new(vec![good.clone(), bad]).unwrap_err();
        assert_eq!(error.to_string(), format!("example 1: {reason}"));
    }
    assert!(matches!(
        Dataset::new(vec![]),
        Err(Error::EmptyDataset { .. })
    ));
}
