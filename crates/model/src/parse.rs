//! CQL type names as `system_schema.columns.type` spells them.

use std::cell::Cell;

use crate::CqlType;

#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum TypeError {
    #[error("type {0:?} is not valid CQL")]
    Syntax(String),
    #[error("user type {0:?} is unknown in its keyspace")]
    UnknownUdt(String),
}

/// Finds the fields of a user type by name, in declaration order, as CQL type names.
pub trait UdtResolver {
    fn keyspace(&self) -> &str;
    fn fields(&self, name: &str) -> Option<&[(String, String)]>;
}

/// Parses a type as in `map<text, frozen<list<int>>>`, user types resolved.
pub fn parse_type(text: &str, udts: &impl UdtResolver) -> Result<CqlType, TypeError> {
    let left = Cell::new(TYPES_MAX);
    let mut parser = Parser { text, rest: text, udts, depth: DEPTH_MAX, left: &left };
    let ty = parser.ty(false)?;
    if parser.rest.trim().is_empty() { Ok(ty) } else { Err(parser.error()) }
}

/// Types nested deeper than this are refused rather than recursed into: no value of theirs would be decoded.
const DEPTH_MAX: usize = 64;
/// User types that name each other twice grow with every level; no real one comes near.
const TYPES_MAX: usize = 10_000;

struct Parser<'a, U> {
    text: &'a str,
    rest: &'a str,
    udts: &'a U,
    depth: usize,
    left: &'a Cell<usize>,
}

impl<U: UdtResolver> Parser<'_, U> {
    fn error(&self) -> TypeError {
        TypeError::Syntax(self.text.to_owned())
    }

    fn skip(&mut self, token: char) -> Result<(), TypeError> {
        self.rest = self.rest.trim_start().strip_prefix(token).ok_or_else(|| self.error())?;
        Ok(())
    }

    fn peek(&self, token: char) -> bool {
        self.rest.trim_start().starts_with(token)
    }

    /// A bare word (lower-cased, as CQL does), or a quoted one with its quote character.
    fn word(&mut self) -> Result<(Option<char>, String), TypeError> {
        self.rest = self.rest.trim_start();
        if let Some(quote @ ('"' | '\'')) = self.rest.chars().next() {
            let mut word = String::new();
            loop {
                let (part, rest) = self.rest.split_at(1).1.split_once(quote).ok_or_else(|| self.error())?;
                word.push_str(part);
                self.rest = rest;
                // A doubled quote stands for one.
                if !rest.starts_with(quote) {
                    return Ok((Some(quote), word));
                }
                word.push(quote);
            }
        }
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        if word.is_empty() { Err(self.error()) } else { Ok((None, word.to_ascii_lowercase())) }
    }

    /// `<a, b, ...>`; everything inside a collection, tuple or vector is stored frozen.
    fn arguments(&mut self) -> Result<Vec<CqlType>, TypeError> {
        self.skip('<')?;
        let mut arguments = vec![self.ty(true)?];
        while self.peek(',') {
            self.skip(',')?;
            arguments.push(self.ty(true)?);
        }
        self.skip('>')?;
        Ok(arguments)
    }

    fn one(&mut self) -> Result<Box<CqlType>, TypeError> {
        match <[CqlType; 1]>::try_from(self.arguments()?) {
            Ok([only]) => Ok(Box::new(only)),
            Err(_) => Err(self.error()),
        }
    }

    fn ty(&mut self, frozen: bool) -> Result<CqlType, TypeError> {
        self.depth = self.depth.checked_sub(1).ok_or_else(|| self.error())?;
        self.left.set(self.left.get().checked_sub(1).ok_or_else(|| self.error())?);
        let ty = self.nested(frozen)?;
        self.depth += 1;
        Ok(ty)
    }

    fn nested(&mut self, frozen: bool) -> Result<CqlType, TypeError> {
        let (quote, word) = self.word()?;
        if quote == Some('\'') {
            return Ok(if word.ends_with(".EmptyType") { CqlType::Empty } else { CqlType::Custom(word) });
        }
        if quote.is_none()
            && let Some(ty) = native(&word)
        {
            return Ok(ty);
        }
        Ok(match (quote, word.as_str()) {
            (None, "frozen") => {
                self.skip('<')?;
                let ty = self.ty(true)?;
                self.skip('>')?;
                ty
            }
            (None, "list") => CqlType::List { element: self.one()?, frozen },
            (None, "set") => CqlType::Set { element: self.one()?, frozen },
            (None, "map") => match <[CqlType; 2]>::try_from(self.arguments()?) {
                Ok([key, value]) => CqlType::Map { key: Box::new(key), value: Box::new(value), frozen },
                Err(_) => return Err(self.error()),
            },
            (None, "tuple") => CqlType::Tuple(self.arguments()?),
            (None, "vector") => {
                self.skip('<')?;
                let element = Box::new(self.ty(true)?);
                self.skip(',')?;
                let dimension = self.word()?.1.parse().map_err(|_| self.error())?;
                self.skip('>')?;
                CqlType::Vector { element, dimension }
            }
            _ => self.udt(word, frozen)?,
        })
    }

    fn udt(&self, name: String, frozen: bool) -> Result<CqlType, TypeError> {
        let fields = self.udts.fields(&name).ok_or_else(|| TypeError::UnknownUdt(name.clone()))?;
        let fields = fields
            .iter()
            .map(|(field, text)| {
                let mut parser = Parser { text, rest: text, udts: self.udts, depth: self.depth, left: self.left };
                let ty = parser.ty(true)?;
                if parser.rest.trim().is_empty() { Ok((field.clone(), ty)) } else { Err(parser.error()) }
            })
            .collect::<Result<_, TypeError>>()?;
        Ok(CqlType::Udt { keyspace: self.udts.keyspace().to_owned(), name, fields, frozen })
    }
}

