//! Lists of servers as sources write them.

use std::collections::HashSet;
use std::time::Duration;

use crate::config::{MayName, SourceKind, SourceSpec, WhenEmpty};
use crate::discovery::answer::{MOST_MEMBERS, SourceAnswer};
use crate::discovery::read::{AnswerForm, read};

/// A list of servers is an answer within all bounds, which is the same once it is written as JSON and read again; or it is refused
/// with one line that says where.
pub fn members(data: &[u8]) {
    // The first byte says which servers the source may name, the second the form.
    let [may, form, text @ ..] = data else { return };
    let spec = SourceSpec {
        cluster: "app".into(),
        name: "file".into(),
        kind: SourceKind::File { path: "servers".into() },
        may_name: MayName {
            http: may & 1 == 0,
            https: may & 2 != 0,
            unix: if may & 4 == 0 { vec![] } else { vec!["/run/app".into()] },
        },
        empty: WhenEmpty::Keep,
        settle: Duration::ZERO,
    };
    let form = if form & 1 == 0 { AnswerForm::Json } else { AnswerForm::Toml };
    let n_lines = 1 + text.iter().filter(|byte| **byte == b'\n').count();
    match read(text, form, &spec) {
        Ok((answer, n_twins)) => {
            holds(&answer, &spec, n_twins);
            let written = written(&answer);
            assert_eq!(read(written.as_bytes(), AnswerForm::Json, &spec), Ok((answer, 0)), "{written}");
        }
        Err(why) => {
            assert!(!why.contains('\n'), "not one line: {why:?}");
            let line = why.strip_prefix("line ").and_then(|rest| rest.split([':', ',']).next());
            match line {
                Some(line) => {
                    let line: usize = line.parse().expect("a number");
                    assert!((1..=n_lines).contains(&line), "{why}");
                }
                None => {
                    assert!(why.starts_with("server ") && why.contains(" of the list"), "no place: {why}");
                }
            }
        }
    }
}

fn holds(answer: &SourceAnswer, spec: &SourceSpec, n_twins: usize) {
    let members = &answer.members;
    assert!(members.len() + n_twins <= MOST_MEMBERS);
    let urls: HashSet<&str> = members.iter().map(|member| &*member.url).collect();
    assert_eq!(urls.len(), members.len(), "a server is there twice");
    for member in members {
        assert!(member.is_short(), "{member:?}");
        assert_eq!(spec.admit(&member.url).map(|url| url.to_string()), Ok(member.url.clone()));
    }
}

/// As a source could have written it.
fn written(answer: &SourceAnswer) -> String {
    let list = answer.members.iter().map(|member| {
        let mut server = serde_json::Map::new();
        server.insert("url".to_owned(), member.url.clone().into());
        server.insert("state".to_owned(), serde_json::to_value(member.state).expect("a word"));
        let metadata = member.metadata.iter().map(|(name, value)| (name.clone(), value.clone().into()));
        server.insert("metadata".to_owned(), serde_json::Value::Object(metadata.collect()));
        let fields = [
            ("weight", member.weight.map(serde_json::Value::from)),
            ("tier", member.tier.map(serde_json::Value::from)),
            ("max_requests", member.max_requests.map(serde_json::Value::from)),
            ("zone", member.zone.clone().map(serde_json::Value::from)),
            ("route", member.route.clone().map(serde_json::Value::from)),
        ];
        server.extend(fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        serde_json::Value::Object(server)
    });
    serde_json::Value::Array(list.collect()).to_string()
}
