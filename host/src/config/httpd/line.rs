//! httpd's lines and words, by the rules of `ap_cfg_getline` and `ap_getword_conf` of httpd 2.4.

/// One logical line, neither blank nor a comment.
#[derive(Debug, PartialEq)]
pub(super) struct LogicalLine {
    /// Offset of its first physical line.
    pub(super) at: usize,
    /// Its text, without white space around it.
    pub(super) text: String,
}

/// The lines of a file whose first byte is at `base`. A backslash before a line's end joins it with the next, in
/// comments too; a comment is a whole line.
pub(super) fn lines(text: &str, base: usize) -> Vec<LogicalLine> {
    let mut lines = Vec::new();
    let mut pending: Option<LogicalLine> = None;
    let mut at = base;
    for physical in text.split_inclusive('\n') {
        let mut line = pending.take().unwrap_or_else(|| LogicalLine { at, text: String::new() });
        at += physical.len();
        let content = physical.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        if let Some(continued) = content.and_then(|line| line.strip_suffix('\\')) {
            line.text.push_str(continued);
            pending = Some(line);
            continue;
        }
        line.text.push_str(content.unwrap_or(physical));
        lines.push(line);
    }
    lines.extend(pending);
    lines.retain_mut(|line| {
        // Editors of some systems begin a file with a byte order mark.
        line.text = line.text.trim_start_matches('\u{feff}').trim_ascii().to_owned();
        !line.text.is_empty() && !line.text.starts_with('#')
    });
    lines
}

/// The words of a line: parted by white space, or in single or double quotes, inside which a backslash protects the
/// quote. Anywhere a backslash protects a backslash, and else stands for itself.
///
/// # Errors
/// Where a quote is not closed; httpd takes the rest of the line then, which nobody can have meant.
pub(super) fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while let Some(first) = rest.chars().next() {
        let quote = Some(first).filter(|&first| first == '"' || first == '\'');
        let (word, left) = match quote {
            Some(quote) => word_up_to(&rest[1..], |c| c == quote, Some(quote)),
            None => word_up_to(rest, |c| c.is_ascii_whitespace(), None),
        };
        rest = match (quote, left) {
            (Some(quote), None) => return Err(format!("quote {quote} is not closed")),
            (_, left) => left.unwrap_or_default().trim_ascii_start(),
        };
        words.push(word);
    }
    Ok(words)
}

/// The word before the first character that ends it, and what follows that character, if there is one.
fn word_up_to(text: &str, is_end: impl Fn(char) -> bool, quote: Option<char>) -> (String, Option<&str>) {
    let mut word = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if is_end(c) {
            return (word, Some(&text[at + c.len_utf8()..]));
        }
        let protected = chars.next_if(|&(_, next)| c == '\\' && (next == '\\' || Some(next) == quote));
        word.push(protected.map_or(c, |(_, next)| next));
    }
    (word, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_lines_and_drops_comments() {
        let text = "one \\\n  two\r\n\n # no \\\n still no\n  three\\\\\nfour\\\r\nfive \nsix\\";
        let lines = lines(text, 100);
        let lines: Vec<_> = lines.iter().map(|line| (line.at, &*line.text)).collect();
        assert_eq!(lines, [(100, "one   two"), (132, "three\\fourfive"), (155, "six\\")]);
    }

    #[test]
    fn skips_a_byte_order_mark() {
        assert_eq!(lines("\u{feff}Listen 80\n", 0), [LogicalLine { at: 0, text: "Listen 80".to_owned() }]);
    }

    #[test]
    fn splits_words_as_httpd_does() {
        for (line, expected) in [
            ("a  b\tc", &["a", "b", "c"][..]),
            (r#"a "b c" 'd e'"#, &["a", "b c", "d e"]),
            (r#""a"b"#, &["a", "b"]),
            (r#"a"b c""#, &["a\"b", "c\""]),
            (r#""a \" b" 'c \' d' "e \' f""#, &["a \" b", "c ' d", "e \\' f"]),
            (r#"a\\b "c\\d" e\f"#, &["a\\b", "c\\d", "e\\f"]),
            (r#""" ''"#, &["", ""]),
            ("", &[]),
        ] {
            assert_eq!(words(line).unwrap(), expected, "{line}");
        }
        assert_eq!(words("a \"b").unwrap_err(), "quote \" is not closed");
        assert_eq!(words(r#"a 'b\'"#).unwrap_err(), "quote ' is not closed");
    }
}
