//! Configurations, in both syntaxes. No file is read for them.

use crate::config::{Files, Place, Syntax, parse_with};

/// A configuration in TOML is taken, or refused with a line for each mistake.
pub fn toml(data: &[u8]) {
    check("fuzz.toml", Syntax::Toml, data);
}

/// The same in httpd's syntax.
pub fn httpd(data: &[u8]) {
    check("fuzz.conf", Syntax::Httpd, data);
}

fn check(name: &str, syntax: Syntax, data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let n_lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let is_in_file = |place: &Place| &*place.file == name && (1..=n_lines).contains(&place.line);
    match parse_with(name, text, syntax, &mut Files::on_disk().sealed()) {
        Ok((_, warnings)) => {
            for warning in warnings {
                assert!(warning.place.as_ref().is_none_or(is_in_file), "{warning}");
                assert!(!warning.text.contains('\n'), "not one line: {:?}", warning.text);
            }
        }
        Err(errors) => {
            assert!(!errors.problems.is_empty(), "refused for nothing");
            for problem in &errors.problems {
                match &problem.place {
                    Some(place) => assert!(is_in_file(place), "{problem}"),
                    None => assert!(
                        problem.text.starts_with(name) && !problem.text.contains("not valid TOML"),
                        "no line: {problem}"
                    ),
                }
                assert!(!problem.text.contains('\n'), "not one line: {:?}", problem.text);
            }
        }
    }
}
