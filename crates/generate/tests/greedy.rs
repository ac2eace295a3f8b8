//! Decoding: token for token what transformers decodes, and how it ends.
#![allow(clippy::unwrap_used)]

mod common;

use common::nn::{VARIANTS, fixtures, load, write};
use common::{check_recorded_greedy, collect, recorded};
use ferrotune_generate::{Error, Options, Sampling, eos_of, text, tokens};
use ferrotune_nn::libtorch::tch::{Device, Kind};
use ferrotune_nn::module::params;
use ferrotune_nn::{Adapters, Decoder, Factory};
use ferrotune_text::{BpeOptions, Tokenizer};
use serde_json::json;

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for name in VARIANTS {
        check_recorded_greedy(&fixtures().join(name));
    }
}

#[test]
fn an_end_token_ends_and_is_not_returned() {
    let fixture = fixtures().join("llama");
    let (prompt, right) = recorded(&fixture);
    let model = load(fixture.join("model"), Kind::Float);
    let end = right[20];
    let until = right.iter().position(|token| *token == end).unwrap();
    assert!(until > 0);
    let options = Options {
        max_tokens: 64,
        eos: vec![7777, end],
        ..Options::default()
    };
    assert_eq!(collect(&model, &prompt, &options), right[..until]);
    // Who reads along may end it too; no number of tokens is too many to ask for.
    let mut seen = Vec::new();
    let options = Options {
        max_tokens: usize::MAX,
        ..Options::default()
    };
    tokens(&model, &prompt, &options, |token| {
        seen.push(token);
        Ok(seen.len() < 5)
    })
    .unwrap();
    assert_eq!(seen, right[..5]);
}

#[test]
fn end_tokens_come_from_the_checkpoint() {
    assert_eq!(eos_of(&fixtures().join("llama/model")).unwrap(), [2]);
    let dir = tempfile::tempdir().unwrap();
    assert!(eos_of(dir.path()).unwrap().is_empty());
    write(dir.path().join("config.json"), &json!({"eos_token_id": 5}));
    assert_eq!(eos_of(dir.path()).unwrap(), [5]);
    let generation = dir.path().join("generation_config.json");
    write(&generation, &json!({"eos_token_id": null}));
    assert_eq!(eos_of(dir.path()).unwrap(), [5]);
    write(&generation, &json!({"eos_token_id": [7, 9]}));
    assert_eq!(eos_of(dir.path()).unwrap(), [7, 9]);
    for bad in [json!(-1), json!("</s>"), json!([7, 4294967296_u64])] {
        write(&generation, &json!({"eos_token_id": bad}));
        let error = eos_of(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("generation_config.json: eos_token_id"),
            "{error}"
        );
    }
}

/// A small random model that speaks the tokens of a vocabulary trained here.
fn speaker() -> (Decoder, Tokenizer, Vec<u32>) {
    let lines = [
        "春眠不觉晓,处处闻啼鸟。",
        "夜来风雨声,花落知多少。",
        "a stitch in time saves nine",
    ];
    let texts: Vec<&str> = lines.into_iter().cycle().take(60).collect();
    let tokenizer = Tokenizer::train_bpe(
        texts,
        &BpeOptions {
            vocab_size: 320,
            ..BpeOptions::default()
        },
    )
    .unwrap();
    let config = serde_json::from_value(json!({
        "model_type": "llama", "vocab_size": tokenizer.vocab_size(), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3
    }));
    let factory = Factory::random(11, Kind::Float, Device::Cpu).unwrap();
    let model = Decoder::new(&factory, config.unwrap(), Kind::Float).unwrap();
    let prompt = tokenizer.encode("春眠不觉晓", false).unwrap();
    (model, tokenizer, prompt)
}

fn speak(options: &Options) -> (String, Vec<String>) {
    let (model, tokenizer, prompt) = speaker();
    let mut pieces = Vec::new();
    let all = text(&model, &tokenizer, &prompt, options, |piece| {
        pieces.push(piece.to_owned())
    })
    .unwrap();
    assert_eq!(pieces.concat(), all);
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    (all, pieces)
}

const WARM: Sampling = Sampling {
    temperature: 0.9,
    top_k: 40,
    top_p: 0.95,
    seed: 5,
};

#[test]
fn text_is_the_tokens_decoded_in_pieces() {
    let options = Options {
        max_tokens: 60,
        sampling: WARM,
        ..Options::default()
    };
    let (all, pieces) = speak(&options);
    let (model, tokenizer, prompt) = speaker();
    let ids = collect(&model, &prompt, &options);
    assert_eq!(ids.len(), 60);
    assert_eq!(all, tokenizer.decode(&ids, true).unwrap());
    assert!(pieces.len() > 20, "it comes as it is made: {pieces:?}");
}

#[test]
fn a_stop_string_ends_the_text_and_is_never_shown() {
    let options = Options {
        max_tokens: 60,
        sampling: WARM,
        ..Options::default()
    };
    let (all, _) = speak(&options);
    let characters: Vec<char> = all.chars().collect();
    for start in [3, 17, 30] {
        let stop: String = characters[start..start + 3].iter().collect();
        let (shown, _) = speak(&Options {
            stop: vec!["永不出现".into(), stop.clone()],
            ..options.clone()
        });
        assert_eq!(shown, all[..all.find(&stop).unwrap()], "{stop:?}");
    }
    // One that only begins is shown after all.
    let begun: String = characters[characters.len() - 2..]
        .iter()
        .chain(&['永'])
        .collect();
    assert_eq!(
        speak(&Options {
            stop: vec![begun],
            ..options
        })
        .0,
        all
    );
}

#[test]
fn a_seed_repeats_a_text_and_another_gives_another() {
    let with = |seed| {
        speak(&Options {
            max_tokens: 40,
            sampling: Sampling { seed, ..WARM },
            ..Options::default()
        })
        .0
    };
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn what_cannot_be_decoded_is_an_error() {
    let (model, _, prompt) = speaker();
    let error = |prompt: &[u32], options: &Options| {
        tokens(&model, prompt, options, |_| Ok(true)).unwrap_err()
    };
    assert!(matches!(
        error(&[], &Options::default()),
        Error::EmptyPrompt
    ));
    let text = error(&[5, 320], &Options::default()).to_string();
    assert!(
        text.starts_with("embedding on [320, 32] Float, [1, 2] Int64: "),
        "{text}"
    );
    let options = Options {
        adapters: Adapters::Named(vec!["chat".into()]),
        ..Options::default()
    };
    assert_eq!(
        error(&prompt, &options).to_string(),
        "the model has no adapter `chat`"
    );
    let options = Options {
        sampling: Sampling { top_p: 1.5, ..WARM },
        ..Options::default()
    };
    assert!(error(&prompt, &options).to_string().contains("top_p 1.5"));
    // What the reader returns comes back.
    let outcome = tokens(&model, &prompt, &Options::default(), |_| {
        Err(Error::EmptyPrompt)
    });
    assert!(matches!(outcome, Err(Error::EmptyPrompt)));
    let (_, norm) = params(&model)
        .into_iter()
        .find(|(path, _)| path == "model.norm.weight")
        .unwrap();
    norm.assign(&norm.tensor().detach().full_like(f64::NAN))
        .unwrap();
    assert!(matches!(
        error(&prompt, &Options::default()),
        Error::NotFinite { token: 0 }
    ));
}
