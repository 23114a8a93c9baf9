//! Exit codes, part of the command line's contract.

use std::process::ExitCode;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    Success = 0,
    /// Something failed while running.
    Failure = 1,
    /// The command line is wrong (clap exits with the same code).
    Usage = 2,
    /// Two stores that should be equal were proven not to be.
    Drift = 7,
    /// What was read is damaged in part.
    Damage = 65,
    /// A server we depend on cannot be reached, or cannot be used as it is set up.
    Unavailable = 69,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that says with which code the process ends; any other error ends it with [`Exit::Failure`].
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{message}")]
pub struct Refusal {
    pub exit: Exit,
    pub message: String,
}

impl Refusal {
    pub fn config(message: impl Into<String>) -> Self {
        Self { exit: Exit::Config, message: message.into() }
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unavailable, message: message.into() }
    }
}

impl Exit {
    /// The code an error ends the process with.
    pub fn of(error: &anyhow::Error) -> Self {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            refusal.exit
        } else if error.is::<crate::config::ConfigErrors>() {
            Self::Config
        } else {
            Self::Failure
        }
    }
}
