//! tmp
use ferrotune_examples::{checkpoint, exam};
fn main() -> anyhow::Result<()> {
    let a: Vec<String> = std::env::args().collect();
    let model = a[1].as_ref();
    let adapter = a.get(3).map(|x| x.as_ref());
    let tok = checkpoint::tokenizer(model, adapter)?;
    let m = checkpoint::load(model, adapter, checkpoint::stored_kind(model)?)?;
    let q = exam::questions(a[2].as_ref())?;
    let r = exam::examine(&m, &tok, &q, |q, a| {
        println!("{} {} != {}", q.instruction, q.output, a)
    })?;
    println!(
        "{}",
        exam::Comparison {
            before: &r,
            after: &r
        }
    );
    Ok(())
}
