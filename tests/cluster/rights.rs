//! RBAC: what the operator and its users may do, and that none of it is too much.

use crate::support::control_plane::{ControlPlane, SYSTEM_NAMESPACE};
use crate::support::namespace::main_condition;
use crate::support::{LIMIT, World};
use kube::api::DeleteParams;
use secure_tunneling_emulator::{Fault, FaultKind, Operation};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::time::{Instant, sleep, timeout};

const OPERATOR: &str = "system:serviceaccount:opentunnel-system:opentunnel-operator";
const PLAIN: &str = "{apiVersion: opentunnel.dev/v1alpha1, kind: Tunnel, metadata: {name: plain}}";
/// Only an admission plugin asks for this right: it is in no request, see [`without_finalizers`].
const FINALIZERS: &str = "update opentunnel.dev/tunnels/finalizers";

/// What `kubectl auth can-i --list` tells of somebody in the world's namespace, less what everybody may.
async fn may(world: &World, who: &str, nobody: &str) -> BTreeSet<String> {
    let list = async |who: &str| -> BTreeSet<String> {
        let said = world.kubectl(&["auth", "can-i", "--list", "--no-headers", &format!("--as={who}")]).await;
        assert!(said.ok, "{}", said.err);
        said.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    };
    &list(who).await - &list(nobody).await
}

