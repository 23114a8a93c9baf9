//! The seeded sequence of writes: the same seed gives the same statements, keys and values in the same order. Only write
//! times follow the clock.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use num_bigint::BigInt;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use scylla::value::{CqlDecimal, CqlTimestamp, CqlTimeuuid, CqlValue};
use uuid::Uuid;

/// Rows that updates and deletes choose from. Small enough that a run of seconds meets each of them many times.
const KNOWN_USERS: usize = 2_000;
const KNOWN_ORDERS: usize = 4_000;
/// Writes with equal write times fall on this many rows, so that ties really happen.
const CONTESTED_ROWS: usize = 12;
const DAYS: u32 = 20;
const SEQUENCES: i64 = 400;
const SHORT_TTL_SECONDS: std::ops::RangeInclusive<i32> = 3..=6;
const LONG_TTL_SECONDS: i32 = 86_400;

pub(crate) struct Write {
    pub(crate) cql: &'static str,
    pub(crate) values: Vec<Option<CqlValue>>,
}

pub(crate) enum Form {
    Single(Write),
    LoggedBatch(Vec<Write>),
    UnloggedBatch(Vec<Write>),
    /// A lightweight transaction; its write time is the server's ballot.
    Conditional(Write),
}

/// Which write time the client gives.
#[derive(Clone, Copy)]
pub(crate) enum WriteTime {
    Now,
    /// This many µs ago: an out-of-order write.
    Past(i64),
    /// Shared by all such writes within this second: a tie.
    ThisSecond,
}

pub(crate) struct Operation {
    pub(crate) form: Form,
    pub(crate) time: WriteTime,
    /// Set for a fresh user that nothing else writes to: once acknowledged it must become visible.
    pub(crate) sample: Option<Uuid>,
}

pub(crate) struct Writes {
    rng: ChaCha8Rng,
    users: Vec<Uuid>,
    orders: Vec<(Uuid, Uuid)>,
}

