//! Up to where everything that was sent is acknowledged.
//!
//! Records are counted per batch, not one by one: a delivery report carries its batch's number and takes one off
//! that batch's count. The position follows the oldest batch that is not yet complete, so it never passes a record
//! that is not acknowledged, in whatever order the reports of different partitions arrive.

use std::collections::{HashMap, VecDeque};

use cdc_model::SegmentPosition;
use tokio::sync::oneshot;

use crate::KafkaError;

/// What a delivery report answers: a batch, or a single record whose sender waits.
pub(crate) type Ticket = usize;

const SINGLE: Ticket = 1 << (Ticket::BITS - 1);

#[derive(Default)]
pub(crate) struct Acknowledgements {
    /// Batches not yet passed, oldest first.
    batches: VecDeque<Batch>,
    /// Number of the oldest of them.
    first: Ticket,
    singles: HashMap<Ticket, oneshot::Sender<Result<(), KafkaError>>>,
    next_single: Ticket,
}

struct Batch {
    /// Records without report, and one more until all are sent.
    outstanding: usize,
    upto: SegmentPosition,
}

impl Acknowledgements {
    pub(crate) fn open_batch(&mut self, upto: SegmentPosition) -> Ticket {
        self.batches.push_back(Batch { outstanding: 1, upto });
        self.first + self.batches.len() - 1
    }

    pub(crate) fn sending(&mut self, batch: Ticket, records: usize) {
        self.batch(batch).outstanding += records;
    }

    /// Takes `records` off a batch; gives the position if it moved.
    pub(crate) fn settle(&mut self, batch: Ticket, records: usize) -> Option<SegmentPosition> {
        let batch = self.batch(batch);
        batch.outstanding -= records;
        let mut position = None;
        while let Some(done) = self.batches.pop_front_if(|batch| batch.outstanding == 0) {
            self.first += 1;
            position = Some(done.upto);
        }
        position
    }

    fn batch(&mut self, batch: Ticket) -> &mut Batch {
        &mut self.batches[batch - self.first]
    }

    pub(crate) fn open_single(&mut self) -> (Ticket, oneshot::Receiver<Result<(), KafkaError>>) {
        let (answer, receiver) = oneshot::channel();
        let ticket = SINGLE | self.next_single;
        self.next_single += 1;
        self.singles.insert(ticket, answer);
        (ticket, receiver)
    }

    /// Answers a single record's sender; `false` if the ticket is a batch's.
    pub(crate) fn answer(&mut self, ticket: Ticket, result: Result<(), KafkaError>) -> bool {
        if ticket & SINGLE == 0 {
            return false;
        }
        if let Some(answer) = self.singles.remove(&ticket) {
            // The sender may have gone.
            drop(answer.send(result));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use cdc_model::SegmentId;
    use proptest::prelude::*;

    use super::*;

    fn at(offset: u64) -> SegmentPosition {
        SegmentPosition { segment: SegmentId(1), offset }
    }

    proptest! {
        #[test]
        fn the_position_never_passes_an_unacknowledged_record(
            sizes in prop::collection::vec(0usize..5, 1..8),
            seed in any::<u64>(),
        ) {
            let mut acknowledgements = Acknowledgements::default();
            let mut reports = Vec::new();
            let mut durable = None;
            for (index, size) in sizes.iter().enumerate() {
                let ticket = acknowledgements.open_batch(at(index as u64));
                acknowledgements.sending(ticket, *size);
                reports.extend(std::iter::repeat_n((ticket, index), *size));
                durable = acknowledgements.settle(ticket, 1).or(durable);
            }
            let mut outstanding = sizes.clone();
            let mut state = seed | 1;
            while !reports.is_empty() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let picked = usize::try_from(state >> 33).unwrap() % reports.len();
                let (ticket, index) = reports.swap_remove(picked);
                outstanding[index] -= 1;
                durable = acknowledgements.settle(ticket, 1).or(durable);
                let complete = outstanding.iter().take_while(|left| **left == 0).count();
                prop_assert_eq!(durable, complete.checked_sub(1).map(|last| at(last as u64)));
            }
            prop_assert_eq!(durable, Some(at(sizes.len() as u64 - 1)));
        }
    }
}
