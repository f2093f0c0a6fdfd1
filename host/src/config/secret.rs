//! Values that are not shown: neither in a dump, nor with the line of a problem.

use std::borrow::Cow;

/// Text in place of a secret.
pub(super) const HIDDEN: &str = "(hidden)";

/// Words in the names of secrets, and of variables that hold one.
const WORDS: [&str; 7] =
    ["secret", "password", "passwd", "passphrase", "token", "authorization", "credential"];

/// Further words in the names of headers and variables. Keys of ours have them where nothing is secret.
const FURTHER_WORDS: [&str; 6] = ["auth", "cookie", "-key", "apikey", "-pass", "pwd"];

/// Whether the values of this key are secret. Those of `…_file` are paths.
pub(super) fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace('_', "-");
    !key.ends_with("-file") && (key.contains("api-key") || WORDS.iter().any(|word| key.contains(word)))
}

/// Whether the values of this header, or of this variable, are secret.
pub(super) fn is_secret_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase().replace('_', "-");
    is_secret_key(name) || !lower.ends_with("-file") && FURTHER_WORDS.iter().any(|word| lower.contains(word))
}

/// Whether this line of a file may hold a secret.
pub(super) fn may_hold_secret(line: &str) -> bool {
    let may = |word: &str| match word {
        // Names of cookies. Headers begin with a capital.
        "cookie" | "app_cookie" => false,
        "environment" => true,
        word => is_secret_name(word),
    };
    line.split(|c| !is_part(c)).any(may) || matches!(without_secrets(line), Cow::Owned(_))
}

/// Whether it may stand in a name.
fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// A text with the secrets of its URLs hidden: what stands before the `@`, and parameters with the name of a secret.
pub(super) fn without_secrets(text: &str) -> Cow<'_, str> {
    let shown = without_userinfo(text);
    match without_parameters(&shown) {
        Cow::Owned(shown) => Cow::Owned(shown),
        Cow::Borrowed(_) => shown,
    }
}

fn without_parameters(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['?', '&']) {
        let (before, behind) = rest.split_at(at + 1);
        shown.push_str(before);
        rest = behind;
        let (name, value) = behind.split_at(behind.find(|c| !is_part(c)).unwrap_or(behind.len()));
        if value.starts_with('=') && is_secret_name(name) {
            let end = value.find(|c: char| c.is_whitespace() || "&#\"'".contains(c)).unwrap_or(value.len());
            shown.extend([name, "=", HIDDEN]);
            rest = &value[end..];
        }
    }
    shown.push_str(rest);
    if shown == text { Cow::Borrowed(text) } else { Cow::Owned(shown) }
}

fn without_userinfo(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        let end = behind.find(|c: char| c.is_whitespace() || "/?#\"',".contains(c)).unwrap_or(behind.len());
        shown.push_str(before);
        rest = behind;
        if let Some(at) = behind[..end].rfind('@') {
            shown.push_str(HIDDEN);
            rest = &behind[at..];
        }
    }
    shown.push_str(rest);
    if shown == text { Cow::Borrowed(text) } else { Cow::Owned(shown) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_is_secret() {
        for key in ["secret", "db_password", "API_KEY", "api-key", "Token"] {
            assert!(is_secret_key(key) && is_secret_name(key), "{key}");
        }
        for name in ["Cookie", "Set-Cookie", "X-Auth", "Proxy-Authorization", "SITE_KEY", "DB_PASS", "PGPWD"]
        {
            assert!(is_secret_name(name), "{name}");
        }
        for key in ["token_file", "password_file", "key", "cookie", "X-Request-Id", "PORT"] {
            assert!(!is_secret_key(key), "{key}");
        }
    }

    #[test]
    fn a_line_with_a_secret_is_known() {
        for line in [
            "sticky = { cookie = \"a\", Secret = \"short\" }",
            "Cookie = \"session=1\"",
            "request_headers.set = { X-Auth = \"1\" }",
            "environment = { A = \"1\" }",
            "url = \"https://me:word@inventory/servers\"",
            "url = \"https://inventory/servers?a=1&api_key=2\"",
        ] {
            assert!(may_hold_secret(line), "{line}");
        }
        for line in ["cookie = \"server\"", "token_file = \"t\"", "url = \"https://inventory/a@b\""] {
            assert!(!may_hold_secret(line), "{line}");
        }
    }

    #[test]
    fn secrets_are_hidden_in_every_url() {
        let text = "http://a:b@one/x, https://two/@ http://c@three";
        assert_eq!(without_secrets(text), "http://(hidden)@one/x, https://two/@ http://(hidden)@three");
        let text = "http://a:b@one/?x=token&Token=1&y=2#z 'http://two/?auth=1' three?a";
        let shown = "http://(hidden)@one/?x=token&Token=(hidden)&y=2#z 'http://two/?auth=(hidden)' three?a";
        assert_eq!(without_secrets(text), shown);
    }
}