impl Writes {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let users: Vec<Uuid> = (0..CONTESTED_ROWS).map(|_| random_uuid(&mut rng)).collect();
        let orders = users.iter().map(|user| (*user, random_timeuuid(&mut rng))).collect();
        Self { rng, users, orders }
    }

    pub(crate) fn next_operation(&mut self) -> Operation {
        let time = match self.rng.random_range(0..100) {
            0..84 => WriteTime::Now,
            84..94 => WriteTime::Past(self.rng.random_range(1..60_000_000)),
            _ => WriteTime::ThisSecond,
        };
        let contested = matches!(time, WriteTime::ThisSecond);
        let form = match self.rng.random_range(0..100) {
            0..14 => return self.fresh_user(time),
            14..54 => Form::Single(self.user_write(contested)),
            54..78 => Form::Single(self.order_write(contested)),
            78..94 => Form::Single(self.event_write(contested)),
            94..97 => {
                let order = self.order_insert();
                Form::LoggedBatch(vec![order, self.user_write(contested), self.event_write(contested)])
            }
            97..99 => {
                let (user, order) = self.known_order(contested);
                Form::UnloggedBatch(vec![self.order_update(user, order), self.order_static(user)])
            }
            _ => Form::Conditional(self.conditional()),
        };
        Operation { form, time, sample: None }
    }

    /// Half of the fresh users are samples of the delay and never written to again.
    fn fresh_user(&mut self, time: WriteTime) -> Operation {
        let id = random_uuid(&mut self.rng);
        let sample = self.rng.random_bool(0.5).then_some(id);
        if sample.is_none() {
            remember(&mut self.rng, &mut self.users, KNOWN_USERS, id);
        }
        let values = self.user_values(id);
        let cql = "insert into shop.users (id, name, email, age, balance, score, visits, active, created_at, address, tags, \
                   preferences, logins, avatar) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        Operation { form: Form::Single(Write { cql, values }), time, sample }
    }

    fn user_values(&mut self, id: Uuid) -> Vec<Option<CqlValue>> {
        let rng = &mut self.rng;
        vec![
            Some(CqlValue::Uuid(id)),
            maybe(rng, text),
            maybe(rng, text),
            maybe(rng, |rng| CqlValue::Int(rng.random_range(-5..120))),
            maybe(rng, decimal),
            maybe(rng, double),
            maybe(rng, |rng| CqlValue::BigInt(rng.random())),
            maybe(rng, |rng| CqlValue::Boolean(rng.random())),
            maybe(rng, timestamp),
            maybe(rng, address),
            maybe(rng, |rng| CqlValue::Set(words(rng))),
            maybe(rng, text_map),
            maybe(rng, |rng| CqlValue::List((0..rng.random_range(0..4)).map(|_| timestamp(rng)).collect())),
            maybe(rng, |rng| CqlValue::Blob((0..rng.random_range(0..40)).map(|_| rng.random()).collect())),
        ]
    }

    fn user_write(&mut self, contested: bool) -> Write {
        let id = self.known_user(contested);
        let key = Some(CqlValue::Uuid(id));
        let rng = &mut self.rng;
        let ttl = |rng: &mut ChaCha8Rng| Some(CqlValue::Int(random_ttl(rng)));
        let (cql, mut values): (&'static str, Vec<Option<CqlValue>>) = match rng.random_range(0..37) {
            0..3 => ("update shop.users set name = ? where id = ?", vec![Some(text(rng))]),
            3..5 => ("update shop.users set balance = ? where id = ?", vec![maybe(rng, decimal)]),
            5..7 => (
                "update shop.users set age = ?, active = ? where id = ?",
                vec![maybe(rng, |rng| CqlValue::Int(rng.random_range(0..100))), Some(CqlValue::Boolean(rng.random()))],
            ),
            7 => ("update shop.users set score = ? where id = ?", vec![Some(double(rng))]),
            8 => ("update shop.users using ttl ? set email = ? where id = ?", vec![ttl(rng), Some(text(rng))]),
            9 => (
                "update shop.users using ttl ? set tags = tags + ?, preferences = preferences + ? where id = ?",
                vec![ttl(rng), Some(CqlValue::Set(words(rng))), Some(text_map(rng))],
            ),
            10 => ("update shop.users set address.city = ? where id = ?", vec![maybe(rng, text)]),
            11 => (
                "update shop.users set address.zip = ? where id = ?",
                vec![maybe(rng, |rng| CqlValue::Int(rng.random_range(0..99_999)))],
            ),
            12 => ("update shop.users set address = ? where id = ?", vec![maybe(rng, address)]),
            13..15 => ("update shop.users set tags = tags + ? where id = ?", vec![Some(CqlValue::Set(words(rng)))]),
            15 => ("update shop.users set tags = tags - ? where id = ?", vec![Some(CqlValue::Set(words(rng)))]),
            16 => ("update shop.users set tags = ? where id = ?", vec![maybe(rng, |rng| CqlValue::Set(words(rng)))]),
            17 => ("update shop.users set preferences[?] = ? where id = ?", vec![Some(word(rng)), maybe(rng, text)]),
            18 => ("delete preferences[?] from shop.users where id = ?", vec![Some(word(rng))]),
            19 => ("update shop.users set preferences = ? where id = ?", vec![maybe(rng, text_map)]),
            20..22 => (
                "update shop.users set logins = logins + ? where id = ?",
                vec![Some(CqlValue::List(vec![timestamp(rng)]))],
            ),
            22 => (
                "update shop.users set logins = ? + logins where id = ?",
                vec![Some(CqlValue::List(vec![timestamp(rng), timestamp(rng)]))],
            ),
            23 => ("update shop.users set logins = ? where id = ?", vec![Some(CqlValue::List(vec![timestamp(rng)]))]),
            24 => ("delete name, balance from shop.users where id = ?", vec![]),
            25 => ("delete tags, address from shop.users where id = ?", vec![]),
            26..28 => ("delete from shop.users where id = ?", vec![]),
            28..31 => {
                // All columns are spelled out but most stay unset: a partial insert, with the row's liveness.
                let cql = "insert into shop.users (name, visits, id) values (?, ?, ?)";
                (cql, vec![Some(text(rng)), Some(CqlValue::BigInt(rng.random_range(0..1_000)))])
            }
            31 => (
                "insert into shop.users (name, tags, id) values (?, ?, ?) using ttl 86400",
                vec![Some(text(rng)), Some(CqlValue::Set(words(rng)))],
            ),
            32 => {
                // The key comes before the TTL here.
                let values = vec![key, Some(text(rng)), ttl(rng)];
                return Write { cql: "insert into shop.users (id, name) values (?, ?) using ttl ?", values };
            }
            33 => ("insert into shop.users (id) values (?)", vec![]),
            34 => (
                "update shop.users set avatar = ? where id = ?",
                vec![Some(CqlValue::Blob((0..rng.random_range(0..200)).map(|_| rng.random()).collect()))],
            ),
            _ => (
                "update shop.users set created_at = ?, visits = ? where id = ?",
                vec![Some(timestamp(rng)), Some(CqlValue::BigInt(rng.random()))],
            ),
        };
        values.push(key);
        Write { cql, values }
    }

    fn order_write(&mut self, contested: bool) -> Write {
        if !contested && self.rng.random_bool(0.4) {
            return self.order_insert();
        }
        let (user, order) = self.known_order(contested);
        match self.rng.random_range(0..16) {
            0..9 => self.order_update(user, order),
            9..12 => self.order_static(user),
            12 | 13 => Write {
                cql: "delete from shop.orders where user_id = ? and order_id = ?",
                values: vec![Some(CqlValue::Uuid(user)), Some(timeuuid(order))],
            },
            14 => {
                let cql = if self.rng.random() {
                    "delete from shop.orders where user_id = ? and order_id >= ?"
                } else {
                    "delete from shop.orders where user_id = ? and order_id < ?"
                };
                Write { cql, values: vec![Some(CqlValue::Uuid(user)), Some(timeuuid(order))] }
            }
            _ => Write { cql: "delete from shop.orders where user_id = ?", values: vec![Some(CqlValue::Uuid(user))] },
        }
    }

    fn order_insert(&mut self) -> Write {
        let user = self.known_user(false);
        let rng = &mut self.rng;
        let order = random_timeuuid(rng);
        remember(rng, &mut self.orders, KNOWN_ORDERS, (user, order));
        let values = vec![
            Some(CqlValue::Uuid(user)),
            Some(timeuuid(order)),
            Some(word(rng)),
            maybe(rng, decimal),
            maybe(rng, |rng| CqlValue::Int(rng.random_range(0..50))),
            Some(timestamp(rng)),
            maybe(rng, int_map),
            maybe(rng, |rng| CqlValue::List((0..rng.random_range(0..3)).map(|_| text(rng)).collect())),
            maybe(rng, |rng| CqlValue::Set(words(rng))),
            maybe(rng, address),
            maybe(rng, double),
        ];
        let cql = "insert into shop.orders (user_id, order_id, status, total, quantity, placed_at, items, notes, labels, \
                   ship_to, discount) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        Write { cql, values }
    }

    fn order_update(&mut self, user: Uuid, order: Uuid) -> Write {
        let rng = &mut self.rng;
        let (cql, mut values): (&'static str, Vec<Option<CqlValue>>) = match rng.random_range(0..12) {
            0..3 => ("update shop.orders set status = ? where user_id = ? and order_id = ?", vec![Some(word(rng))]),
            3 => (
                "update shop.orders set total = ?, quantity = ? where user_id = ? and order_id = ?",
                vec![maybe(rng, decimal), maybe(rng, |rng| CqlValue::Int(rng.random_range(0..50)))],
            ),
            4 => (
                "update shop.orders set items = items + ? where user_id = ? and order_id = ?",
                vec![Some(int_map(rng))],
            ),
            5 => ("update shop.orders set items = items - ? where user_id = ? and order_id = ?", {
                vec![Some(CqlValue::Set(words(rng)))]
            }),
            6 => ("update shop.orders set notes = notes + ? where user_id = ? and order_id = ?", {
                vec![Some(CqlValue::List(vec![text(rng)]))]
            }),
            7 => ("update shop.orders set notes = ? + notes where user_id = ? and order_id = ?", {
                vec![Some(CqlValue::List(vec![text(rng), text(rng)]))]
            }),
            8 => ("update shop.orders set labels = labels - ? where user_id = ? and order_id = ?", {
                vec![Some(CqlValue::Set(words(rng)))]
            }),
            9 => ("update shop.orders set ship_to = ?, labels = labels + ? where user_id = ? and order_id = ?", {
                vec![maybe(rng, address), Some(CqlValue::Set(words(rng)))]
            }),
            10 => ("delete discount, notes from shop.orders where user_id = ? and order_id = ?", vec![]),
            _ => ("update shop.orders using ttl ? set discount = ? where user_id = ? and order_id = ?", {
                vec![Some(CqlValue::Int(random_ttl(rng))), Some(double(rng))]
            }),
        };
        values.extend([Some(CqlValue::Uuid(user)), Some(timeuuid(order))]);
        Write { cql, values }
    }

    fn order_static(&mut self, user: Uuid) -> Write {
        let rng = &mut self.rng;
        let (cql, mut values): (&'static str, Vec<Option<CqlValue>>) = match rng.random_range(0..6) {
            0 | 1 => ("update shop.orders set customer_tier = ? where user_id = ?", vec![Some(word(rng))]),
            2 => (
                "update shop.orders set points = ? where user_id = ?",
                vec![maybe(rng, |rng| CqlValue::Int(rng.random_range(0..1_000)))],
            ),
            3 => {
                ("update shop.orders set badges = badges + ? where user_id = ?", vec![Some(CqlValue::Set(words(rng)))])
            }
            4 => ("delete customer_tier, badges from shop.orders where user_id = ?", vec![]),
            _ => (
                "update shop.orders using ttl ? set points = ? where user_id = ?",
                vec![Some(CqlValue::Int(random_ttl(rng))), Some(CqlValue::Int(1))],
            ),
        };
        values.push(Some(CqlValue::Uuid(user)));
        Write { cql, values }
    }

    fn event_write(&mut self, contested: bool) -> Write {
        let rng = &mut self.rng;
        let (days, sequences) = if contested { (1, 6) } else { (DAYS, SEQUENCES) };
        let day = Some(CqlValue::Text(format!("2026-01-{:02}", 1 + rng.random_range(0..days))));
        let first = rng.random_range(-sequences..sequences);
        let seq = Some(CqlValue::BigInt(first));
        let kind = Some(CqlValue::Text(["view", "click", "buy", ""][rng.random_range(0..4)].to_owned()));
        match rng.random_range(0..40) {
            0..22 => Write {
                cql: "insert into shop.events (day, seq, kind, payload, amount, source, happened_at, attributes) \
                      values (?, ?, ?, ?, ?, ?, ?, ?)",
                values: vec![
                    day,
                    seq,
                    kind,
                    Some(text(rng)),
                    maybe(rng, double),
                    maybe(rng, inet),
                    maybe(rng, timestamp),
                    maybe(rng, text_map),
                ],
            },
            22..28 => Write {
                cql: "insert into shop.events (day, seq, kind, payload, attributes) values (?, ?, ?, ?, ?) using ttl ?",
                values: vec![
                    day,
                    seq,
                    kind,
                    Some(text(rng)),
                    maybe(rng, text_map),
                    Some(CqlValue::Int(random_ttl(rng))),
                ],
            },
            28..32 => Write {
                cql: "update shop.events set payload = ? where day = ? and seq = ? and kind = ?",
                values: vec![maybe(rng, text), day, seq, kind],
            },
            32..35 => Write {
                cql: "delete from shop.events where day = ? and seq = ? and kind = ?",
                values: vec![day, seq, kind],
            },
            35 | 36 => Write { cql: "delete from shop.events where day = ? and seq = ?", values: vec![day, seq] },
            37 => {
                let last = Some(CqlValue::BigInt(first + rng.random_range(0..8)));
                let cql = if rng.random() {
                    "delete from shop.events where day = ? and seq >= ? and seq < ?"
                } else {
                    "delete from shop.events where day = ? and seq > ? and seq <= ?"
                };
                Write { cql, values: vec![day, seq, last] }
            }
            38 => Write {
                cql: "delete from shop.events where day = ? and seq = ? and kind >= ?",
                values: vec![day, seq, kind],
            },
            _ if rng.random_bool(0.05) => Write { cql: "delete from shop.events where day = ?", values: vec![day] },
            _ => Write {
                cql: "delete from shop.events where day = ? and seq < ?",
                values: vec![day, Some(CqlValue::BigInt(5 - SEQUENCES))],
            },
        }
    }

    fn conditional(&mut self) -> Write {
        let id = Some(CqlValue::Uuid(self.known_user(false)));
        let rng = &mut self.rng;
        if rng.random() {
            let cql = "insert into shop.users (id, name) values (?, ?) if not exists";
            Write { cql, values: vec![id, Some(text(rng))] }
        } else {
            let cql = "update shop.users set visits = ? where id = ? if exists";
            Write { cql, values: vec![Some(CqlValue::BigInt(rng.random_range(0..9))), id] }
        }
    }

    fn known_user(&mut self, contested: bool) -> Uuid {
        let among = if contested { CONTESTED_ROWS } else { self.users.len() };
        self.users[self.rng.random_range(0..among)]
    }

    fn known_order(&mut self, contested: bool) -> (Uuid, Uuid) {
        let among = if contested { CONTESTED_ROWS } else { self.orders.len() };
        self.orders[self.rng.random_range(0..among)]
    }
}

