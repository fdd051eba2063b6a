//! Syncs between machines through the real server: what is sent, what arrives, and what cuts and races leave behind.

mod bucket;
mod changes;
mod discards;
mod files;
mod fleet;
mod forks;
mod history;
mod kills;
mod lost;
mod machines;
mod mounted;
mod offline;
mod push;
mod removal;
mod story;
mod trickle;
