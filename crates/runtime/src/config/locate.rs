//! Where in a YAML text a key stands.

/// Line (from 1) of a key, or of the nearest section around it that is written in block style; `None` if not even the
/// first key is found. Good enough to point a person to the place: it knows indented `key:` lines and nothing else.
pub(super) fn line(text: &str, path: &[String]) -> Option<usize> {
    let mut found = None;
    // Keys of `path` that enclose the current line: indentation, and how much of the path they are together. One key may
    // be several segments: a name with a dot in it.
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with(['#', '-']) {
            continue;
        }
        let indent = line.len() - content.len();
        while open.last().is_some_and(|(outer, _)| indent <= *outer) {
            open.pop();
        }
        let Some((key, rest)) = content.split_once(':') else { continue };
        let above = open.last().map_or(0, |(_, depth)| *depth);
        let key = key.trim().trim_matches(['"', '\'']);
        let wanted = (above + 1..=path.len()).find(|end| path[above..*end].join(".") == key);
        let child = if open.is_empty() { indent == 0 } else { true };
        if let Some(depth) = wanted.filter(|_| child)
            && (rest.is_empty() || rest.starts_with(char::is_whitespace))
        {
            open.push((indent, depth));
            if found.is_none_or(|(deepest, _)| depth > deepest) {
                found = Some((depth, number));
            }
        }
    }
    found.map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Option<usize> {
        let text = "# top\nsource:\n  tables:\n    - a.b\n  host: x\n\npostgres:\n  \"host\": y\n  pool: {size: 1}\n  \
                    tables:\n    a.b:\n      name: c\n";
        line(text, &path.split('.').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn keys_are_found_below_their_own_section() {
        assert_eq!(at("source"), Some(2));
        assert_eq!(at("source.host"), Some(5));
        assert_eq!(at("postgres.host"), Some(8));
        assert_eq!(at("postgres.tables.a.b.name"), Some(12));
    }

    #[test]
    fn what_is_not_in_block_style_points_to_the_section() {
        assert_eq!(at("source.tables.0"), Some(3));
        assert_eq!(at("postgres.pool.size"), Some(9));
        assert_eq!(at("postgres.missing"), Some(7));
        assert_eq!(at("kafka.host"), None);
    }
}
