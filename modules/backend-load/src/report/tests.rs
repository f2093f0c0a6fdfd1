use super::*;

const FULL: Report =
    Report { cpu: 0.3, application: 0.5, requests_per_second: 120.0, errors_per_second: 6.0, named: 0.7 };

fn read(header: &str) -> Result<Report, String> {
    Report::read(header.as_bytes(), &["queue".to_owned(), "disk".to_owned()]).map_err(|why| why.to_string())
}

#[test]
fn reads_text() {
    assert_eq!(
        read(
            "TEXT cpu_utilization=0.3, application_utilization=0.5,mem_utilization=0.9,rps_fractional=120,eps=6,\
             named_metrics.queue=0.7,named_metrics.disk=0.1,named_metrics.other=99"
        ),
        Ok(FULL)
    );
    let envoys = "TEXT cpu_utilization:0.3,application_utilization: 5e-1 ,rps_fractional:120.0,eps:6,named_metrics.queue:0.7";
    assert_eq!(read(envoys), Ok(FULL));
    assert_eq!(read("TEXT ,"), Ok(Report::default()));
}

#[test]
fn reads_json() {
    assert_eq!(
        read(
            r#"JSON {"cpu_utilization": 0.3, "application_utilization": 0.5, "mem_utilization": 0.9, "eps": 6,
                "rps_fractional": 120, "named_metrics": {"queue": 0.7, "disk": 0.1, "other": 99},
                "utilization": {"x": 1}, "something": [1, {"new": null}]}"#
        ),
        Ok(FULL)
    );
    let camels = r#"JSON {"cpuUtilization":"0.3","applicationUtilization":5e-1,"rpsFractional":"120","eps":6,"namedMetrics":{"queue":0.7}}"#;
    assert_eq!(read(camels), Ok(FULL));
    assert_eq!(read("JSON {}"), Ok(Report::default()));
    assert_eq!(read(r#"JSON {"eps": null}"#), Ok(Report::default()));
}

#[test]
fn says_what_is_wrong_with_rubbish() {
    let neither = "it begins with neither \"TEXT \" nor \"JSON \"";
    for (header, why) in [
        ("", neither),
        ("TEXT", neither),
        ("text cpu_utilization=1", neither),
        ("BIN CZqZmZmZmbk/", neither),
        ("cpu_utilization=0.3", neither),
        ("TEXT cpu_utilization", "a field has no value"),
        ("TEXT cpu_utilization=high", "a value is no number"),
        ("TEXT cpu_utilization=", "a value is no number"),
        ("TEXT cpu_utilization=-0.1", "a value is below 0 or no number"),
        ("TEXT cpu_utilization=NaN", "a value is below 0 or no number"),
        ("TEXT eps=1e999", "a value is below 0 or no number"),
        ("TEXT cpu=0.3", "it has a metric that ORCA does not"),
        ("TEXT named_metrics.=0.3", "it has a metric that ORCA does not"),
        ("TEXT eps=1, eps : 2", "a metric is there twice"),
        ("JSON", neither),
        ("JSON {", "it is not JSON"),
        ("JSON {} x", "it is not JSON"),
        ("JSON [1]", "a value is not what ORCA has there"),
        (r#"JSON {"eps": "many"}"#, "a value is not what ORCA has there"),
        (r#"JSON {"eps": -1}"#, "a value is not what ORCA has there"),
        (r#"JSON {"named_metrics": 1}"#, "a value is not what ORCA has there"),
    ] {
        assert_eq!(read(header), Err(why.to_owned()), "{header}");
    }
    assert_eq!(Report::read(b"TEXT \xff=1", &[]), Err(unreadable("it is not text")));
    // As deep as a header may be long: an error, not the end of the stack.
    assert_eq!(read(&format!("JSON {{\"x\":{}", "[".repeat(60_000))), Err("it is not JSON".to_owned()));
}

#[test]
fn weighs_what_a_server_can_take() {
    let report = |requests_per_second, errors_per_second, named, application, cpu| Report {
        cpu,
        application,
        requests_per_second,
        errors_per_second,
        named,
    };
    let weight = |report: Report| report.weight(1.0);
    assert_eq!(weight(report(100.0, 0.0, 0.0, 0.0, 0.5)), Ok(200));
    assert_eq!(
        weight(report(100.0, 0.0, 0.0, 0.25, 0.5)),
        Ok(400),
        "the application's own word before the CPU's"
    );
    assert_eq!(weight(report(100.0, 0.0, 0.8, 0.25, 0.5)), Ok(125), "what the operator named before both");
    // 0.5 + 10 / 100
    assert_eq!(weight(report(100.0, 10.0, 0.0, 0.0, 0.5)), Ok(166));
    assert_eq!(report(100.0, 10.0, 0.0, 0.0, 0.5).weight(5.0), Ok(100));
    assert_eq!(report(100.0, 10.0, 0.0, 0.0, 0.5).weight(0.0), Ok(200));
    assert_eq!(weight(report(100.0, 10.0, 0.0, 0.0, 0.0)), Ok(1000), "errors alone are use");
    assert_eq!(weight(report(0.5, 0.0, 0.0, 0.0, 0.9)), Ok(1));
    assert_eq!(weight(report(1e300, 0.0, 0.0, 0.0, 1e-10)), Ok(u32::MAX));
    let no_requests = Err(unreadable("it has no rps_fractional above 0"));
    assert_eq!(weight(report(0.0, 0.0, 0.0, 0.0, 0.5)), no_requests);
    assert_eq!(weight(report(9.0, 0.0, 0.0, 0.0, 0.0)), Err(unreadable("it has no utilization above 0")));
}
