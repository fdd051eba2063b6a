//! The client of Satchel: publishes, mounts, runs and syncs desktops.
