use super::*;
use serde_json::json;

fn tunnel(annotations: serde_json::Value, status: serde_json::Value) -> Object {
    let metadata = json!({
        "name": "sensor", "namespace": "edge", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": annotations,
    });
    let tunnel: Tunnel = serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap();
    read(&tunnel).unwrap()
}

#[test]
fn a_claim_that_was_copied_from_another_object_is_none() {
    let claim = |value: &str| tunnel(json!({OPENING_ANNOTATION: value}), json!(null)).record.claim;
    assert_eq!(claim("u/a"), Some(Attempt("a".into())));
    for copied in ["other/a", "u/", "u", ""] {
        assert_eq!(claim(copied), None, "{copied}");
    }
}

#[test]
fn the_main_condition_is_found_by_its_type_wherever_it_stands() {
    let condition = |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let reported = |conditions: serde_json::Value| tunnel(json!({}), json!({"conditions": conditions})).record.reported;
    assert_eq!(reported(json!([condition("Theirs", "Closed"), condition("Ready", "Open")])), Some(Reason::Open));
    assert_eq!(reported(json!([condition("Ready", "Open"), condition("Ended", "Closed")])), Some(Reason::Closed));
    assert_eq!(reported(json!([condition("Stalled", "AccessDenied")])), None);
    assert_eq!(reported(json!([])), None);
}

#[test]
fn what_is_left_out_of_a_secret_is_both_sides() {
    let mut tunnel = Tunnel::new("sensor", TunnelSpec::default());
    let key = Key { namespace: "edge".into(), name: "sensor".into(), uid: "u".into() };
    let secrets = |tunnel: &Tunnel| spec(&tunnel.spec, &key).secrets;
    assert_eq!((secrets(&tunnel)[0].name.as_str(), secrets(&tunnel)[0].mode), ("sensor-tokens", ClientMode::All));
    tunnel.spec.secrets = Some(vec![TokenSecret { name: "x".into(), ..TokenSecret::default() }]);
    assert_eq!((secrets(&tunnel)[0].name.as_str(), secrets(&tunnel)[0].mode), ("x", ClientMode::All));
}

#[test]
fn a_rotation_is_asked_for_by_a_value_and_a_side() {
    let asked = |annotations: serde_json::Value| tunnel(annotations, json!(null)).rotate.map(|r| (r.value, r.mode));
    let of_side = |side: &str| asked(json!({ROTATE_AT_ANNOTATION: "1", ROTATE_CLIENT_MODE_ANNOTATION: side}));
    let with = |mode| Some(("1".to_owned(), mode));
    assert_eq!(asked(json!({})), None);
    assert_eq!(asked(json!({ROTATE_AT_ANNOTATION: ""})), None);
    assert_eq!(asked(json!({ROTATE_CLIENT_MODE_ANNOTATION: "SOURCE"})), None, "a side alone asks for nothing");
    assert_eq!(asked(json!({ROTATE_AT_ANNOTATION: "1"})), with(Some(ClientMode::All)));
    for (side, expected) in [
        ("SOURCE", Some(ClientMode::Source)),
        ("destination", Some(ClientMode::Destination)),
        (" All ", Some(ClientMode::All)),
        ("", Some(ClientMode::All)),
        ("BOTH", None),
        ("SOURCE,DESTINATION", None),
    ] {
        assert_eq!(of_side(side), with(expected), "{side:?}");
    }
    // The status has room for so many.
    for (value, length) in [("x".repeat(5000), 1024), ("ü".repeat(600), 1024), (format!("x{}", "ü".repeat(600)), 1023)]
    {
        let kept = asked(json!({ROTATE_AT_ANNOTATION: value.clone()})).unwrap().0;
        assert!(value.starts_with(&kept) && kept.len() == length, "{}", kept.len());
    }
}

#[test]
fn a_value_is_wanted_until_it_is_handled() {
    let wanted = |handled: Option<&str>| {
        tunnel(json!({ROTATE_AT_ANNOTATION: "2"}), json!({"lastHandledRotateAt": handled})).wanted_rotation().is_some()
    };
    assert_eq!([None, Some("1"), Some("2")].map(wanted), [true, true, false]);
    let long = "x".repeat(5000);
    let handled = json!({"lastHandledRotateAt": &long[..1024]});
    assert!(tunnel(json!({ROTATE_AT_ANNOTATION: long}), handled).wanted_rotation().is_none(), "a long one too");
}

/// A Tunnel with this spec, whose tunnel is in this state and ends, or has ended, for this reason.
fn with_tunnel(spec: serde_json::Value, state: &str, end_reason: Option<&str>) -> Object {
    let metadata = json!({
        "name": "sensor", "namespace": "edge", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {OPENING_ANNOTATION: "u/a"},
    });
    let status = json!({"tunnelId": "t", "state": state, "endReason": end_reason, "attempt": "a"});
    let tunnel = json!({"metadata": metadata, "spec": spec, "status": status});
    read(&serde_json::from_value(tunnel).unwrap()).unwrap()
}

