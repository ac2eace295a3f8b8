//! tmp
use ferrotune_examples::corpus::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    Corpus::new(a[1].parse().unwrap(), CorpusOptions::default())
        .write_to(std::path::Path::new(&a[2]))
        .unwrap();
}
