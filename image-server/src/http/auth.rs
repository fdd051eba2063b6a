//! Who is asking: every request behind this layer has a valid token, and a [`Caller`] made of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use chunk_format::Name;

use crate::app::App;
use crate::clock::{format_ms, now_ms};
use crate::database::commit;
use crate::database::tokens::{self, TokenId, TokenRow, UserId};
use crate::http::error::ApiError;
use crate::limits::MAX_TOKEN_BYTES;
use crate::role::Role;
use crate::secret::SecretHash;
use crate::server::connection::InUse;
use crate::tokens::TokenState;

/// How exact a token's last use is kept.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// The bearer of a valid token.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) token: TokenId,
    pub(crate) user_id: UserId,
    pub(crate) user: Name,
    pub(crate) role: Role,
    pub(crate) expires_ms: Option<i64>,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    /// Takes what the layer found out. A route outside the layer has no caller, and so cannot be one that asks for it.
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::internal(NotAuthenticated))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a route that needs a caller stands outside the authentication layer")]
struct NotAuthenticated;

/// Lets a request pass with a valid token only.
pub(crate) async fn require_token(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    match authenticate(&app, request.headers()).await {
        Ok(caller) => {
            if let Some(in_use) = request.extensions_mut().remove::<InUse>()
                && !in_use.is_known(|| app.connections.try_acquire(caller.user_id).ok())
            {
                let mut response = ApiError::Busy(None).into_response();
                response.extensions_mut().insert(caller);
                return response;
            }
            request.extensions_mut().insert(caller.clone());
            let mut response = next.run(request).await;
            response.extensions_mut().insert(caller);
            response
        }
        Err(error) => error.into_response(),
    }
}

async fn authenticate(app: &Arc<App>, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let refused = |message: &str| ApiError::Unauthorized(message.to_owned());
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(refused("a token is needed: `authorization: Bearer TOKEN`"));
    };
    let token = bearer(value).ok_or_else(|| refused("`authorization` must be `Bearer` and a token"))?;
    // Looked up by its hash, so that the time taken says nothing about how much of a token was right.
    let found = tokens::find(app.database.readers(), SecretHash::of(token)).await?;
    let now = now_ms();
    let Some(row) = found else { return Err(refused("the token is not known here")) };
    match row.state(now) {
        TokenState::Valid => {}
        TokenState::Revoked => return Err(refused("the token was revoked: ask for a new one")),
        TokenState::Expired => {
            let ended = format_ms(row.expires_ms.unwrap_or(now));
            return Err(ApiError::Unauthorized(format!("the token expired at {ended}: ask for a new one")));
        }
    }
    app.uses.note(app, row.id, now, row.last_used_ms);
    let TokenRow { id: token, user_id, user, role, expires_ms, .. } = row;
    Ok(Caller { token, user_id, user, role, expires_ms })
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    let token = token.trim_ascii();
    let fits = !token.is_empty() && token.len() <= MAX_TOKEN_BYTES;
    (scheme.eq_ignore_ascii_case(b"Bearer ") && fits).then_some(token)
}

/// When each token's use was last written down by this process.
#[derive(Debug, Default)]
pub(crate) struct TokenUses {
    /// Held for a look and an insert, never over anything that waits.
    noted: Mutex<HashMap<TokenId, Instant>>,
}

impl TokenUses {
    /// Writes down a token's use, at most once a minute and beside the request: a database that takes no writes must not
    /// stop reads.
    fn note(&self, app: &Arc<App>, token: TokenId, now_ms: i64, last_used_ms: Option<i64>) {
        let interval_ms = i64::try_from(TOUCH_INTERVAL.as_millis()).unwrap_or(i64::MAX);
        if last_used_ms.is_some_and(|last_ms| now_ms.saturating_sub(last_ms) < interval_ms) {
            return;
        }
        {
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            if noted.get(&token).is_some_and(|at| at.elapsed() < TOUCH_INTERVAL) {
                return;
            }
            noted.insert(token, Instant::now());
        }
        let app = app.clone();
        app.clone().tasks.spawn(async move {
            let written = async {
                let mut tx = app.database.begin().await?;
                tokens::touch(&mut *tx, token, now_ms).await?;
                commit(tx).await
            };
            if let Err(error) = written.await {
                tracing::warn!(%error, "a token's last use could not be noted");
            }
        });
    }
}