#[test]
fn another_tunnel_is_wanted_after_the_end_as_the_spec_says() {
    for (policy, expired, closed) in [("Never", false, false), ("OnExpiry", true, false), ("Always", true, true)] {
        let reopens = |reason: &str| with_tunnel(json!({"reopenPolicy": policy}), "CLOSED", Some(reason)).reopens();
        assert_eq!((reopens("Expired"), reopens("Closed")), (expired, closed), "{policy}");
        assert!(reopens("Suspended") && reopens("Recreating"), "{policy}: it was not the end of it");
        assert!(!reopens("Nonsense"), "{policy}");
    }
    let always = || json!({"reopenPolicy": "Always"});
    assert!(!with_tunnel(always(), "OPEN", Some("Closed")).reopens(), "it has not ended");
    assert!(!tunnel(json!({}), json!(null)).reopens(), "there was none");
    let suspended = json!({"reopenPolicy": "Always", "suspend": true});
    for reason in ["Expired", "Closed", "Suspended", "Recreating"] {
        assert!(!with_tunnel(suspended.clone(), "CLOSED", Some(reason)).reopens(), "{reason}: it is suspended");
        let deleted =
            Object { deleted_at: Some(Timestamp::UNIX_EPOCH), ..with_tunnel(always(), "CLOSED", Some(reason)) };
        assert!(!deleted.reopens(), "{reason}: it is being deleted");
    }
    // An operator that did not know of end reasons left the condition alone.
    let condition = json!({"type": "Ended", "status": "True", "reason": "Expired", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let mut old = tunnel(json!({}), json!({"tunnelId": "t", "state": "CLOSED", "conditions": [condition]}));
    assert!(!old.reopens());
    old.spec.reopen_policy = ReopenPolicy::OnExpiry;
    assert!(old.reopens());
}

#[test]
fn what_is_wanted_follows_from_the_spec_and_from_what_is_begun() {
    let goal = |spec: serde_json::Value, end_reason: Option<&str>| with_tunnel(spec, "OPEN", end_reason).goal();
    assert_eq!(goal(json!({}), None), Goal::Open);
    assert_eq!(goal(json!({"suspend": true}), None), Goal::Down(Down::Suspended));
    assert_eq!(goal(json!({}), Some("Suspended")), Goal::Down(Down::Outdated), "there is no way back");
    assert_eq!(goal(json!({}), Some("Recreating")), Goal::Down(Down::Outdated));
    assert_eq!(goal(json!({"suspend": true}), Some("Recreating")), Goal::Down(Down::Suspended));
    assert_eq!(goal(json!({}), Some("Closed")), Goal::Open, "nobody closes for that");
    assert_eq!(with_tunnel(json!({}), "CLOSED", Some("Suspended")).goal(), Goal::Open);
    let mut outdated = with_tunnel(json!({"updatePolicy": "Recreate"}), "OPEN", None);
    assert_eq!(outdated.goal(), Goal::Open, "nobody knows with what it was opened");
    outdated.record.tunnel.as_mut().unwrap().opened_with = Some("another".into());
    assert_eq!(outdated.goal(), Goal::Down(Down::Outdated));
    outdated.record.tunnel.as_mut().unwrap().opened_with = Some(outdated.spec.request.digest());
    assert_eq!(outdated.goal(), Goal::Open);
    outdated.spec.request.lifetime_minutes = Some(1);
    assert_eq!(outdated.goal(), Goal::Down(Down::Outdated));
    outdated.spec.update_policy = UpdatePolicy::Immutable;
    assert_eq!(outdated.goal(), Goal::Open);
    outdated.deleted_at = Some(Timestamp::UNIX_EPOCH);
    assert_eq!(outdated.goal(), Goal::Down(Down::Deleted));
}

#[test]
fn a_claim_is_settled_while_it_is_that_of_the_tunnel_that_is_named() {
    let mut object = with_tunnel(json!({}), "CLOSED", Some("Closed"));
    assert!(object.claim_is_settled());
    object.record.claim = Some(Attempt("b".into()));
    assert!(!object.claim_is_settled());
    object.record.claim = None;
    assert!(!object.claim_is_settled());
    object.record.tunnel.as_mut().unwrap().attempt = None;
    assert!(!object.claim_is_settled(), "nobody recorded who opened it");
    object.record.tunnel = None;
    assert!(!object.claim_is_settled());
}

#[test]
fn whoever_looks_for_the_next_tunnel_looks_after_the_end_of_the_last() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let mut object = with_tunnel(json!({}), "CLOSED", Some("Closed"));
    assert_eq!(object.opened_after(), object.created_at, "nobody recorded when it was closed");
    for (closed_at, expected) in [(at(2_000_000_000), at(2_000_000_000)), (at(1), object.created_at)] {
        object.record.tunnel.as_mut().unwrap().closed_at = Some(closed_at);
        assert_eq!(object.opened_after(), expected);
    }
    object.record.tunnel.as_mut().unwrap().state = opentunnel_api::TunnelState::Open;
    assert_eq!(object.opened_after(), object.created_at);
}
