//! Texts with variables: `${name}` stands for a value, `$$` for a dollar.

/// A piece of such a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TemplatePiece<'a> {
    /// Text as it is; no two of them follow each other.
    Text(String),
    /// The name of a variable.
    Name(&'a str),
}

/// There is a `${` without its `}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unclosed;

/// Takes a text apart. A dollar that begins neither form is one.
///
/// # Errors
/// A variable has no end.
pub(crate) fn pieces(text: &str) -> Result<Vec<TemplatePiece<'_>>, Unclosed> {
    let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text);
    while let Some(at) = rest.find('$') {
        literal.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(behind) = rest.strip_prefix("${") {
            let (name, behind) = behind.split_once('}').ok_or(Unclosed)?;
            if !literal.is_empty() {
                pieces.push(TemplatePiece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(TemplatePiece::Name(name));
            rest = behind;
        } else {
            literal.push('$');
            rest = rest.strip_prefix("$$").unwrap_or(&rest[1..]);
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(TemplatePiece::Text(literal));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_apart() {
        let text = |text: &str| TemplatePiece::Text(text.to_owned());
        let name = TemplatePiece::Name;
        assert_eq!(pieces("a$$b$c${d}${e}f$"), Ok(vec![text("a$b$c"), name("d"), name("e"), text("f$")]));
        assert_eq!(pieces("$${x}"), Ok(vec![text("${x}")]));
        assert_eq!((pieces(""), pieces("${}")), (Ok(vec![]), Ok(vec![name("")])));
        assert_eq!(pieces("a${b"), Err(Unclosed));
    }
}