#[tokio::test]
async fn the_operator_may_do_this_and_no_more() {
    let world = World::new().await;
    let rights = may(&world, OPERATOR, "system:serviceaccount:opentunnel-system:nobody").await;
    // Resource, URLs, names, verbs.
    let expected = [
        "customresourcedefinitions.apiextensions.k8s.io [] [tunnels.opentunnel.dev] [get]",
        "events.events.k8s.io [] [] [create]",
        "namespaces [] [kube-system] [get]",
        "secrets [] [] [get create update delete list watch]",
        "tunnels.opentunnel.dev [] [] [get list watch patch]",
        "tunnels.opentunnel.dev/finalizers [] [] [update]",
        "tunnels.opentunnel.dev/status [] [] [patch]",
    ];
    assert_eq!(rights.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    // In its own namespace, for the election of a leader.
    let verbs = ["get", "create", "update", "list", "watch", "patch", "delete"];
    let mut granted = Vec::new();
    for verb in verbs {
        let may = ["auth", "can-i", verb, "leases.coordination.k8s.io", "--as", OPERATOR, "-n", SYSTEM_NAMESPACE];
        granted.extend((world.kubectl(&may).await.out.trim() == "yes").then_some(verb));
    }
    assert_eq!(granted, verbs[..3]);
}

#[tokio::test]
async fn who_may_edit_or_view_a_namespace_may_do_so_with_its_tunnels_but_not_with_their_status() {
    let world = World::new().await;
    let all = "[get list watch create update patch delete]";
    for (role, verbs) in [("view", "[get list watch]"), ("edit", all), ("admin", all)] {
        let user = format!("{role}-user");
        let bind = ["create", "rolebinding", role, "--clusterrole", role, "--user", &user];
        let said = world.kubectl(&bind).await;
        assert!(said.ok, "{}", said.err);
        // A controller fills these roles, some time after deploy/ was applied.
        let deadline = Instant::now() + LIMIT;
        let tunnels = loop {
            let rights = may(&world, &user, "nobody").await;
            let tunnels: Vec<String> = rights.into_iter().filter(|line| line.contains("opentunnel.dev")).collect();
            if !tunnels.is_empty() {
                break tunnels;
            }
            assert!(Instant::now() < deadline, "{role} has no rights on Tunnels");
            sleep(std::time::Duration::from_millis(100)).await;
        };
        let [line] = tunnels.as_slice() else { panic!("{role} has other rights than on tunnels: {tunnels:?}") };
        let set = |verbs: &str| -> BTreeSet<String> {
            verbs.trim_matches(['[', ']']).split(' ').map(str::to_owned).collect()
        };
        let told = line.strip_prefix("tunnels.opentunnel.dev [] [] ").unwrap_or_else(|| panic!("{role}: {line}"));
        assert_eq!(set(told), set(verbs), "{role}");
        let tokens = world.kubectl(&["auth", "can-i", "get", "secrets", "--as", &user]).await;
        assert_eq!(tokens.out.trim(), if role == "view" { "no" } else { "yes" }, "{role} and Secrets");
    }
}

/// The rules of the operator's ClusterRole.
async fn rules(world: &World) -> Vec<Value> {
    rules_of(world, "clusterrole").await
}

async fn rules_of(world: &World, kind: &str) -> Vec<Value> {
    let said = world.kubectl(&["get", kind, "opentunnel-operator", "-n", SYSTEM_NAMESPACE, "-o", "json"]).await;
    let role: Value = serde_json::from_str(&said.out).expect("the role is there");
    role["rules"].as_array().expect("rules").clone()
}

fn strings<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A life in which it needs all that it may: it opens, heals an edited Secret, clears up, and hears of a deletion while it
/// opens.
#[tokio::test]
async fn each_right_of_the_operator_is_used() {
    let world = World::new().await;
    let identity = world.identity().await;
    let settings = world.electing().await.with_identity(&identity);
    let operator = world.operator_with(&settings).await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_ready("plain").await;
    let edit = json!({"stringData": {"region": "edited"}}).to_string();
    assert!(world.kubectl(&["patch", "secret", "plain-tokens", "--type=merge", "-p", &edit]).await.ok);
    let renewed = |t: &opentunnel_api::Tunnel| {
        let generation = t.status.as_ref().and_then(|s| s.token_generation);
        generation == Some(2) && main_condition(t).is_some_and(|c| c.reason == "Open")
    };
    world.wait_for("plain", "Ready with new tokens", renewed).await;
    let id = tunnel.status.and_then(|s| s.tunnel_id).expect("an ID");
    world.aws.close(&id).expect("it is open");
    world.wait_condition("plain", ("Ended", "True", "Closed")).await;
    world.wait_event("plain", "Normal Closed").await;
    // One that is deleted while OpenTunnel is under way: the answer is judged on a fresh read.
    world.aws.set_faults([Fault::new(Operation::OpenTunnel, FaultKind::Delay).times(1).delay_ms(600)]);
    world.apply(&PLAIN.replace("plain", "deleted")).await;
    let opening = world.aws.wait_calls(|calls| calls.iter().filter(|c| c.operation == "OpenTunnel").count() == 2);
    timeout(LIMIT, opening).await.expect("OpenTunnel is called");
    world.tunnels().delete("deleted", &DeleteParams::default()).await.expect("it is there");
    world.wait_no_tunnel("deleted").await;
    operator.terminate().await;

    let mut granted = BTreeSet::new();
    for rule in [rules(&world).await, rules_of(&world, "role").await].concat() {
        let names = strings(&rule, "resourceNames").into_iter().map(|name| format!("/{name}")).collect::<Vec<_>>();
        for (group, resource) in strings(&rule, "apiGroups")
            .iter()
            .flat_map(|group| strings(&rule, "resources").into_iter().map(move |resource| (*group, resource)))
        {
            for verb in strings(&rule, "verbs") {
                let right = format!("{verb} {group}/{resource}");
                match names.as_slice() {
                    [] => granted.extend([right]),
                    names => granted.extend(names.iter().map(|name| format!("{right}{name}"))),
                }
            }
        }
    }
    assert!(granted.remove(FINALIZERS));
    let mut used = world.rights_used_by(&identity).await;
    // What everybody may is granted by nobody here.
    assert!(used.remove("create authorization.k8s.io/selfsubjectaccessreviews"));
    assert_eq!(used, granted);
}

#[tokio::test]
async fn without_the_right_on_finalizers_no_secret_can_be_made_where_owners_are_protected() {
    let world = World::new().await;
    // Its rights, in this namespace alone: so it is told the cluster's ID.
    let role = |finalizers: bool, rules: &[Value]| {
        let keep = |rule: &&Value| {
            strings(rule, "resourceNames").is_empty()
                && (finalizers || !strings(rule, "resources").contains(&"tunnels/finalizers"))
        };
        let rules: Vec<&Value> = rules.iter().filter(keep).collect();
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "less"}, "rules": rules})
    };
    let rules = rules(&world).await;
    world.apply(&role(false, &rules).to_string()).await;
    for args in [
        &["create", "serviceaccount", "less"][..],
        &["create", "rolebinding", "less", "--role=less", &format!("--serviceaccount={}:less", world.name)],
    ] {
        let said = world.kubectl(args).await;
        assert!(said.ok, "{}", said.err);
    }
    let kubeconfig = ControlPlane::get().dir.join(&world.name).join("less.kubeconfig");
    ControlPlane::get().write_kubeconfig(&world.name, "less", &kubeconfig).expect("it has a token");
    let settings = world.settings().env("KUBECONFIG", kubeconfig).flag("--cluster-id", "mine");
    let _operator = world.operator_with(&settings).await;
    world.apply(PLAIN).await;
    let tunnel = world.wait_condition("plain", ("Ready", "False", "Opening")).await;
    let message = main_condition(&tunnel).expect("a condition").message.clone();
    assert!(message.contains("cannot set blockOwnerDeletion"), "{message}");
    assert_eq!(world.secret_data("plain-tokens").await, None);

    world.apply(&role(true, &rules).to_string()).await;
    world.wait_ready("plain").await;
    assert_eq!(world.aws.tunnels().len(), 1, "the tokens were kept in hand");
}
