//! Offsets, training, saving, and what a bad folder gets told.
#![allow(clippy::unwrap_used)]

use std::{error::Error as _, fs, path::PathBuf};

use ferrotune_text::{BpeOptions, ChatTemplate, Error, Message, Split, Tokenizer};
use proptest::prelude::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

const CORPUS: [&str; 4] = [
    "今天天气很好，今天天气不好。",
    "三加四等于七，三加五等于八。",
    "3+4=7, 13+14=27",
    "hello hello world",
];

fn trained(vocab_size: usize, split: Split) -> Tokenizer {
    Tokenizer::train_bpe(
        CORPUS,
        &BpeOptions {
            vocab_size,
            split,
            ..BpeOptions::default()
        },
    )
    .unwrap()
}

proptest! {
    #[test]
    fn a_trained_vocabulary_round_trips_every_string(text in "\\PC{0,40}", raw: String) {
        thread_local!(static TRAINED: Tokenizer = trained(320, Split::Numerals));
        TRAINED.with(|tokenizer| {
            for text in [text, raw] {
                let ids = tokenizer.encode(&text, true).unwrap();
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            }
        });
    }

    #[test]
    fn ranges_cover_the_text_in_order(text in "( {0,3}[你好a-c<>\\n，。😀]{0,5}){0,8}", which in 0usize..2) {
        let tokenizer = Tokenizer::from_dir(fixture(["byte_level", "sentencepiece"][which])).unwrap();
        let encoded = tokenizer.encode_with_offsets(&text, false).unwrap();
        let mut end = 0;
        for (index, range) in encoded.ranges.iter().enumerate() {
            prop_assert!(range.start <= end && range.end >= end, "{:?} in {text:?}", encoded);
            let piece = text.get(range.clone());
            // The space that sentencepiece puts before a text may be a token, of no text.
            let prepended = which == 1 && index == 0;
            prop_assert!(piece.is_some_and(|piece| prepended || !piece.is_empty()), "{:?} in {text:?}", encoded);
            end = range.end;
        }
        prop_assert_eq!(end, text.len());
    }
}

#[test]
fn added_tokens_have_empty_ranges_and_truncation_left_by_a_run_is_off() {
    let tokenizer = Tokenizer::from_dir(fixture("sentencepiece")).unwrap();
    let text = "今天天气很好，我们去公园散步吧。The quick brown fox";
    let encoded = tokenizer.encode_with_offsets(text, true).unwrap();
    assert_eq!(
        (encoded.ids[0], encoded.ranges[0].clone()),
        (tokenizer.bos().unwrap(), 0..0)
    );
    assert_eq!(encoded.ranges.last().unwrap().end, text.len());
    assert!(encoded.ids.len() > 8);
}

#[test]
fn numerals_stay_apart_and_other_words_merge() {
    let pieces = |tokenizer: &Tokenizer, text: &str| {
        tokenizer.encode_with_offsets(text, false).unwrap().ranges
    };
    let split = trained(400, Split::Numerals);
    assert!(pieces(&split, "今天天气很好").len() < 6);
    for range in pieces(&split, "三加四等于七，13+14=27") {
        let piece = &"三加四等于七，13+14=27"[range];
        let numerals = piece
            .chars()
            .filter(|c| "三四七0123456789".contains(*c))
            .count();
        assert!(numerals == 0 || piece.chars().count() == 1, "{piece:?}");
    }
    assert_eq!(
        pieces(&trained(400, Split::Nothing), "三加四等于七").len(),
        1
    );
    let characters = trained(2000, Split::Characters);
    for range in pieces(&characters, "今天天气很好，三加四等于七") {
        assert_eq!("今天天气很好，三加四等于七"[range].chars().count(), 1);
    }
}

#[test]
fn training_is_repeatable_and_says_what_it_cannot_do() {
    let text = |tokenizer: Tokenizer| tokenizer.inner().to_string(false).unwrap();
    assert_eq!(
        text(trained(330, Split::Numerals)),
        text(trained(330, Split::Numerals))
    );
    assert_eq!(trained(300, Split::Numerals).vocab_size(), 300);

    let small = Tokenizer::train_bpe(
        CORPUS,
        &BpeOptions {
            vocab_size: 100,
            ..BpeOptions::default()
        },
    );
    assert_eq!(
        small.unwrap_err().to_string(),
        "cannot train a vocabulary of 100 tokens: the bytes and the special tokens alone are 259"
    );
    let empty = Tokenizer::train_bpe(Vec::<String>::new(), &BpeOptions::default());
    assert!(empty.unwrap_err().to_string().ends_with("there is no text"));
}

