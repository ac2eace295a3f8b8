//! Which commands of the documentation are found, which run, and what is refused.
#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};
use tempfile::TempDir;
use xtask::readme::{When, blocks, run};

#[test]
fn blocks_are_found_with_their_place_mark_and_commands() {
    let text = r#"
Inline ```sh is not a fence.

```sh
# a comment
echo one

cargo run --example x -- \
  --steps 2
```

1. In a list:
   ```console
   $ echo two
   two
   $ echo \
   > three
   ```

```rust
let not_a_command = 1;
```

````md
```sh
echo shown, not run
```
````

```sh no-check "needs a GPU"
nvidia-smi
```
```sh after-demo
ls demo
```
"#;
    let found = blocks("A.md", text).unwrap();
    let seen: Vec<_> = found
        .iter()
        .map(|block| (block.place.as_str(), block.when, block.commands.clone()))
        .collect();
    let own = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        seen,
        [
            (
                "A.md:4",
                When::Check,
                own(&["echo one", "cargo run --example x -- \\\n--steps 2"])
            ),
            ("A.md:13", When::Check, own(&["echo two", "echo \\\nthree"])),
            ("A.md:30", When::Never, own(&["nvidia-smi"])),
            ("A.md:33", When::AfterDemo, own(&["ls demo"])),
        ]
    );
}

#[test]
fn what_would_go_unchecked_is_refused() {
    for (text, part) in [
        ("```sh\necho", "A.md:1: the fence is never closed"),
        ("\n```bash\necho\n```", "A.md:2: mark commands as sh"),
        ("```sh no-check\necho\n```", "needs a reason"),
        ("```sh no-check \"\"\necho\n```", "needs a reason"),
        ("```sh nocheck\necho\n```", "unknown mark `nocheck`"),
    ] {
        let error = format!("{:#}", blocks("A.md", text).unwrap_err());
        assert!(error.contains(part), "{part} in {error}");
    }
}

/// A repository with these READMEs and one page of docs.
fn repository(english: &str, chinese: &str, page: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("docs")).unwrap();
    fs::write(folder.path().join("README.md"), english).unwrap();
    fs::write(folder.path().join("README.zh-CN.md"), chinese).unwrap();
    fs::write(folder.path().join("docs/page.md"), page).unwrap();
    folder
}

fn ran(root: &Path) -> String {
    fs::read_to_string(root.join("log")).unwrap_or_default()
}

#[test]
fn commands_run_once_in_order_at_the_root() {
    let readme = "```sh\ncd docs\ncargo xtask demo --seed 7\necho $(ls) >> ../log\n```\n\
                  ```sh after-demo\necho later >> log\n```\n\
                  ```sh no-check \"never\"\necho never >> log\n```\n";
    let repo = repository(readme, readme, "```console\n$ echo docs >> log\n```\n");
    run(repo.path(), When::Check).unwrap();
    assert_eq!(ran(repo.path()), "page.md\ndocs\n");
    run(repo.path(), When::AfterDemo).unwrap();
    assert_eq!(ran(repo.path()), "page.md\ndocs\nlater\n");
}

#[test]
fn a_failing_command_stops_and_names_its_block() {
    let readme = "Text.\n```sh\nfalse\necho on >> log\n```\n```sh\necho next >> log\n```\n";
    let repo = repository(readme, readme, "");
    let error = format!("{:#}", run(repo.path(), When::Check).unwrap_err());
    assert!(error.contains("README.md:2"), "{error}");
    assert_eq!(ran(repo.path()), "");
}

#[test]
fn the_two_readmes_must_hold_the_same_commands() {
    let one = "```sh\ntrue\n```\n";
    for other in [
        "```sh\nfalse\n```\n",
        "```sh after-demo\ntrue\n```\n",
        "",
        &one.repeat(2),
    ] {
        let repo = repository(one, other, "");
        let error = format!("{:#}", run(repo.path(), When::Check).unwrap_err());
        assert!(error.contains("README.zh-CN.md"), "{error}");
    }
}

#[test]
fn an_xtask_command_that_does_not_exist_is_found() {
    let readme = "```sh\ncargo xtask demo --sed 7\n```\n";
    let repo = repository(readme, readme, "");
    let error = format!("{:#}", run(repo.path(), When::Check).unwrap_err());
    assert!(
        error.contains("README.md:1") && error.contains("--sed"),
        "{error}"
    );
}
