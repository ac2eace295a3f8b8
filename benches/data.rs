//! From rows of Chinese instructions to packed batches. No libtorch takes part.
#![allow(missing_docs, reason = "criterion's macros write public functions")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ferrotune_data::{
    Batch, Dataset, Fields, OnBadLine, Stream, StreamOptions, Streams, TokenizeOptions, tokenize,
};
use ferrotune_text::{BpeOptions, ChatTemplate, Tokenizer};
use serde_json::json;

const ROWS: usize = 2000;

/// Questions and answers of 30 to 200 characters, no two alike.
fn instructions() -> Vec<Fields> {
    const CITIES: [&str; 8] = [
        "北京", "上海", "广州", "成都", "杭州", "西安", "武汉", "昆明",
    ];
    const THINGS: [&str; 7] = ["天气", "小吃", "博物馆", "地铁线路", "园林", "方言", "老街"];
    const TURNS: [&str; 5] = [
        "先说结论：这里的风格比较朴素。",
        "春天去最合适，秋天也不错，夏天则要避开正午。",
        "当地人常说，慢慢走才看得见细节。",
        "如果只有半天时间，可以从老城区开始，沿着河边一直走到钟楼。",
        "价格不高，排队却要很久。",
    ];
    let row = |i: usize| {
        let (city, thing) = (CITIES[i % 8], THINGS[i / 8 % 7]);
        let answer: String = (0..1 + i % 6).map(|j| TURNS[(i + j * j) % 5]).collect();
        let row = json!({
            "instruction": format!("请用几句话介绍{city}的{thing}，编号{i}。"),
            "output": format!("{city}的{thing}很有名。{answer}"),
        });
        row.as_object().expect("an object").clone()
    };
    (0..ROWS).map(row).collect()
}

fn read(rows: Vec<Fields>, tokenizer: &Tokenizer) -> Dataset {
    let rows = Stream::rows("instructions", rows, OnBadLine::Fail);
    tokenize(rows, tokenizer, &TokenizeOptions::default()).expect("rows that are right")
}

/// One epoch, collated; returns its tokens.
fn pack(dataset: std::sync::Arc<Dataset>) -> usize {
    let options = StreamOptions {
        max_length: 1024,
        ..StreamOptions::default()
    };
    let mut streams = Streams::new(dataset, options).expect("options that are right");
    std::iter::from_fn(|| streams.next_batch())
        .map(|bins| Batch::collate(&bins).tokens())
        .sum()
}

fn all(c: &mut Criterion) {
    let rows = instructions();
    let texts = rows
        .iter()
        .flat_map(|row| row.values())
        .filter_map(|value| value.as_str());
    let texts: Vec<&str> = texts.collect();
    let mut tokenizer = Tokenizer::train_bpe(texts, &BpeOptions::default()).expect("a tokenizer");
    tokenizer.set_chat_template(ChatTemplate::builtin("chatml").expect("a template"));
    let dataset = std::sync::Arc::new(read(rows.clone(), &tokenizer));
    assert_eq!(pack(dataset.clone()), dataset.tokens(), "every token once");

    let mut group = c.benchmark_group("data");
    group.throughput(Throughput::Elements(dataset.tokens() as u64));
    group.bench_function("tokenize", |b| {
        b.iter_batched(
            || rows.clone(),
            |rows| read(rows, &tokenizer),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("pack", |b| b.iter(|| pack(dataset.clone())));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = all
}
criterion_main!(benches);
