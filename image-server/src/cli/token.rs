//! `satchel-server token`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use chunk_format::Name;
use clap::Args;
use image_server::tokens::{self, ListedToken, NewToken, TokenState};
use image_server::{Role, format_ms};
use serde_json::json;

use super::output;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Make a token and print it alone; or list tokens; or revoke one. Works while a server runs
#[derive(Args)]
pub(crate) struct Token {
    /// The server's directory
    dir: PathBuf,
    /// Whose token it is; a user not known yet is added
    #[arg(long, value_name = "NAME", required_unless_present_any = ["list", "revoke"])]
    user: Option<Name>,
    /// What it may do: admin, publisher or user
    #[arg(long, value_name = "ROLE", required_unless_present_any = ["list", "revoke"])]
    role: Option<Role>,
    /// What it is for, to be found in the list
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Days until it ends; it does not end unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    expires_days: Option<u16>,
    /// List all tokens
    #[arg(long, conflicts_with_all = ["user", "role", "label", "expires_days", "revoke"])]
    list: bool,
    /// Revoke the token with this number of the list
    #[arg(long, value_name = "ID", conflicts_with_all = ["user", "role", "label", "expires_days"])]
    revoke: Option<i64>,
}

impl Token {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        if self.list {
            return self.print_list(json).await;
        }
        if let Some(id) = self.revoke {
            tokens::revoke(&self.dir, id).await?;
            if json {
                output::json(&json!({ "revoked": id }))?;
            }
            output::message(&format!("token {id} is revoked"));
            return Ok(ExitCode::SUCCESS);
        }
        let (Some(user), Some(role)) = (self.user, self.role) else {
            anyhow::bail!("--user and --role are needed to make a token");
        };
        let expires_ms = self.expires_days.map(|days| now_ms() + i64::from(days) * DAY_MS);
        let new = NewToken { user, role, label: self.label, expires_ms };
        let token = tokens::issue(&self.dir, &new).await?;
        if json {
            output::json(&json!({ "token": token.reveal(), "expires_ms": expires_ms }))?;
        } else {
            output::data(token.reveal())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn print_list(&self, json: bool) -> anyhow::Result<ExitCode> {
        let listed = tokens::list(&self.dir).await?;
        if json {
            output::json(&json!({ "tokens": listed }))?;
        } else {
            for line in table(&listed) {
                output::data(&line)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

/// The list in columns as wide as what is in them.
fn table(listed: &[ListedToken]) -> Vec<String> {
    let head = ["ID", "USER", "ROLE", "LABEL", "CREATED", "EXPIRES", "LAST USED", "STATE"].map(str::to_owned);
    let time = |time_ms: Option<i64>| time_ms.map_or_else(|| "never".to_owned(), format_ms);
    let row = |token: &ListedToken| {
        let state = match token.state {
            TokenState::Valid => "valid",
            TokenState::Expired => "expired",
            TokenState::Revoked => "revoked",
        };
        [
            token.id.to_string(),
            token.user.to_string(),
            token.role.to_string(),
            token.label.clone().unwrap_or_else(|| "-".to_owned()),
            format_ms(token.created_ms),
            time(token.expires_ms),
            time(token.last_used_ms),
            state.to_owned(),
        ]
    };
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(listed.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let token = |id, user: &str, label: Option<&str>| ListedToken {
            id,
            user: user.parse().unwrap(),
            role: Role::User,
            label: label.map(str::to_owned),
            created_ms: 1_764_000_000_000,
            expires_ms: None,
            last_used_ms: Some(1_764_000_000_000),
            state: TokenState::Valid,
        };
        let lines = table(&[token(1, "al", None), token(22, "bartholomew", Some("büro"))]);
        let expected = [
            "ID  USER         ROLE  LABEL  CREATED               EXPIRES  LAST USED             STATE",
            "1   al           user  -      2025-11-24T16:00:00Z  never    2025-11-24T16:00:00Z  valid",
            "22  bartholomew  user  büro   2025-11-24T16:00:00Z  never    2025-11-24T16:00:00Z  valid",
        ];
        assert_eq!(lines, expected);
    }
}
