//! What all users share and no one user may take for itself: who is slow holds itself up, and nobody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::database::tokens::UserId;

/// No user has more than this part of anything, one over this number.
const PART_OF_ONE_USER: usize = 4;

/// Places of which each user has a quarter at most.
pub(crate) struct Shares {
    all: Arc<Semaphore>,
    count: usize,
    /// Of every user that asked since the start: users are few. Held for a look and an insert, never over anything that waits.
    of_users: Mutex<HashMap<UserId, Arc<Semaphore>>>,
}

/// Some of one user's places; given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    _of_user: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Shares {
    pub(crate) fn new(count: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(count)), count, of_users: Mutex::default() }
    }

    /// Waits for places; whoever wants more than there are gets all there are, and of its own share likewise.
    ///
    /// # Errors
    /// None while this is there: nothing closes it.
    pub(crate) async fn acquire(&self, user: UserId, count: usize) -> Result<Share, AcquireError> {
        // The user's own first: what waits for them must hold none of the others'.
        let of_user = self.of_user(user).acquire_many_owned(limited(count, self.per_user())).await?;
        let of_all = self.all.clone().acquire_many_owned(limited(count, self.count)).await?;
        Ok(Share { _of_user: of_user, _of_all: of_all })
    }

    /// Takes a place if one is free.
    ///
    /// # Errors
    /// `NoPermits` when none is.
    pub(crate) fn try_acquire(&self, user: UserId) -> Result<Share, TryAcquireError> {
        let of_user = self.of_user(user).try_acquire_owned()?;
        Ok(Share { _of_user: of_user, _of_all: self.all.clone().try_acquire_owned()? })
    }

    /// Places that are taken, by whomever.
    pub(crate) fn taken(&self) -> usize {
        self.count.saturating_sub(self.all.available_permits())
    }

    fn per_user(&self) -> usize {
        self.count.div_ceil(PART_OF_ONE_USER)
    }

    fn of_user(&self, user: UserId) -> Arc<Semaphore> {
        let mut of_users = self.of_users.lock().unwrap_or_else(PoisonError::into_inner);
        of_users.entry(user).or_insert_with(|| Arc::new(Semaphore::new(self.per_user()))).clone()
    }
}

fn limited(count: usize, limit: usize) -> u32 {
    u32::try_from(count.min(limit)).unwrap_or(u32::MAX)
}
