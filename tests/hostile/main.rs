//! Any object as a Tunnel or Secret: never a panic, a token in a text, a status that the API server would refuse, or
//! a write to what is not the Tunnel's. (Any answer of AWS: src/aws/hostile.rs.)

mod entry;
mod schema;
mod values;

use entry::{any_secret, any_tunnel};
use proptest::prelude::*;
use serde_json::{Value, json};

proptest! {
    #[test]
    fn any_json_may_be_shown_as_a_tunnel(tunnel in values::spoilt(values::tunnel()), seed: u64) {
        any_tunnel(tunnel.to_string().as_bytes(), seed);
    }

    #[test]
    fn any_bytes_may_be_shown_as_a_tunnel(bytes: Vec<u8>, seed: u64) {
        any_tunnel(&bytes, seed);
    }

    #[test]
    fn any_annotation_may_stand_on_a_tunnel(
        claim in values::claim(), others in prop::collection::btree_map("[a-z./]{1,40}", any::<String>(), 0..4), seed: u64,
    ) {
        let mut tunnel = values::tunnel();
        tunnel["metadata"]["annotations"] = json!(others);
        tunnel["metadata"]["annotations"]["opentunnel.dev/opening"] = json!(claim);
        tunnel["status"] = Value::Null;
        any_tunnel(tunnel.to_string().as_bytes(), seed);
    }

    #[test]
    fn any_json_may_stand_where_a_tunnel_wants_a_secret(secret in values::spoilt(values::secret()), seed: u64) {
        any_secret(secret, seed);
    }
}

/// The spoilt ones must not hide that a good one is read: else the properties say nothing.
#[test]
fn what_is_spoilt_was_whole() {
    for seed in 0..1000 {
        assert!(any_tunnel(values::tunnel().to_string().as_bytes(), seed));
        assert_eq!(any_secret(values::secret(), seed), Some(true));
    }
    let mut foreign = values::secret();
    foreign["metadata"]["ownerReferences"][0]["uid"] = json!("another");
    assert_eq!(any_secret(foreign, 1), Some(false));
    for part in ["spec", "status"] {
        assert_eq!(schema::check(part, &values::tunnel()[part]), Ok(()));
    }
    let mut long = values::tunnel();
    long["status"]["conditions"][0]["message"] = json!("x".repeat(32_769));
    assert!(schema::check("status", &long["status"]).is_err());
    let mut twice = values::tunnel();
    twice["spec"]["secrets"][1]["name"] = json!("a");
    assert!(schema::check("spec", &twice["spec"]).is_err());
}

#[test]
fn the_number_of_cases_is_told() {
    let cases = ProptestConfig::default().cases;
    println!("figure: property tests | 5 properties x {cases} cases");
}
