//! Against what transformers and tokenizers made of the same files (`fixtures/make.py`).
#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, sync::Arc};

use ferrotune_text::{ChatTemplate, Message, StreamDecoder, Tokenizer};
use serde_json::Value;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn golden() -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixtures().join("golden.json")).unwrap()).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::from_dir(fixtures().join(name)).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

const NAMES: [&str; 3] = ["byte_level", "sentencepiece", "metaspace"];

#[test]
fn encodes_and_decodes_as_transformers() {
    let golden = golden();
    for name in NAMES {
        let tokenizer = tokenizer(name);
        let cases = golden["tokenizers"][name]["encodings"].as_array().unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(
                tokenizer.encode(text, false).unwrap(),
                ids(&case["ids"]),
                "{name}: {text:?}"
            );
            let special = tokenizer.encode(text, true).unwrap();
            assert_eq!(special, ids(&case["ids_special"]), "{name}: {text:?}");
            assert_eq!(
                tokenizer.encode_with_offsets(text, true).unwrap().ids,
                special
            );
            assert_eq!(
                tokenizer.decode(&special, false).unwrap(),
                case["decoded"],
                "{name}"
            );
            assert_eq!(
                tokenizer.decode(&special, true).unwrap(),
                case["decoded_skip"],
                "{name}"
            );
        }
        let texts: Vec<&str> = cases
            .iter()
            .map(|case| case["text"].as_str().unwrap())
            .collect();
        let batch = tokenizer.encode_batch(&texts, true).unwrap();
        assert!(
            batch
                .iter()
                .zip(cases)
                .all(|(batch, case)| *batch == ids(&case["ids_special"]))
        );
    }
}

#[test]
fn special_tokens_are_read_as_strings_and_as_objects() {
    let llama = tokenizer("sentencepiece");
    assert_eq!(
        [llama.bos(), llama.eos(), llama.pad(), llama.unk()],
        [Some(1), Some(2), None, Some(0)]
    );
    let chatml = tokenizer("byte_level");
    assert_eq!(
        [chatml.bos(), chatml.eos(), chatml.pad(), chatml.unk()],
        [Some(0), Some(2), Some(0), None]
    );
    assert_eq!(chatml.vocab_size(), 401);
    assert_eq!(chatml.token_to_id("<think>"), Some(400));
}

#[test]
fn streams_what_transformers_decodes() {
    let golden = golden();
    for name in NAMES {
        let tokenizer = Arc::new(tokenizer(name));
        let cases = &golden["tokenizers"][name];
        let encoded = cases["encodings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|case| (ids(&case["ids_special"]), case));
        let random = cases["streams"]
            .as_array()
            .unwrap()
            .iter()
            .map(|case| (ids(&case["ids"]), case));
        for (ids, case) in encoded.chain(random) {
            for (skip, key) in [(false, "decoded"), (true, "decoded_skip")] {
                let mut stream = StreamDecoder::new(tokenizer.clone(), skip);
                let mut text = String::new();
                for &id in &ids {
                    text.extend(stream.push(id).unwrap());
                }
                text.push_str(&stream.finish().unwrap());
                assert_eq!(text, case[key], "{name} {key} {ids:?}");
            }
        }
    }
}

fn conversations(golden: &Value) -> Vec<Vec<Message>> {
    serde_json::from_value(golden["conversations"].clone()).unwrap()
}

#[test]
fn renders_as_transformers() {
    let golden = golden();
    let conversations = conversations(&golden);
    let cases = golden["renderings"].as_array().unwrap();
    let refusals = cases.iter().filter(|case| case["text"].is_null()).count();
    assert!(refusals > 0 && refusals < 10 && cases.len() == 84);
    let mut llama = tokenizer("sentencepiece");
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(golden["templates"][name].as_str().unwrap()).unwrap();
        llama.set_chat_template(template.with_variable("tools", &case["tools"]));
        let messages = &conversations[case["conversation"].as_u64().unwrap() as usize];
        let rendered = llama
            .chat_template()
            .unwrap()
            .render(messages, case["prompt"].as_bool().unwrap());
        match case["refused"].as_str() {
            None => assert_eq!(
                rendered.unwrap(),
                case["text"].as_str().unwrap(),
                "{name} {messages:?}"
            ),
            Some(reason) => assert!(
                rendered.unwrap_err().to_string().contains(reason),
                "{name}: {reason}"
            ),
        }
    }
}

#[test]
fn marked_answers_are_transformers_assistant_tokens() {
    let golden = golden();
    let conversations = conversations(&golden);
    let tokenizer = tokenizer("byte_level");
    let template = tokenizer.chat_template().unwrap();
    assert!(template.marks_answers());
    // Without its tags the same template has to lead to the same answers, by prefixes.
    let untagged = template
        .source()
        .replace("endgeneration", "endif")
        .replace("- generation", "- if true");
    let untagged = ChatTemplate::new(&untagged).unwrap();
    let cases = golden["masks"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let messages = &conversations[case["conversation"].as_u64().unwrap() as usize];
        let (text, spans) = template.answer_spans(messages).unwrap();
        assert_eq!(
            untagged.answer_spans(messages).unwrap(),
            (text.clone(), spans.clone())
        );
        let encoded = tokenizer.encode_with_offsets(&text, false).unwrap();
        assert_eq!(encoded.ids, ids(&case["ids"]));
        let mask: Vec<u32> = encoded
            .ranges
            .iter()
            .map(|range| {
                spans
                    .iter()
                    .any(|span| range.start < span.end && span.start < range.end)
                    .into()
            })
            .collect();
        assert_eq!(mask, ids(&case["mask"]), "{messages:?}");
    }
}
