//! Real guests on desktops of a real image: Debian in an emulated machine, one at a time.

mod broken;
mod follow;
mod killed;
mod kvm;
mod profile;
mod server;
mod service;

use std::time::Duration;

/// How long a guest may take to come up or go down, emulated on a loaded machine.
const BOOT_LIMIT: Duration = Duration::from_secs(420);
