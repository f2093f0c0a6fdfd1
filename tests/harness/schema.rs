//! As much of JSON Schema as `conf/openapi.json` uses, to hold answers to it.

use serde_json::Value;

/// A description in OpenAPI.
#[derive(Debug)]
pub struct OpenApi(Value);

impl OpenApi {
    /// The one that is shipped.
    ///
    /// # Panics
    /// Where it is no JSON.
    pub fn of_the_project() -> Self {
        let text = include_str!("../../conf/openapi.json");
        Self(serde_json::from_str(text).expect("conf/openapi.json is JSON"))
    }

    /// The paths that it describes.
    ///
    /// # Panics
    /// Where it has none.
    pub fn paths(&self) -> Vec<&str> {
        self.0["paths"].as_object().expect("paths").keys().map(String::as_str).collect()
    }

    /// Differences between an answer to this path with this status and the description, in both directions.
    ///
    /// # Panics
    /// Where it describes no such answer.
    pub fn problems(&self, path: &str, status: u16, answer: &Value) -> Vec<String> {
        let response = &self.0["paths"][path]["get"]["responses"][status.to_string()];
        let schema = &self.resolved(response)["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{path} has no answer {status} in JSON");
        let mut problems = Vec::new();
        self.check(schema, answer, "", &mut problems);
        problems
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let Some(reference) = schema["$ref"].as_str() else { return schema };
        self.0.pointer(reference.trim_start_matches('#')).expect("a reference leads somewhere")
    }

    fn check(&self, schema: &Value, value: &Value, at: &str, problems: &mut Vec<String>) {
        let schema = self.resolved(schema);
        if let Some(each) = schema["oneOf"].as_array() {
            let found = each.iter().map(|schema| {
                let mut found = Vec::new();
                self.check(schema, value, at, &mut found);
                found
            });
            let found: Vec<_> = found.collect();
            if found.iter().filter(|found| found.is_empty()).count() != 1 {
                problems.extend(found.into_iter().flatten());
            }
            return;
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        if !types.iter().any(|wanted| is_of(wanted, value)) {
            return problems.push(format!("{at}: {value} is none of {types:?}"));
        }
        if let Some(words) = schema["enum"].as_array()
            && !words.contains(value)
        {
            problems.push(format!("{at}: {value} is none of {words:?}"));
        }
        for (bound, is_kept) in [("minimum", f64::ge as fn(&f64, &f64) -> bool), ("maximum", f64::le)] {
            if let (Some(bound), Some(n)) = (schema[bound].as_f64(), value.as_f64())
                && !is_kept(&n, &bound)
            {
                problems.push(format!("{at}: {n} is beyond {bound}"));
            }
        }
        for (idx, item) in value.as_array().into_iter().flatten().enumerate() {
            self.check(&schema["items"], item, &format!("{at}/{idx}"), problems);
        }
        let Some(object) = value.as_object() else { return };
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(required) {
                problems.push(format!("{at}: no {required}"));
            }
        }
        for (name, value) in object {
            let at = format!("{at}/{name}");
            match (&schema["properties"][name], &schema["additionalProperties"]) {
                (known @ Value::Object(_), _) | (Value::Null, known @ Value::Object(_)) => {
                    self.check(known, value, &at, problems);
                }
                _ => problems.push(format!("{at}: not described")),
            }
        }
    }
}

fn is_of(wanted: &str, value: &Value) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_or_not_described_is_found() {
        let api = OpenApi::of_the_project();
        let problems = |answer| api.problems("/api/v1/events", 400, &answer);
        assert_eq!(problems(json!({ "error": "x" })), Vec::<String>::new());
        assert_eq!(problems(json!({ "error": 1 })), ["/error: 1 is none of [\"string\"]"]);
        assert_eq!(problems(json!({ "eror": "x" })), [": no error", "/eror: not described"]);
    }
}
