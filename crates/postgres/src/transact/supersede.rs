//! Rows that leave nothing of an older one, which therefore need not be read.

use std::ops::Range;

use cdc_model::RowState;
use tokio_postgres::{Row, types::Type};

use super::{STATEMENTS_MAX, TableWork, Work, read::ordinal};
use crate::{array::Array, layout::Relation, session::Call};

impl<'w> TableWork<'w> {
    /// A statement that puts those rows of a range that can in the place of what is older, and which they are; `None` if
    /// that is not most of them, or anything is deleted.
    pub(super) fn supersede_rows(
        &self,
        relation: &'w Relation,
        range: Range<usize>,
        work: &Work<'_>,
    ) -> Option<(Call<'w>, Vec<usize>)> {
        if !can_supersede(relation) || !self.only_shows(work) {
            return None;
        }
        let types = relation.columns().map(|column| column.pg.clone()).chain([Type::INT8]);
        let mut arrays: Vec<Array> = types.map(Array::new).collect();
        let mut given = Vec::with_capacity(range.len());
        let (mut values, mut bytes) = (Vec::new(), 0);
        for row in range.clone() {
            let touched = &self.touched[row];
            let Some(change) = touched.change.filter(|change| has_all(change, relation)) else { continue };
            values.clear();
            // A value without a form in PostgreSQL is refused where it is merged.
            if relation.encode(change, work.context.now, &mut values) != Ok(true) || values.iter().any(Option::is_none)
            {
                continue;
            }
            values.push(Some(change.newest_write().0.to_be_bytes().into()));
            bytes += values.iter().flatten().map(|value| value.len()).sum::<usize>();
            for (array, value) in arrays.iter_mut().zip(touched.key.iter().chain(values.iter().flatten())) {
                array.push(Some(value));
            }
            given.push(row);
        }
        if 2 * given.len() < range.len() || bytes > STATEMENTS_MAX {
            return None;
        }
        let call = arrays.into_iter().fold(Call::new(&relation.sql.supersede), Call::with);
        Some((call.with(self.layout.schema.id.0), given))
    }

    /// Whether most rows of a range might have superseded what was read instead.
    pub(super) fn might_supersede(&self, rows: &[Row], range: &Range<usize>) -> bool {
        let relation = &self.layout.rows;
        let older = |row: &&Row| {
            // Uniform, that is without a state.
            let uniform = row.get::<_, Option<&[u8]>>(4).is_none();
            let change = self.touched[range.start + ordinal(row)].change.filter(|change| has_all(change, relation));
            let time = change.and_then(|change| change.liveness).map(|marker| marker.time.0);
            uniform && time.is_some_and(|time| row.get::<_, i64>(3) < time)
        };
        can_supersede(relation) && 2 * rows.iter().filter(older).count() >= range.len()
    }
}

/// A key that is stored beside its columns must be looked at; and a table without other columns is never updated.
fn can_supersede(relation: &Relation) -> bool {
    !relation.stores_key && !relation.values.is_empty()
}

fn has_all(change: &RowState, relation: &Relation) -> bool {
    change.columns.len() == relation.values.len() && change.liveness.is_some()
}
