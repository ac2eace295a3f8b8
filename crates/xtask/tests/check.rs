//! The order of the steps, and the table at the end.
#![allow(clippy::unwrap_used)]

use anyhow::bail;
use std::{cell::RefCell, time::Duration};
use xtask::check::{Step, run_steps, table};

#[test]
fn the_first_failure_stops_the_rest_and_is_named() {
    let log = RefCell::new(Vec::new());
    let steps = [
        Step::new("first", || {
            log.borrow_mut().push(1);
            Ok(())
        }),
        Step::new("second", || bail!("the reason")),
        Step::new("third", || {
            log.borrow_mut().push(3);
            Ok(())
        }),
    ];
    let error = format!("{:#}", run_steps(&steps).unwrap_err());
    assert!(
        error.contains("second") && error.contains("the reason"),
        "{error}"
    );
    assert_eq!(*log.borrow(), [1]);
}

#[test]
fn the_table_says_what_ran_how_long_and_what_did_not() {
    let steps = ["one", "second", "third"].map(|name| Step::new(name, || Ok(())));
    let times = [Duration::from_millis(1500), Duration::from_secs(61)];
    assert_eq!(
        table(&steps, &times, true),
        "one         1.5 s  ok\n\
         second     61.0 s  FAILED\n\
         third           not run\n\
         total      62.5 s"
    );
    let all = [Duration::ZERO; 3];
    assert!(!table(&steps, &all, false).contains("FAILED"));
}
