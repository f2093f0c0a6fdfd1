//! The nearest right name for a misspelt one.

/// The name of `known` that was probably meant, or none that is near enough.
pub(super) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong: "least_requst" finds "least_request", "ip" does not find "id".
    let allowed = written.chars().count().div_ceil(3).min(4);
    let lower = written.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_ascii_lowercase()), name))
        .filter(|&(distance, name)| distance <= allowed && distance < name.chars().count())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// ` (did you mean "least_request"?)`, or nothing where no name is near.
pub(super) fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(written, known).map(|name| format!(" (did you mean \"{name}\"?)")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest_name_and_no_far_one() {
        let known = ["least_request", "round_robin", "random", "ip"];
        assert_eq!(nearest("least_requst", known), Some("least_request"));
        assert_eq!(nearest("Round-Robin", known), Some("round_robin"));
        assert_eq!(nearest("radnom", known), Some("random"));
        assert_eq!(nearest("maglev", known), None);
        assert_eq!(nearest("x", known), None);
    }
}
