//! What we save, read by transformers itself.
#![allow(clippy::unwrap_used)]

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use ferrotune_text::{BpeOptions, ChatTemplate, Message, Split, Tokenizer};
use serde_json::{Value, json};

const READ: &str = r#"
import json, os, sys
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
from transformers import AutoTokenizer
asked = json.load(sys.stdin)
tok = AutoTokenizer.from_pretrained(asked["dir"], local_files_only=True)
ids = [tok(text)["input_ids"] for text in asked["texts"]]
json.dump({
    "special": [tok.bos_token_id, tok.eos_token_id, tok.pad_token_id],
    "size": len(tok),
    "ids": ids,
    "decoded": [tok.decode(each, skip_special_tokens=True) for each in ids],
    "chats": [
        [tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt) for prompt in (False, True)]
        for chat in asked["chats"]
    ],
    "chat_ids": [tok.apply_chat_template(chat, return_dict=False) for chat in asked["chats"]],
}, sys.stdout)
"#;

/// What transformers makes of the tokenizer in a folder.
fn transformers(dir: &Path, texts: &[String], chats: &[Vec<Message>]) -> Value {
    let python =
        std::env::var_os("FERROTUNE_PEERS").expect("FERROTUNE_PEERS names the peers' Python");
    let mut child = Command::new(python)
        .args(["-c", READ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let asked = json!({"dir": dir, "texts": texts, "chats": chats}).to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(asked.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
#[ignore = "needs the Python peers: cargo xtask check --full"]
fn a_saved_tokenizer_is_transformers_too() {
    let corpus = [
        "今天天气很好，我们去公园散步。",
        "三加四等于七，十三减五等于八。",
        "Hello, hello world! It's 3+4=7.",
    ];
    let texts: Vec<String> = corpus
        .iter()
        .copied()
        .chain([
            "",
            " 前后空格 \n\n",
            "二十三加十四\t😀龘",
            "a<|im_start|>b<|im_end|>",
        ])
        .map(str::to_owned)
        .collect();
    let chats = [
        vec![Message::user("三加四？"), Message::assistant("七。")],
        vec![
            Message::system("简短"),
            Message::user("It's \"<b>\" & 😀"),
            Message::assistant(" ok\n"),
            Message::user("再见"),
        ],
    ];
    for split in [Split::Nothing, Split::Numerals, Split::Characters] {
        let options = BpeOptions {
            vocab_size: 330,
            split,
            ..BpeOptions::default()
        };
        let mut tokenizer = Tokenizer::train_bpe(corpus, &options).unwrap();
        for name in ["chatml", "alpaca", "llama2"] {
            tokenizer.set_chat_template(ChatTemplate::builtin(name).unwrap());
            let dir = tempfile::tempdir().unwrap();
            tokenizer.save(dir.path()).unwrap();
            let peer = transformers(dir.path(), &texts, &chats);

            let special = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()];
            assert_eq!(peer["special"], json!(special));
            assert_eq!(peer["size"], tokenizer.vocab_size());
            let ids = tokenizer.encode_batch(&texts, true).unwrap();
            assert_eq!(peer["ids"], json!(ids));
            let decoded: Vec<String> = ids
                .iter()
                .map(|ids| tokenizer.decode(ids, true).unwrap())
                .collect();
            assert_eq!(peer["decoded"], json!(decoded));
            let template = tokenizer.chat_template().unwrap();
            for (index, chat) in chats.iter().enumerate() {
                let rendered = [false, true].map(|prompt| template.render(chat, prompt).unwrap());
                assert_eq!(peer["chats"][index], json!(rendered), "{name}");
                let ids = tokenizer.encode(&rendered[0], false).unwrap();
                assert_eq!(peer["chat_ids"][index], json!(ids), "{name}");
            }
        }
    }
}
