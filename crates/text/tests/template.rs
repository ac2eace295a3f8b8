//! Templates: the built-in ones, where answers stand, and refusals.
#![allow(clippy::unwrap_used)]

use ferrotune_text::{ChatTemplate, Error, Message};
use proptest::prelude::*;

fn builtin(name: &str) -> ChatTemplate {
    ChatTemplate::builtin(name)
        .unwrap()
        .with_variable("bos_token", "<s>")
        .with_variable("eos_token", "</s>")
}

fn chat() -> Vec<Message> {
    vec![
        Message::system("简短。"),
        Message::user("三加四？"),
        Message::assistant("七。\n"),
        Message::user("再见"),
        Message::assistant("再见。"),
    ]
}

#[test]
fn builtin_texts_and_answers() {
    let expect = [
        (
            "chatml",
            "<|im_start|>system\n简短。<|im_end|>\n<|im_start|>user\n三加四？<|im_end|>\n<|im_start|>assistant\n七。\n<|im_end|>\n\
             <|im_start|>user\n再见<|im_end|>\n<|im_start|>assistant\n再见。<|im_end|>\n",
            ["七。\n<|im_end|>", "再见。<|im_end|>"],
        ),
        (
            "alpaca",
            "简短。\n\n### Instruction:\n三加四？\n\n### Response:\n七。\n</s>\n\n### Instruction:\n再见\n\n### Response:\n再见。</s>",
            ["七。\n</s>", "再见。</s>"],
        ),
        (
            "llama2",
            "<s>[INST] <<SYS>>\n简短。\n<</SYS>>\n\n三加四？ [/INST] 七。\n </s><s>[INST] 再见 [/INST] 再见。 </s>",
            [" 七。\n </s>", " 再见。 </s>"],
        ),
    ];
    for (name, whole, answers) in expect {
        let template = builtin(name);
        let (text, spans) = template.answer_spans(&chat()).unwrap();
        assert_eq!(text, whole);
        assert_eq!(text, template.render(&chat(), false).unwrap());
        let found: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
        assert_eq!(found, answers, "{name}");
        // An answer begins where generation does.
        let prompt = template.render(&chat()[..4], true).unwrap();
        assert!(
            text.strip_prefix(&prompt).unwrap().starts_with(answers[1]),
            "{name}"
        );
    }
    let default = builtin("alpaca")
        .render(&[Message::user("问")], true)
        .unwrap();
    assert!(
        default.starts_with("Below is an instruction")
            && default.ends_with("### Instruction:\n问\n\n### Response:\n")
    );
}

#[test]
fn marks_in_the_messages_themselves_do_no_harm() {
    let source =
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}";
    let template = ChatTemplate::new(source).unwrap();
    let chat = [
        Message::user("\u{FDD0}<0\u{FDD0}a\u{FDD0}>0\u{FDD0}"),
        Message::assistant("b"),
    ];
    let (text, spans) = template.answer_spans(&chat).unwrap();
    assert_eq!(text, format!("{}|b|", chat[0].content));
    assert_eq!(
        spans
            .iter()
            .map(|span| &text[span.clone()])
            .collect::<Vec<_>>(),
        [&chat[0].content, "b"]
    );
}

#[test]
fn an_unstable_template_names_the_message() {
    // It drops every answer but the last, as templates do that forget earlier reasoning.
    let source = "{% for m in messages %}{% if m.role == 'user' or loop.last %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}\
                  {% if add_generation_prompt %}[assistant]{% endif %}";
    let template = ChatTemplate::new(source).unwrap();
    let error = template.answer_spans(&chat()[1..]).unwrap_err();
    assert!(matches!(error, Error::Unstable { index: 1, .. }), "{error}");
    assert!(
        error.to_string().contains("message 1 (assistant)"),
        "{error}"
    );
    // Alone, the last answer is stable.
    let (text, spans) = template.answer_spans(&chat()[1..3]).unwrap();
    assert_eq!(&text[spans[0].clone()], "七。");
}

#[test]
fn refusals_keep_the_templates_words() {
    let error = builtin("llama2")
        .render(&chat()[2..], false)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("wants user and assistant in turn"),
        "{error}"
    );
    let first = ChatTemplate::new("{{ messages[0].role }}{{ messages[-1].content }}").unwrap();
    let error = first
        .answer_spans(&[Message::assistant("我先说")])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("message 0 (assistant): the template refuses the conversation before it"),
        "{error}"
    );
    let error = ChatTemplate::builtin("vicuna").unwrap_err().to_string();
    assert_eq!(
        error,
        "no built-in chat template `vicuna`; there are chatml, alpaca, llama2"
    );
    let error = ChatTemplate::new("{{ strftime_now('%Q%') }}")
        .unwrap()
        .render(&[], false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("strftime_now"), "{error}");
}

#[test]
fn today_is_at_hand() {
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}").unwrap();
    let before = jiff::Zoned::now().date().to_string();
    let text = template.render(&[], false).unwrap();
    assert!(text == before || text == jiff::Zoned::now().date().to_string());
}

proptest! {
    #[test]
    fn answers_hold_their_messages(turns in prop::collection::vec("\\PC{0,12}", 1..8), which in 0usize..3) {
        let role = |index| if index % 2 == 0 { "user" } else { "assistant" };
        let chat: Vec<Message> = turns.iter().enumerate().map(|(index, text)| Message::new(role(index), text)).collect();
        let (text, spans) = builtin(["chatml", "alpaca", "llama2"][which]).answer_spans(&chat).unwrap();
        prop_assert_eq!(spans.len(), turns.len() / 2);
        for (span, answer) in spans.into_iter().zip(turns.iter().skip(1).step_by(2)) {
            prop_assert!(text[span].trim_start_matches(' ').starts_with(answer.trim_start_matches(' ')));
        }
    }
}