fn native(word: &str) -> Option<CqlType> {
    Some(match word {
        "ascii" => CqlType::Ascii,
        "bigint" => CqlType::BigInt,
        "blob" => CqlType::Blob,
        "boolean" => CqlType::Boolean,
        "counter" => CqlType::Counter,
        "date" => CqlType::Date,
        "decimal" => CqlType::Decimal,
        "double" => CqlType::Double,
        "duration" => CqlType::Duration,
        "empty" => CqlType::Empty,
        "float" => CqlType::Float,
        "inet" => CqlType::Inet,
        "int" => CqlType::Int,
        "smallint" => CqlType::SmallInt,
        "text" | "varchar" => CqlType::Text,
        "time" => CqlType::Time,
        "timestamp" => CqlType::Timestamp,
        "timeuuid" => CqlType::TimeUuid,
        "tinyint" => CqlType::TinyInt,
        "uuid" => CqlType::Uuid,
        "varint" => CqlType::Varint,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shop(Vec<(String, String)>);

    impl UdtResolver for Shop {
        fn keyspace(&self) -> &'static str {
            "shop"
        }
        fn fields(&self, name: &str) -> Option<&[(String, String)]> {
            (name == "address").then_some(&self.0)
        }
    }

    fn parse(text: &str) -> Result<CqlType, TypeError> {
        parse_type(text, &Shop(vec![("street".into(), "text".into()), ("tags".into(), "frozen<set<int>>".into())]))
    }

    #[test]
    fn collections_are_multi_cell_only_outside_frozen() {
        assert!(parse("map<text, frozen<list<int>>>").unwrap().is_multi_cell());
        assert!(!parse("frozen<map<text, int>>").unwrap().is_multi_cell());
        assert!(parse("address").unwrap().is_multi_cell());
        assert!(!parse("frozen<address>").unwrap().is_multi_cell());
        let CqlType::List { element, frozen: false } = parse("list<address>").unwrap() else { panic!("a list") };
        assert!(!element.is_multi_cell(), "what is inside a collection is frozen");
    }

    #[test]
    fn nested_types_and_vectors_parse() {
        assert_eq!(parse("vector<float, 3>").unwrap().fixed_length(), Some(12));
        assert_eq!(parse("vector<text, 3>").unwrap().fixed_length(), None);
        assert_eq!(parse("tuple<int, text>").unwrap(), CqlType::Tuple(vec![CqlType::Int, CqlType::Text]));
        assert_eq!(parse("vector<frozen<list<int>>, 2>").unwrap().fixed_length(), None);
        assert_eq!(parse("vector<vector<double, 2>, 3>").unwrap().fixed_length(), Some(48));
        assert!(matches!(parse("frozen<tuple<int, frozen<address>>>").unwrap(), CqlType::Tuple(_)));
    }

    #[test]
    fn every_native_type_is_known() {
        // `CQL3Type.Native`, and what of it has no length before its values.
        let natives = "ascii bigint:8 blob boolean:1 counter date decimal double:8 duration empty:0 float:4 inet int:4 \
                       smallint text time timestamp:8 timeuuid:16 tinyint uuid:16 varchar varint";
        for native in natives.split_whitespace() {
            let (name, length) = native.split_once(':').unwrap_or((native, ""));
            assert_eq!(parse(name).unwrap().fixed_length(), length.parse().ok(), "{name}");
            assert_eq!(parse(&name.to_uppercase()).unwrap(), parse(name).unwrap());
        }
    }

    #[test]
    fn java_classes_are_carried_with_the_length_their_values_have() {
        let class = |name: &str| parse(&format!("'org.apache.cassandra.db.marshal.{name}'")).unwrap();
        assert_eq!(class("EmptyType"), CqlType::Empty);
        let dynamic = "DynamicCompositeType(a=>org.apache.cassandra.db.marshal.LexicalUUIDType)";
        for name in [dynamic, "CompositeType(org.apache.cassandra.db.marshal.Int32Type)"] {
            assert_eq!(class(name), CqlType::Custom(format!("org.apache.cassandra.db.marshal.{name}")));
            assert_eq!(class(name).fixed_length(), None);
        }
        assert_eq!(class("LexicalUUIDType").fixed_length(), Some(16));
    }

    #[test]
    fn quoted_names_keep_their_case_and_quotes() {
        let quoted = Shop(vec![]);
        let error = parse_type(r#"frozen<"A ""b""">"#, &quoted).unwrap_err();
        assert_eq!(error, TypeError::UnknownUdt(r#"A "b""#.into()));
    }

    #[test]
    fn a_type_that_contains_itself_is_refused() {
        let shop = Shop(vec![("again".into(), "frozen<address>".into())]);
        assert!(matches!(parse_type("address", &shop), Err(TypeError::Syntax(_))));
        assert!(matches!(parse(&"frozen<".repeat(100_000)), Err(TypeError::Syntax(_))));
    }

    #[test]
    fn faults_name_the_type() {
        assert_eq!(parse("list<int"), Err(TypeError::Syntax("list<int".into())));
        assert_eq!(parse("nobody"), Err(TypeError::UnknownUdt("nobody".into())));
    }
}