/// Adds to a bounded pool; when full, a random one is forgotten, but never one of the contested rows at its start.
fn remember<T>(rng: &mut ChaCha8Rng, pool: &mut Vec<T>, capacity: usize, item: T) {
    if pool.len() < capacity {
        pool.push(item);
    } else {
        let at = rng.random_range(CONTESTED_ROWS..pool.len());
        pool[at] = item;
    }
}

/// NULL now and then.
fn maybe(rng: &mut ChaCha8Rng, value: impl FnOnce(&mut ChaCha8Rng) -> CqlValue) -> Option<CqlValue> {
    (!rng.random_bool(0.12)).then(|| value(rng))
}

fn random_uuid(rng: &mut ChaCha8Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

/// Cassandra accepts any bytes of version 1 and orders them by the time within.
fn random_timeuuid(rng: &mut ChaCha8Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).with_version(uuid::Version::Mac).into_uuid()
}

fn timeuuid(id: Uuid) -> CqlValue {
    CqlValue::Timeuuid(CqlTimeuuid::from(id))
}

fn random_ttl(rng: &mut ChaCha8Rng) -> i32 {
    if rng.random_bool(0.5) { rng.random_range(SHORT_TTL_SECONDS) } else { LONG_TTL_SECONDS }
}

const WORDS: [&str; 16] = [
    "red",
    "blue",
    "green",
    "großartig",
    "naïve",
    "北京",
    "\u{1F680}",
    "a b",
    "\"quoted\"",
    "it's",
    "back\\slash",
    "x",
    "new\nline",
    "{curly}",
    "NULL",
    "",
];

