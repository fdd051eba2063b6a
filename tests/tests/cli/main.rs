//! The command line when things are wrong: one clear sentence, what to do next, and no damage.

mod damage;
mod directories;
mod files;
mod full;
mod installed;
mod interface;
mod login;
mod names;
mod output;
mod secrets;
mod sticks;
mod trust;

use satchel_tests::{Output, TestServer};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

/// Size of the images these tests publish, bytes.
const IMAGE_BYTES: u64 = 2 << 20;

/// Checks how a program refused: exit code 1, nothing on stdout, exactly one `error:` line, which has all of `said`; and
/// a hint that has all of `advised`, if there is to be one.
#[track_caller]
fn assert_refused(output: Output, said: &[&str], advised: &[&str]) {
    let Output { command, stdout, stderr, .. } = output.exited(1);
    assert_eq!(stdout, "", "`{command}` failed and printed data all the same");
    assert_clean(&stderr);
    let lines =
        |prefix: &str| -> Vec<&str> { stderr.lines().filter_map(|line| line.strip_prefix(prefix)).collect() };
    let (errors, hints) = (lines("error: "), lines("hint: "));
    assert_eq!(errors.len(), 1, "`{command}` has not one error:\n{stderr}");
    for part in said {
        assert!(errors[0].contains(part), "`{command}`: `{part}` is not in: {}", errors[0]);
    }
    assert_eq!(hints.is_empty(), advised.is_empty(), "`{command}` gives advice, or none:\n{stderr}");
    for part in advised {
        assert!(hints[0].contains(part), "`{command}`: `{part}` is not in: {}", hints[0]);
    }
}

/// Checks that messages are for people who did not write the program.
#[track_caller]
fn assert_clean(stderr: &str) {
    for word in ["panicked", "RUST_BACKTRACE", "unwrap", "Os {", "Error {", "\u{1b}"] {
        assert!(!stderr.contains(word), "`{word}` in:\n{stderr}");
    }
}

/// Runs one statement on the database of a server, which may run.
fn alter(server: &TestServer, statement: String) {
    let options = SqliteConnectOptions::new().filename(server.store().join("database.sqlite"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut database = options.connect().await.expect("the database can be opened");
        let done = sqlx::query(sqlx::AssertSqlSafe(statement.clone()))
            .execute(&mut database)
            .await
            .expect("the statement is right");
        assert!(done.rows_affected() > 0, "`{statement}` changed nothing");
    });
}
