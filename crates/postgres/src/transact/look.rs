//! What is stored of rows, without writing anything.

use tokio_postgres::Row;

use super::{Failure, Locks, Work, arrange, covered, read::read};
use crate::{
    TargetError,
    array::Array,
    error::{Fault, FaultKind},
    pool::Pool,
    session::{Call, Frame, Session},
    target::Purpose,
};
use cdc_model::{ColumnKind, RowState};

/// Of one unit's row.
#[derive(Default)]
pub(crate) struct Stored {
    /// What the query of its kind selects of it, from column 1 on; `None` if it is in no target table.
    pub(crate) live: Option<Row>,
    /// All that is known, remains and the deletions that cover it included.
    pub(crate) state: RowState,
}

/// All of one moment, in the order of the units, which are of one table. `queries` are of
/// [`crate::layout::Relation::select_of_each`].
pub(crate) async fn look(
    pool: &Pool,
    work: &Work<'_>,
    queries: &[(ColumnKind, String)],
) -> Result<Vec<Stored>, Failure> {
    debug_assert_eq!(work.context.purpose, Purpose::Refuse, "nothing is parked here");
    let mut refusals = Vec::new();
    // A key that PostgreSQL cannot hold is not there.
    let mut tables = arrange(work, &mut refusals);
    let mut session = Session::acquire(pool).await?;
    let result = attempt(&mut session, work, &mut tables, queries).await;
    match result {
        Ok(stored) => {
            session.rollback().await;
            Ok(stored)
        }
        Err(super::Attempt::Fault(fault)) => {
            session.abandon(&fault).await;
            Err(match fault.kind {
                FaultKind::Plan => Failure::Again,
                FaultKind::Schema => Failure::Schema(fault),
                _ => failed(fault),
            })
        }
        Err(super::Attempt::Failure(failure)) => {
            session.rollback().await;
            Err(failure)
        }
    }
}

fn failed(fault: Fault) -> Failure {
    Failure::Other(TargetError::Database { doing: "look at rows", fault })
}

async fn attempt(
    session: &mut Session,
    work: &Work<'_>,
    tables: &mut [super::TableWork<'_>],
    queries: &[(ColumnKind, String)],
) -> Result<Vec<Stored>, super::Attempt> {
    read(session, Frame::Snapshot, work, tables, &Locks::new()).await?;
    let mut stored: Vec<Stored> = work.units.iter().map(|_| Stored::default()).collect();
    for table in tables {
        let mut calls = Vec::new();
        let mut asked = Vec::new();
        for (kind, sql) in queries {
            let relation = table.layout.relation(*kind).expect("there is a query for it");
            let of_kind = || table.touched.iter().filter(|row| row.kind() == *kind);
            let mut arrays: Vec<Array> = relation.key.iter().map(|column| Array::new(column.pg.clone())).collect();
            for row in of_kind() {
                for (array, value) in arrays.iter_mut().zip(&row.key) {
                    array.push(Some(value.clone()));
                }
            }
            if arrays.first().is_some_and(|array| !array.is_empty()) {
                asked.push(
                    of_kind().map(|row| (row.unit.expect("no partition was read"), row.collides)).collect::<Vec<_>>(),
                );
                calls.push(arrays.into_iter().fold(Call::new(sql), Call::with));
            }
        }
        for row in &mut table.touched {
            // The row there is another one's.
            if row.collides {
                continue;
            }
            let covering =
                table.tombstones[row.tombstones].merged.covering(&table.layout.schema, row.clustering.as_ref());
            let state = covered(std::mem::take(&mut row.before), covering);
            stored[row.unit.expect("no partition was read")].state = state;
        }
        let answers = session.run(Frame::Inside, calls).await?;
        for (units, rows) in asked.iter().zip(answers) {
            for row in rows {
                let (unit, collides) = units[super::read::ordinal(&row)];
                if !collides {
                    stored[unit].live = Some(row);
                }
            }
        }
    }
    Ok(stored)
}
