//! What decoding needs to know of a table, looked up once instead of once per cell.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use cdc_model::{ColumnId, CqlType, TableSchema, WriteTime};

use crate::cursor::{Cursor, Fault};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `None`: the value has a length before it.
    Simple(Option<usize>),
    Counter,
    /// Several cells, each with a path.
    Complex,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderColumn {
    pub(crate) id: ColumnId,
    pub(crate) kind: Kind,
    dropped: Option<i64>,
}

impl HeaderColumn {
    /// What was written before the column was dropped belongs to no column any more.
    pub(crate) fn is_dropped(&self, time: WriteTime) -> bool {
        self.dropped.is_some_and(|dropped| time.0 <= dropped)
    }
}

/// The columns an update names, in the order of their cells.
#[derive(Debug)]
pub(crate) struct Columns {
    pub(crate) list: Box<[HeaderColumn]>,
    /// The order is that of the ids already, which a row state is sorted by.
    pub(crate) sorted: bool,
}

pub(crate) enum ColumnsError {
    Malformed(Fault),
    Unknown { column: String },
}

impl From<Fault> for ColumnsError {
    fn from(fault: Fault) -> Self {
        Self::Malformed(fault)
    }
}

/// Lists of columns remembered per table. Writers use few: one per kind of statement.
const REMEMBERED: usize = 8;

#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) table: Arc<TableSchema>,
    /// Fixed length of each clustering column's values.
    pub(crate) clustering: Box<[Option<usize>]>,
    by_name: HashMap<Box<[u8]>, HeaderColumn>,
    /// A column list as it stood in a header, and what it meant.
    remembered: Vec<(Box<[u8]>, Rc<Columns>)>,
    next: usize,
}

impl Layout {
    pub(crate) fn new(table: Arc<TableSchema>) -> Self {
        let column = |(id, column): (u16, &cdc_model::Column)| {
            let kind = match &column.ty {
                CqlType::Counter => Kind::Counter,
                ty if ty.is_multi_cell() => Kind::Complex,
                ty => Kind::Simple(ty.fixed_length()),
            };
            let dropped = table.dropped_until(&column.name);
            (column.name.as_bytes().into(), HeaderColumn { id: ColumnId(id), kind, dropped })
        };
        // Of two columns of one name, one is dropped and the other describes the cells, as in Cassandra's
        // `Columns.Serializer`.
        let (gone, live): (Vec<_>, Vec<_>) = (0u16..).zip(&table.columns).partition(|(_, c)| c.dropped.is_some());
        let by_name = gone.into_iter().chain(live).map(column).collect();
        let clustering = table.clustering.iter().map(|column| column.ty.fixed_length()).collect();
        Self { table, clustering, by_name, remembered: Vec::new(), next: 0 }
    }

    /// Reads a header's list of columns.
    pub(crate) fn columns(&mut self, cursor: &mut Cursor<'_>) -> Result<Rc<Columns>, ColumnsError> {
        let bytes = cursor.rest();
        // A list says its own length, so one that begins alike is alike.
        if let Some((known, columns)) = self.remembered.iter().find(|(known, _)| bytes.starts_with(known)) {
            cursor.take(known.len())?;
            return Ok(Rc::clone(columns));
        }
        let start = cursor.at();
        let count = cursor.length()?;
        let mut list = Vec::with_capacity(count.min(self.by_name.len()));
        for _ in 0..count {
            let length = cursor.length()?;
            let name = cursor.rest().get(..length).unwrap_or_default();
            cursor.take(length)?;
            match self.by_name.get(name) {
                Some(column) => list.push(*column),
                None => return Err(ColumnsError::Unknown { column: String::from_utf8_lossy(name).into_owned() }),
            }
        }
        let mut ids: Vec<ColumnId> = list.iter().map(|column| column.id).collect();
        let sorted = ids.is_sorted();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ColumnsError::Malformed("a column is named twice"));
        }
        let raw = bytes.get(..cursor.at() - start).unwrap_or_default().into();
        let columns = Rc::new(Columns { list: list.into(), sorted });
        let entry = (raw, Rc::clone(&columns));
        if self.remembered.len() < REMEMBERED {
            self.remembered.push(entry);
        } else {
            self.remembered[self.next] = entry;
            self.next = (self.next + 1) % REMEMBERED;
        }
        Ok(columns)
    }
}
