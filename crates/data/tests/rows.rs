//! Reading, operations, the shapes of conversations, and every way a row can be bad.
#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf};

use ferrotune_data::{Error, Fields, OnBadLine, Source, Stream, Tags, to_messages};
use ferrotune_text::Message;
use serde_json::json;

fn fields(value: serde_json::Value) -> Fields {
    value.as_object().unwrap().clone()
}

fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn all(mut stream: Stream) -> Result<Vec<Fields>, Error> {
    stream
        .by_ref()
        .map(|row| row.map(|row| row.fields))
        .collect()
}

#[test]
fn files_are_read_in_order_with_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let a = file(
        &dir,
        "a.jsonl",
        b"\xEF\xBB\xBF{\"n\": 1}\r\n\n  \n{\"n\": 2}",
    );
    let b = file(&dir, "b.jsonl", "{\"n\": \"三\"}\n".as_bytes());
    let source = Source::jsonl([&a, &b], OnBadLine::Fail).unwrap();
    for _ in 0..2 {
        let rows: Vec<_> = source.stream().collect::<Result<_, _>>().unwrap();
        let places: Vec<String> = rows.iter().map(|row| row.at.to_string()).collect();
        assert_eq!(
            places,
            [
                format!("{}:1", a.display()),
                format!("{}:4", a.display()),
                format!("{}:1", b.display())
            ]
        );
        assert_eq!(
            rows.iter().map(|row| &row.fields["n"]).collect::<Vec<_>>(),
            [&json!(1), &json!(2), &json!("三")]
        );
    }
}

#[test]
fn nothing_is_read_before_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "a.jsonl", b"{\"n\": 1}\n{\"n\": 2}\nbroken");
    let mut stream = Source::jsonl([path], OnBadLine::Fail)
        .unwrap()
        .stream()
        .rename("n", "m");
    assert_eq!(stream.next().unwrap().unwrap().fields["m"], 1);
    assert_eq!(stream.next().unwrap().unwrap().fields["m"], 2);
    assert!(stream.next().unwrap().is_err());
    assert!(stream.next().is_none());
}

#[test]
fn operations() {
    let rows = [
        json!({"a": 1, "b": 2, "c": 3}),
        json!({"a": 10, "b": 20, "c": 30}),
    ]
    .map(fields);
    let stream = Stream::rows("r", rows, OnBadLine::Fail)
        .filter(|row| row["a"] == 10)
        .rename("b", "β")
        .select(&["c", "β"])
        .map(|mut row| {
            row.insert("d".to_owned(), json!(4));
            Ok(row)
        });
    assert_eq!(
        all(stream).unwrap(),
        [fields(json!({"β": 20, "c": 30, "d": 4}))]
    );
    let keys: Vec<String> =
        all(Stream::rows("r", [fields(json!({"x": 1, "y": 2}))], OnBadLine::Fail).rename("x", "z"))
            .unwrap()[0]
            .keys()
            .cloned()
            .collect();
    assert_eq!(keys, ["z", "y"]);
}

#[test]
fn a_template_writes_a_field_from_others() {
    let rows = [
        json!({"q": "三加四", "n": 7}),
        json!({"q": "五", "n": [1]}),
        json!({"q": "六"}),
        json!({"q": "{n}", "n": 1.5}),
    ]
    .map(fields);
    let write =
        |pattern: &str| Stream::rows("r", rows.clone(), OnBadLine::Skip).template("text", pattern);
    let mut stream = write("问：{q}？{{答}}：{n}。").unwrap();
    let texts: Vec<_> = stream
        .by_ref()
        .map(|row| row.unwrap().fields["text"].clone())
        .collect();
    // What a field holds is not read as a pattern again.
    assert_eq!(
        texts,
        ["问：三加四？{答}：7。", "问：{n}？{答}：1.5。"].map(|text| json!(text))
    );
    assert_eq!(
        stream.skipped().reasons,
        [
            "r:2: n is a list, not a string or a number",
            "r:3: no `n`; the row has `q`"
        ]
    );
    for (pattern, reason) in [
        ("a{q", "a `{` that is not closed"),
        ("a}b", "a `}` that closes nothing"),
    ] {
        assert_eq!(
            write(pattern).unwrap_err().to_string(),
            format!("the pattern {pattern:?} has {reason}")
        );
    }
}

#[test]
fn bad_lines_fail_with_file_and_line_or_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let bad: [(&[u8], &str); 4] = [
        (b"{\"n\": 2", "not JSON: EOF while parsing"),
        (b"{\"n\": \"\xFF\"}", "not JSON: invalid unicode code point"),
        (b"[1, 2]", "row is a list, not an object"),
        (b"{\"m\": 2}", "no `n`; the row has `m`"),
    ];
    for (line, reason) in bad {
        let path = file(
            &dir,
            "bad.jsonl",
            &[b"{\"n\": 1}\n", line, b"\n{\"n\": 3}\n"].concat(),
        );
        let stream = |on_bad| {
            Source::jsonl([&path], on_bad)
                .unwrap()
                .stream()
                .rename("n", "m")
        };

        let error = all(stream(OnBadLine::Fail)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{}:2: {reason}", path.display())),
            "{error}"
        );

        let mut skipping = stream(OnBadLine::Skip);
        assert_eq!(
            skipping
                .by_ref()
                .map(|row| row.unwrap().fields["m"].clone())
                .collect::<Vec<_>>(),
            [1, 3]
        );
        assert_eq!(skipping.skipped().count, 1);
        assert!(skipping.skipped().reasons[0].contains(reason));
    }
    let refused = Stream::rows("mem", [fields(json!({"n": 1}))], OnBadLine::Fail)
        .map(|_| Err(ferrotune_data::RowError::Refused("odd".to_owned())));
    assert_eq!(all(refused).unwrap_err().to_string(), "mem:1: odd");
}

