//! The image server of Satchel: HTTPS API, object store, database.
