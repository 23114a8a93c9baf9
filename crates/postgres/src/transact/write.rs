//! Statements that write what a merge made new.

use cdc_model::{ColumnKind, LocalTime, RowState, Token, ValueBytes, encode_row};
use tokio_postgres::types::Type;

use super::{Touched, Version};
use crate::{
    array::{Array, CopyRows},
    layout::{Layout, Relation, join_key},
    session::Call,
    value::{Unrepresentable, timestamptz},
};

const INSERT_REMAINS: &str = "-- cdc: insert remains\ninsert into _cdc.remains (table_id, partition_key, clustering, state) \
    select $1::uuid, * from unnest($2::bytea[], $3::bytea[], $4::bytea[])";
const UPDATE_REMAINS: &str = "-- cdc: update remains\nwith written as (update _cdc.remains as t set state = k.s \
    from unnest($1::tid[], $2::xid[], $3::bytea[]) as k(c, x, s) where t.ctid = k.c and t.xmin = k.x returning 1) \
    select _cdc.require((select count(*) from written), cardinality($1))";
const DELETE_REMAINS: &str = "-- cdc: delete remains\nwith written as (delete from _cdc.remains as t \
    using unnest($1::tid[], $2::xid[]) as k(c, x) where t.ctid = k.c and t.xmin = k.x returning 1) \
    select _cdc.require((select count(*) from written), cardinality($1))";

/// Columns of the statements that write one relation.
struct RelationWrites<'w> {
    relation: &'w Relation,
    insert: Inserts,
    update: Vec<Array>,
    delete: Vec<Array>,
    inserts: usize,
    updates: usize,
    deletes: usize,
}

/// New rows.
enum Inserts {
    Statement(Vec<Array>),
    Copy(CopyRows),
}

pub(super) struct Writes<'w> {
    layout: &'w Layout,
    relations: Vec<RelationWrites<'w>>,
    insert_remains: [Array; 3],
    update_remains: [Array; 3],
    delete_remains: [Array; 2],
    pub(super) inserted_remains: Vec<Token>,
    updated_remains: usize,
    deleted_remains: usize,
    /// Of all values and states, roughly what the statements come to.
    pub(super) bytes: usize,
    /// Of the row at hand.
    values: Vec<Option<ValueBytes>>,
}

fn versions() -> [Array; 2] {
    [Array::new(Type::TID), Array::new(Type::XID)]
}

impl<'w> RelationWrites<'w> {
    fn new(relation: &'w Relation, copies: bool) -> Self {
        let array = |ty: &Type| Array::new(ty.clone());
        let key = relation.key.iter().map(|c| array(&c.pg));
        let values = || {
            let metas = [Type::INT8, Type::BYTEA, Type::TIMESTAMPTZ];
            relation.values.iter().map(|(_, c)| c.pg.clone()).chain(metas).map(Array::new)
        };
        let fixed = std::iter::once(array(&Type::INT8)).chain(relation.stores_key.then(|| array(&Type::BYTEA)));
        Self {
            insert: match copies {
                true => Inserts::Copy(CopyRows::new()),
                false => Inserts::Statement(key.chain(fixed).chain(values()).collect()),
            },
            update: versions().into_iter().chain(values()).collect(),
            delete: versions().into(),
            relation,
            inserts: 0,
            updates: 0,
            deletes: 0,
        }
    }
}

fn push_all<V: AsRef<[u8]>>(arrays: &mut [Array], values: impl IntoIterator<Item = Option<V>>) {
    for (array, value) in arrays.iter_mut().zip(values) {
        array.push(value);
    }
}

impl Inserts {
    fn push<'v>(&mut self, values: impl Iterator<Item = Option<&'v [u8]>> + Clone) {
        match self {
            Self::Statement(arrays) => push_all(arrays, values),
            Self::Copy(rows) => rows.push(values),
        }
    }
}

impl<'w> Writes<'w> {
    /// `copies`: kinds of relations whose new rows may be copied.
    pub(super) fn new(layout: &'w Layout, copies: &[ColumnKind]) -> Self {
        let bytea = || Array::new(Type::BYTEA);
        let [c, x] = versions();
        Self {
            layout,
            relations: std::iter::once(&layout.rows)
                .chain(&layout.statics)
                .map(|relation| RelationWrites::new(relation, copies.contains(&relation.kind)))
                .collect(),
            insert_remains: [bytea(), bytea(), bytea()],
            update_remains: [c, x, bytea()],
            delete_remains: versions(),
            inserted_remains: Vec::new(),
            updated_remains: 0,
            deleted_remains: 0,
            bytes: 0,
            values: Vec::new(),
        }
    }

