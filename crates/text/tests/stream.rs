//! Streaming is decoding, whatever the tokens and the decoder.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use ferrotune_text::{BpeOptions, StreamDecoder, Tokenizer};
use proptest::prelude::*;

fn fixture(name: &str) -> Tokenizer {
    Tokenizer::from_dir(
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(name),
    )
    .unwrap()
}

/// A fixture with another decoder put in.
fn with_decoder(name: &str, decoder: &str) -> Tokenizer {
    let mut state: serde_json::Value =
        serde_json::from_str(&fixture(name).inner().to_string(false).unwrap()).unwrap();
    state["decoder"] = serde_json::from_str(decoder).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, state.to_string()).unwrap();
    Tokenizer::from_file(path).unwrap()
}

fn tokenizers() -> Vec<Tokenizer> {
    vec![
        fixture("byte_level"),
        fixture("sentencepiece"),
        fixture("metaspace"),
        with_decoder("byte_level", "null"),
        with_decoder(
            "byte_level",
            r#"{"type":"WordPiece","prefix":"Ġ","cleanup":true}"#,
        ),
        with_decoder("byte_level", r#"{"type":"BPEDecoder","suffix":"Ġ"}"#),
    ]
}

fn chunks(tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> Vec<String> {
    let mut stream = StreamDecoder::new(tokenizer, skip);
    let mut chunks: Vec<String> = ids
        .iter()
        .filter_map(|&id| stream.push(id).unwrap())
        .collect();
    assert!(chunks.iter().all(|chunk| !chunk.is_empty()));
    chunks.push(stream.finish().unwrap());
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn chunks_of_any_tokens_join_to_the_whole(
        ids in prop::collection::vec(0u32..460, 0..60),
        skip: bool,
        which in 0usize..6,
    ) {
        thread_local!(static ALL: Vec<Tokenizer> = tokenizers());
        ALL.with(|all| {
            let whole = all[which].decode(&ids, skip).unwrap();
            assert_eq!(chunks(&all[which], &ids, skip).concat(), whole);
        });
    }

    #[test]
    fn no_character_of_a_text_is_cut(text in "([ \\t]{0,3}[你好世界龘𠮷😀a-c，。 ]{0,6}\\PC?){0,8}", which in 0usize..2) {
        thread_local!(static ALL: Vec<Tokenizer> = tokenizers());
        ALL.with(|all| {
            let ids = all[which].encode(&text, false).unwrap();
            let chunks = chunks(&all[which], &ids, true);
            assert_eq!(chunks.concat(), all[which].decode(&ids, true).unwrap());
            if !text.contains('\u{FFFD}') {
                assert!(chunks.iter().all(|chunk| !chunk.contains('\u{FFFD}')), "{chunks:?}");
            }
        });
    }
}

#[test]
fn a_character_comes_with_its_last_byte() {
    let options = BpeOptions {
        vocab_size: 259,
        ..BpeOptions::default()
    };
    let tokenizer = Tokenizer::train_bpe(["x"], &options).unwrap();
    let ids = tokenizer.encode("你a", false).unwrap();
    assert_eq!(ids.len(), 4);
    let mut stream = StreamDecoder::new(&tokenizer, true);
    let given: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(
        given,
        [None, None, Some("你".to_owned()), Some("a".to_owned())]
    );

    let mut cut = StreamDecoder::new(&tokenizer, true);
    assert_eq!(cut.push(ids[0]).unwrap(), None);
    assert_eq!(cut.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn a_token_costs_the_same_late_as_early() {
    // Quadratic work would take minutes here: nothing but broken characters, and nothing but skipped tokens.
    for name in ["byte_level", "sentencepiece"] {
        let tokenizer = fixture(name);
        let broken = tokenizer
            .token_to_id("<0x80>")
            .unwrap_or_else(|| tokenizer.token_to_id("Ģ").unwrap());
        for id in [broken, tokenizer.eos().unwrap()] {
            let ids = vec![id; 200_000];
            assert_eq!(
                chunks(&tokenizer, &ids, true).concat(),
                tokenizer.decode(&ids, true).unwrap()
            );
        }
    }
}
