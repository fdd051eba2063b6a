//! `satchel login`

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use satchel_client::remote::{Endpoint, Fingerprint, Remote, RemoteError, ServerInfo, Trust};
use satchel_client::state::Login;
use serde::Serialize;

use super::{Context, output};

#[derive(Debug, Args)]
pub(super) struct LoginArgs {
    /// The server: HOST, HOST:PORT or https://HOST:PORT
    url: String,
    /// The token its operator gave you (`-` reads it from standard input)
    #[arg(long, env = "SATCHEL_TOKEN", hide_env_values = true)]
    token: String,
    /// The server's certificate, as `satchel-server init` printed it
    #[arg(long, value_name = "SHA256:...")]
    fingerprint: Option<Fingerprint>,
}

#[derive(Serialize)]
struct LoggedIn {
    url: String,
    server: String,
    user: String,
    role: String,
    expires_ms: Option<u64>,
}

pub(crate) async fn run(context: &Context, args: LoginArgs) -> anyhow::Result<()> {
    let state = context.new_state()?;
    // Before a token is written down, or sent.
    state.check_fit()?;
    let token = match args.token.as_str() {
        "-" => read_token()?,
        token => token.to_owned(),
    };
    let known = state.login()?;
    let (endpoint, info) = match args.fingerprint {
        Some(fingerprint) => ask(&args.url, Trust::Pinned(fingerprint), &token).await?,
        None => find(&args.url, known, &token).await?,
    };
    state.store_login(&Login::new(&endpoint, info.server, info.user.clone()), &token)?;
    let logged_in = LoggedIn {
        url: endpoint.url,
        server: info.server.to_string(),
        user: info.user.to_string(),
        role: info.role,
        expires_ms: info.expires_ms,
    };
    context.printer.result(&logged_in, |login| {
        let until = login.expires_ms.map_or(String::new(), |ms| format!(", until {}", output::moment(ms)));
        format!("logged in to {} as {} ({}{until})", login.url, login.user, login.role)
    })?;
    Ok(())
}

async fn ask(url: &str, trust: Trust, token: &str) -> Result<(Endpoint, ServerInfo), RemoteError> {
    let endpoint = Endpoint::new(url, trust)?;
    let info = Remote::new(endpoint.clone(), token)?.server_info().await?;
    Ok((endpoint, info))
}

/// Asks a server of whose certificate nothing was said. One that is known has to show what it showed before, or what an authority
/// vouches for; one that is not is vouched for by an authority, or by whoever sits here.
async fn find(url: &str, known: Option<Login>, token: &str) -> anyhow::Result<(Endpoint, ServerInfo)> {
    let address = Endpoint::new(url, Trust::Authorities)?.url;
    let known = known.filter(|login| login.url == address);
    let changed = match known.as_ref().and_then(|login| login.fingerprint) {
        None => None,
        Some(pinned) => match ask(url, Trust::Pinned(pinned), token).await {
            Err(error @ RemoteError::OtherCertificate { .. }) => Some(error),
            asked => return Ok(asked?),
        },
    };
    match (ask(url, Trust::Authorities, token).await, changed) {
        (Err(RemoteError::UnknownCertificate { .. }), Some(changed)) => Err(changed.into()),
        (Err(RemoteError::UnknownCertificate { url: shown, found }), None)
            if known.is_none() && accepts(&shown, &found.to_string())? =>
        {
            Ok(ask(url, Trust::Pinned(found), token).await?)
        }
        (asked, _) => Ok(asked?),
    }
}

fn read_token() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// Asks a person whether an unknown certificate is the right one; nobody there means no.
fn accepts(url: &str, fingerprint: &str) -> std::io::Result<bool> {
    let mut stderr = std::io::stderr();
    if !std::io::stdin().is_terminal() || !stderr.is_terminal() {
        return Ok(false);
    }
    writeln!(stderr, "No authority known here vouches for {url}. Its certificate is\n  {fingerprint}")?;
    write!(stderr, "Is that what `satchel-server fingerprint` prints on the server? Type yes to pin it: ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