#[test]
fn saving_and_reading_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut tokenizer = trained(330, Split::Numerals);
    tokenizer.set_chat_template(ChatTemplate::builtin("chatml").unwrap());
    tokenizer.save(&dir).unwrap();
    let again = Tokenizer::from_dir(&dir).unwrap();
    let text = "三加四等于七<|im_end|>\n  hello";
    assert_eq!(
        again.encode(text, true).unwrap(),
        tokenizer.encode(text, true).unwrap()
    );
    assert_eq!(
        [again.bos(), again.eos(), again.pad()],
        [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()]
    );
    assert_eq!(
        again.chat_template().unwrap().source(),
        tokenizer.chat_template().unwrap().source()
    );

    // Keys of a checkpoint that mean nothing here survive.
    Tokenizer::from_dir(fixture("byte_level"))
        .unwrap()
        .save(&dir)
        .unwrap();
    let processor = |path: PathBuf| {
        let file: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        file["post_processor"].clone()
    };
    assert_eq!(
        processor(dir.path().join("tokenizer.json")),
        processor(fixture("byte_level").join("tokenizer.json"))
    );
    let config: serde_json::Value = serde_json::from_str(
        &fs::read_to_string(dir.path().join("tokenizer_config.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(config["model_max_length"], 2048);

    let error = tokenizer.save(dir.path().join("missing")).unwrap_err();
    assert!(error.to_string().contains("missing") && error.source().is_some());
}

#[test]
fn a_template_is_found_in_every_place() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        fixture("byte_level").join("tokenizer.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    let render = |config: &str| {
        fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        tokenizer
            .chat_template()
            .map(|template| template.render(&[Message::user("x")], false).unwrap())
    };
    assert_eq!(render("{}"), None);
    let eos = r#""eos_token": {"content": "<|im_end|>", "special": true}"#;
    assert_eq!(
        render(&format!(
            r#"{{"chat_template": "s{{{{eos_token}}}}", {eos}}}"#
        ))
        .unwrap(),
        "s<|im_end|>"
    );
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    assert_eq!(render(list).unwrap(), "d");
    fs::write(dir.path().join("chat_template.jinja"), "file\n").unwrap();
    assert_eq!(render(list).unwrap(), "file");
    // The map fills in what the configuration lacks.
    fs::write(
        dir.path().join("special_tokens_map.json"),
        r#"{"pad_token": "<|endoftext|>"}"#,
    )
    .unwrap();
    assert_eq!(Tokenizer::from_dir(&dir).unwrap().pad(), Some(0));
}

#[test]
fn bad_folders_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let fails = || Tokenizer::from_dir(&dir).unwrap_err();

    let error = fails();
    assert!(
        matches!(&error, Error::Read { path, .. } if *path == at("tokenizer.json")),
        "{error}"
    );

    fs::write(at("tokenizer.json"), "{\"model\":").unwrap();
    let error = fails();
    assert!(
        matches!(&error, Error::Tokenizer { path, .. } if *path == at("tokenizer.json")),
        "{error}"
    );

    fs::copy(
        fixture("byte_level").join("tokenizer.json"),
        at("tokenizer.json"),
    )
    .unwrap();
    fs::write(at("tokenizer_config.json"), "[1]").unwrap();
    let error = fails();
    assert!(
        matches!(&error, Error::Json { path, .. } if *path == at("tokenizer_config.json")),
        "{error}"
    );

    fs::write(at("tokenizer_config.json"), r#"{"eos_token": "<nope>"}"#).unwrap();
    assert_eq!(
        fails().to_string(),
        "eos_token `<nope>` is not in the vocabulary"
    );

    fs::write(
        at("tokenizer_config.json"),
        r#"{"chat_template": "a\n{% if %}"}"#,
    )
    .unwrap();
    let error = fails().to_string();
    assert!(
        error.contains("syntax error") && error.contains("chat_template:2"),
        "{error}"
    );
}