#[test]
fn missing_and_empty_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Source::jsonl::<&str>([], OnBadLine::Skip),
        Err(Error::NoFiles)
    ));
    let missing = dir.path().join("missing.jsonl");
    let error = Source::jsonl([&missing], OnBadLine::Skip).unwrap_err();
    assert!(
        matches!(&error, Error::Read { path, .. } if *path == missing),
        "{error}"
    );
    let empty = file(&dir, "empty.jsonl", b"");
    let error = Source::jsonl([&empty], OnBadLine::Skip).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} has no rows", empty.display())
    );
    // Nothing but blank lines shows when it is read; skipping does not hide it.
    let blank = file(&dir, "blank.jsonl", b"\n \n");
    let error = all(Source::jsonl([&blank], OnBadLine::Skip).unwrap().stream()).unwrap_err();
    assert!(
        matches!(&error, Error::EmptyFile { path } if *path == blank),
        "{error}"
    );
    // A file that goes away between the two.
    let gone = file(&dir, "gone.jsonl", b"{}");
    let source = Source::jsonl([&gone], OnBadLine::Skip).unwrap();
    fs::remove_file(&gone).unwrap();
    let error = all(source.stream()).unwrap_err();
    assert!(
        matches!(&error, Error::Read { path, .. } if *path == gone),
        "{error}"
    );
}

#[test]
fn three_shapes_of_one_conversation() {
    let expect = [
        Message::system("简短"),
        Message::user("你好"),
        Message::assistant("您好"),
        Message::user("三加四\n用汉字"),
        Message::assistant("七"),
    ];
    let shapes = [
        json!({"messages": [
            {"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好"},
            {"role": "user", "content": "三加四\n用汉字", "name": "x"}, {"role": "assistant", "content": "七"}]}),
        json!({"id": 1, "system": "简短", "conversations": [
            {"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好"},
            {"from": "user", "value": "三加四\n用汉字"}, {"from": "assistant", "value": "七"}]}),
        json!({"conversations": [
            {"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好"},
            {"role": "user", "content": "三加四\n用汉字"}, {"role": "assistant", "content": "七"}]}),
        json!({"instruction": "三加四", "input": "用汉字", "output": "七", "system": "简短", "history": [["你好", "您好"]]}),
    ];
    for shape in shapes {
        assert_eq!(
            to_messages(&fields(shape.clone()), &Tags::default()).unwrap(),
            expect,
            "{shape}"
        );
    }
    let plain =
        json!({"instruction": "问", "input": "", "output": "答", "system": null, "history": null});
    assert_eq!(
        to_messages(&fields(plain), &Tags::default()).unwrap(),
        [Message::user("问"), Message::assistant("答")]
    );
    let tagged = fields(json!({"conversations": [{"from": "客户", "value": "问"}]}));
    assert_eq!(
        to_messages(&tagged, &Tags::default().with("客户", "user")).unwrap(),
        [Message::user("问")]
    );
}

#[test]
fn bad_conversations_say_what_is_wrong() {
    let cases = [
        (
            json!({"prompt": "a", "answer": "b"}),
            "no `messages`, `conversations`, or `instruction` and `output`; the row has `prompt`, `answer`",
        ),
        (
            json!({}),
            "no `messages`, `conversations`, or `instruction` and `output`; the row has no keys",
        ),
        (
            json!({"instruction": "a"}),
            "no `output`; the row has `instruction`",
        ),
        (
            json!({"instruction": "a", "output": 3}),
            "output is a number, not a string",
        ),
        (
            json!({"instruction": "a", "output": "b", "input": ["x"]}),
            "input is a list, not a string",
        ),
        (
            json!({"instruction": "a", "output": "b", "history": [["x"]]}),
            "history[0] is a list, not a pair of strings",
        ),
        (
            json!({"messages": "hi"}),
            "messages is a string, not a list",
        ),
        (
            json!({"messages": ["hi"]}),
            "messages[0] is a string, not an object",
        ),
        (
            json!({"messages": [{"role": "user", "content": null}]}),
            "messages[0].content is null, not a string",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}),
            "no `messages[1].content`; the row has `role`",
        ),
        (
            json!({"conversations": [{"from": "bard", "value": "a"}]}),
            "conversations[0].from is `bard`, which stands for no role; known are assistant, gpt, human, system, user",
        ),
    ];
    for (row, reason) in cases {
        assert_eq!(
            to_messages(&fields(row), &Tags::default())
                .unwrap_err()
                .to_string(),
            reason
        );
    }
}

#[test]
fn a_txt_file_is_a_text_a_line_and_a_bad_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (text, json) = (folder.path().join("a.txt"), folder.path().join("b.jsonl"));
    fs::write(&text, "今天天气很好。\r\n\n{\"no\": 1}\n").unwrap();
    fs::write(&json, "{\"text\": \"三\"}\n").unwrap();
    let texts = |paths: &[&PathBuf]| {
        all(Source::open(paths, OnBadLine::Fail).unwrap().stream()).map(|rows| {
            let text = |row: Fields| row["text"].as_str().unwrap().to_owned();
            rows.into_iter().map(text).collect::<Vec<_>>()
        })
    };
    assert_eq!(
        texts(&[&text, &json]).unwrap(),
        ["今天天气很好。", "{\"no\": 1}", "三"]
    );
    fs::write(&text, b"ok\n\xE4\xBB\n").unwrap();
    let error = texts(&[&text]).unwrap_err().to_string();
    assert!(error.contains("a.txt:2: not UTF-8"), "{error}");
}
