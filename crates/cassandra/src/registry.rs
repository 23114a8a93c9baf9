//! All schemas ever seen, by table id.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use cdc_model::{SchemaError, TableId, TableSchema};

/// What decoders look tables up in. Tables stay after they were dropped, because their mutations may still stand in
/// the log; columns keep their [`cdc_model::ColumnId`]. Clones share everything.
#[derive(Clone, Default, Debug)]
pub struct SchemaRegistry {
    tables: Arc<RwLock<HashMap<TableId, Arc<TableSchema>>>>,
}

impl SchemaRegistry {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn table(&self, id: TableId) -> Option<Arc<TableSchema>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Every table known, dropped ones too.
    pub fn tables(&self) -> Vec<Arc<TableSchema>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes over what is new; returns the tables that are new or differ from before.
    ///
    /// # Errors
    /// If a table would have more columns, dropped ones included, than can be numbered; the others are taken over.
    pub fn refresh(&self, schemas: Vec<TableSchema>) -> Result<Vec<Arc<TableSchema>>, SchemaError> {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let (mut changed, mut fault) = (Vec::new(), None);
        for newer in schemas {
            let id = newer.id;
            let evolved = match tables.get(&id) {
                Some(known) => match known.evolve(newer) {
                    Ok(evolved) if evolved == **known => continue,
                    Ok(evolved) => evolved,
                    Err(error) => {
                        fault.get_or_insert(error);
                        continue;
                    }
                },
                None => newer,
            };
            let evolved = Arc::new(evolved);
            tables.insert(id, evolved.clone());
            changed.push(evolved);
        }
        fault.map_or(Ok(changed), Err)
    }
}

impl cdc_commitlog::Schemas for SchemaRegistry {
    fn table(&self, id: TableId) -> Option<Arc<TableSchema>> {
        Self::table(self, id)
    }
}

#[cfg(test)]
mod tests {
    use cdc_model::{Column, ColumnKind, CqlType, KeyColumn};
    use uuid::Uuid;

    use super::*;

    fn table(id: u128, columns: &[&str]) -> TableSchema {
        TableSchema {
            id: TableId(Uuid::from_u128(id)),
            keyspace: "shop".into(),
            name: "users".into(),
            partition_key: vec![KeyColumn { name: "id".into(), ty: CqlType::Int, reversed: false }],
            clustering: vec![],
            columns: columns
                .iter()
                .map(|name| Column {
                    name: (*name).into(),
                    ty: CqlType::Text,
                    kind: ColumnKind::Regular,
                    dropped: None,
                })
                .collect(),
            cdc: true,
            gc_grace_seconds: 1,
        }
        .new()
        .unwrap()
    }

    #[test]
    fn columns_keep_their_ids_and_dropped_tables_stay() {
        let registry = SchemaRegistry::new();
        assert_eq!(registry.refresh(vec![table(1, &["m"])]).unwrap().len(), 1);
        assert!(registry.refresh(vec![table(1, &["m"])]).unwrap().is_empty(), "nothing changed");
        assert_eq!(registry.refresh(vec![table(1, &["a", "m"]), table(2, &["x"])]).unwrap().len(), 2);
        assert!(registry.refresh(vec![]).unwrap().is_empty());

        let evolved = registry.table(TableId(Uuid::from_u128(1))).unwrap();
        assert_eq!(evolved.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["m", "a"]);
        assert!(registry.table(TableId(Uuid::from_u128(2))).is_some());
        assert_eq!(registry.tables().len(), 2);
    }
}