fn word(rng: &mut ChaCha8Rng) -> CqlValue {
    CqlValue::Text(WORDS[rng.random_range(0..WORDS.len())].to_owned())
}

fn words(rng: &mut ChaCha8Rng) -> Vec<CqlValue> {
    let mut at: Vec<usize> = (0..rng.random_range(0..4)).map(|_| rng.random_range(0..WORDS.len())).collect();
    at.sort_unstable();
    at.dedup();
    at.into_iter().map(|at| CqlValue::Text(WORDS[at].to_owned())).collect()
}

fn text(rng: &mut ChaCha8Rng) -> CqlValue {
    let words = rng.random_range(0..4);
    CqlValue::Text((0..words).map(|_| WORDS[rng.random_range(0..WORDS.len())]).collect::<Vec<_>>().join(" "))
}

fn text_map(rng: &mut ChaCha8Rng) -> CqlValue {
    CqlValue::Map(words(rng).into_iter().map(|key| (key, text(rng))).collect())
}

fn int_map(rng: &mut ChaCha8Rng) -> CqlValue {
    CqlValue::Map(words(rng).into_iter().map(|key| (key, CqlValue::Int(rng.random_range(-9..99)))).collect())
}

fn decimal(rng: &mut ChaCha8Rng) -> CqlValue {
    let (unscaled, scale) = match rng.random_range(0..10) {
        0 => (BigInt::from(rng.random::<i128>()) * BigInt::from(rng.random::<i128>()), rng.random_range(0..30)),
        1 => (BigInt::from(rng.random_range(-999..999)), -rng.random_range(1..6)),
        2 => (BigInt::from(rng.random_range(-99_i32..99) * 100), 2),
        _ => (BigInt::from(rng.random_range(-100_000..1_000_000)), 2),
    };
    CqlValue::Decimal(CqlDecimal::from_signed_be_bytes_and_exponent(unscaled.to_signed_bytes_be(), scale))
}

