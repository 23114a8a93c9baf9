//! Logins from Vault, kept valid while they are used.
//!
//! The only crate that names `vaultrs`. One task ([`Vault::start`]) logs in, reads what was configured (key-value secrets,
//! logins of the database engine), renews what can be renewed at two thirds of its time, and replaces what cannot: users
//! hold [`Credentials`](cdc_runtime::credentials::Credentials) and see each new login with their next connection. While
//! Vault is sealed or away, what was issued counts on.
//!
//! **Invariant:** no token, password or secret id is in a log, an error or a status; paths and user names are.

mod client;
mod config;
mod keeper;
mod state;

pub use client::VaultError;
pub use config::{AppRole, Kubernetes, VaultConfig};
pub use keeper::{Logins, Vault};
pub use state::VaultState;
