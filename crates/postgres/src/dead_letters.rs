//! Dead letters: what could not be applied, kept whole in `_cdc.dlq` until someone deals with it.
//!
//! A letter is a change that PostgreSQL refused, or a Kafka record that is no change at all. It is written before the
//! position passes it; failing again, it stays one letter and counts its attempts.

mod error_type;
mod flood;
mod park;
mod read;
mod replay;

pub use error_type::ErrorType;
pub use flood::FloodLimit;
pub(crate) use flood::Floods;
pub use park::{Original, Origins, Undecoded};
pub(crate) use park::{park_change, park_record};
pub use read::{DeadLetter, LetterFilter, LetterStatus, LetterSummary, UnpublishedLetter};
pub use replay::{Decode, Replayed, Undecodable};