    /// Puts a row where it belongs by its new state; nothing is put if a value has no form in PostgreSQL.
    pub(super) fn put(
        &mut self,
        row: &Touched<'_>,
        after: &RowState,
        now: LocalTime,
    ) -> Result<(), (String, Unrepresentable)> {
        let kind = row.kind();
        let writes = self.relations.iter_mut().find(|writes| writes.relation.kind == kind).expect("has such columns");
        let relation = writes.relation;
        let version = |version: &Version| [Some(version.ctid.clone()), Some(version.xmin.clone())];
        if !after.is_visible(now) {
            if let Some(live) = &row.live {
                push_all(&mut writes.delete, version(live));
                writes.deletes += 1;
            }
            let state = (!after.is_empty()).then(|| encode_row(&self.layout.schema, after));
            self.bytes += state.as_ref().map_or(0, bytes::Bytes::len);
            match (&row.remains, state) {
                (None, None) => {}
                (None, Some(state)) => {
                    self.inserted_remains.push(row.token);
                    push_all(
                        &mut self.insert_remains,
                        [row.partition.clone(), row.remains_key(), state.into()].map(Some),
                    );
                }
                (Some(remains), Some(state)) => {
                    self.updated_remains += 1;
                    push_all(&mut self.update_remains, version(remains).into_iter().chain([Some(state.into())]));
                }
                (Some(remains), None) => {
                    self.deleted_remains += 1;
                    push_all(&mut self.delete_remains, version(remains));
                }
            }
            return Ok(());
        }
        let values = &mut self.values;
        values.clear();
        let uniform = relation.encode(after, now, values)?;
        values.push(Some(after.newest_write().0.to_be_bytes().into()));
        values.push((!uniform).then(|| encode_row(&self.layout.schema, after).into()));
        values.push(after.next_expiry(now).map(|expiry| timestamptz(expiry.0)));
        self.bytes += values.iter().flatten().map(|value| value.len()).sum::<usize>();
        let values = values.iter().map(|value| value.as_deref());
        match &row.live {
            Some(live) => {
                push_all(
                    &mut writes.update,
                    [&live.ctid, &live.xmin].map(|part| Some(&**part)).into_iter().chain(values),
                );
                writes.updates += 1;
            }
            None => {
                let token = row.token.0.to_be_bytes();
                let stored = relation.stores_key.then(|| join_key(&row.partition, row.clustering.as_ref()));
                let fixed = std::iter::once(&token[..]).chain(stored.as_deref());
                let key = row.key.iter().map(|part| &**part).chain(fixed).map(Some);
                writes.insert.push(key.chain(values));
                writes.inserts += 1;
            }
        }
        if let Some(remains) = &row.remains {
            self.deleted_remains += 1;
            push_all(&mut self.delete_remains, version(remains));
        }
        Ok(())
    }

    pub(super) fn calls(self, calls: &mut Vec<Call<'w>>) {
        let id = self.layout.schema.id.0;
        let fill = |call: Call<'w>, arrays: Vec<Array>| arrays.into_iter().fold(call, Call::with);
        // Deletes first: a key may come free for another row of a unique index.
        for writes in self.relations {
            let sql = &writes.relation.sql;
            calls.extend((writes.deletes > 0).then(|| fill(Call::new(&sql.delete), writes.delete)));
            calls.extend((writes.updates > 0).then(|| fill(Call::new(&sql.update), writes.update)));
            calls.extend((writes.inserts > 0).then(|| match writes.insert {
                Inserts::Statement(arrays) => fill(Call::new(&sql.insert), arrays),
                Inserts::Copy(rows) => Call::copy(&sql.copy, rows),
            }));
        }
        let remains = |sql, arrays: Vec<Array>| fill(Call::new(sql), arrays);
        calls.extend((self.deleted_remains > 0).then(|| remains(DELETE_REMAINS, self.delete_remains.into())));
        calls.extend((self.updated_remains > 0).then(|| remains(UPDATE_REMAINS, self.update_remains.into())));
        calls.extend(
            (!self.inserted_remains.is_empty())
                .then(|| fill(Call::new(INSERT_REMAINS).with(id), self.insert_remains.into())),
        );
    }
}