fn double(rng: &mut ChaCha8Rng) -> CqlValue {
    CqlValue::Double(match rng.random_range(0..40) {
        0 => f64::NAN,
        1 => f64::NEG_INFINITY,
        2 => f64::MIN_POSITIVE,
        3 => f64::MAX,
        4..20 => f64::from(rng.random_range(0..10_000)) / 100.0,
        _ => rng.random::<f64>() * 1e6 - 5e5,
    })
}

/// Milliseconds between 1930 and 2080.
fn timestamp(rng: &mut ChaCha8Rng) -> CqlValue {
    CqlValue::Timestamp(CqlTimestamp(rng.random_range(-1_262_304_000_000..3_471_292_800_000)))
}

fn inet(rng: &mut ChaCha8Rng) -> CqlValue {
    CqlValue::Inet(if rng.random() {
        IpAddr::V4(Ipv4Addr::from_bits(rng.random()))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8_u128 << 96 | u128::from(rng.random::<u64>())))
    })
}

fn address(rng: &mut ChaCha8Rng) -> CqlValue {
    let fields = vec![
        ("street".to_owned(), maybe(rng, text)),
        ("city".to_owned(), maybe(rng, text)),
        ("zip".to_owned(), maybe(rng, |rng| CqlValue::Int(rng.random_range(0..99_999)))),
    ];
    CqlValue::UserDefinedType { keyspace: crate::shop::KEYSPACE.to_owned(), name: "address".to_owned(), fields }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(seed: u64) -> String {
        let mut writes = Writes::new(seed);
        (0..2_000)
            .map(|_| match writes.next_operation().form {
                Form::Single(write) | Form::Conditional(write) => format!("{} {:?}\n", write.cql, write.values),
                Form::LoggedBatch(writes) | Form::UnloggedBatch(writes) => {
                    writes.iter().map(|write| format!("{} {:?}\n", write.cql, write.values)).collect()
                }
            })
            .collect()
    }

    #[test]
    fn a_seed_gives_the_same_writes_every_time_and_another_seed_others() {
        assert_eq!(digest(7), digest(7));
        assert_ne!(digest(7), digest(8));
    }

    #[test]
    fn each_statement_has_a_value_for_every_placeholder() {
        let mut writes = Writes::new(1);
        for _ in 0..20_000 {
            let (Form::Single(write) | Form::Conditional(write)) = writes.next_operation().form else { continue };
            assert_eq!(write.cql.matches('?').count(), write.values.len(), "{}", write.cql);
        }
    }
}
