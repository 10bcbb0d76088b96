//! Power cuts by the million: what was written to a disk is taken from a record, and after each cut that there may have been, it is
//! judged what would boot.

mod cuts;
mod fat;
mod judge;
mod rebuild;
mod record;
mod store;
#[cfg(test)]
mod tests;

pub use cuts::{Kind, Report, Subject, sweep};
pub use fat::add_name;
pub use judge::{Boots, Judge, Known};
pub use rebuild::rebuild;
pub use record::{EMPTY_RECORD, Event, read_record};
pub use store::{StoreJudge, Tree};
