//! What became of the last request to a server, whatever it was for: a chunk, a sync, a lease.

use std::sync::{Arc, Mutex, PoisonError};

use reqwest::StatusCode;
use tokio::time::Instant;

use super::RemoteError;
use super::error::chain;

/// What the last request met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contact {
    /// The server did what it is there for, be it to say no.
    Served,
    /// It did not.
    Failed {
        /// Whether it answered all the same: with a failure of its own, or that it does not know this machine.
        answers: bool,
        /// Why, in words.
        reason: String,
    },
}

/// The same, shared by all who ask the server.
#[derive(Clone, Debug, Default)]
pub(super) struct LastContact(Arc<Mutex<Option<(Contact, Instant)>>>);

impl LastContact {
    /// What it met, and when; none before anything was asked.
    pub(super) fn get(&self) -> Option<(Contact, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn served(&self) {
        self.set(Contact::Served);
    }

    pub(super) fn failed(&self, error: &RemoteError) {
        let answers = match error {
            RemoteError::Refused { status, .. } if !is_failure(*status) => return self.served(),
            RemoteError::Refused { .. } => true,
            _ => false,
        };
        self.set(Contact::Failed { answers, reason: chain(error) });
    }

    fn set(&self, contact: Contact) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((contact, Instant::now()));
    }
}

/// Whether an answer says that nothing is to be had at present, and not just what was asked for.
fn is_failure(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: StatusCode) -> RemoteError {
        RemoteError::Refused {
            status,
            code: String::new(),
            message: "no".to_owned(),
            details: serde_json::Value::Null,
            retry_after_s: None,
        }
    }

    #[test]
    fn the_last_request_counts_and_a_refusal_of_what_it_asked_for_is_an_answer() {
        let last = LastContact::default();
        assert_eq!(last.get(), None);
        let met = || last.get().map(|(contact, _)| contact);
        let failed = |answers, reason: &str| Some(Contact::Failed { answers, reason: reason.to_owned() });
        last.clone().failed(&RemoteError::Stalled { url: "https://a".to_owned(), seconds: 60 });
        assert_eq!(
            met(),
            failed(false, "cannot reach https://a: nothing that was sent to it got on for 60 s")
        );
        for status in [StatusCode::NOT_FOUND, StatusCode::CONFLICT, StatusCode::FORBIDDEN] {
            last.failed(&refused(StatusCode::SERVICE_UNAVAILABLE));
            assert_eq!(met(), failed(true, "no"));
            last.failed(&refused(status));
            assert_eq!(met(), Some(Contact::Served), "{status}");
        }
        last.failed(&refused(StatusCode::UNAUTHORIZED));
        assert_eq!(met(), failed(true, "no"));
        last.served();
        assert_eq!(met(), Some(Contact::Served));
    }
}
