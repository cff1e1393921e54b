//! A Tunnel in each of its states, as the API server shows it: what `decide` says of it is written into its status. They
//! are the test data of the rules for Argo CD, which dev/gitops reads together with Flux's own library.

use super::*;
use crate::memory::redone::{Damage, Redone};
use crate::read::read;
use crate::status::render;
use crate::tunnels::CallErrorKind;
use opentunnel_api::{FINALIZER, OPENING_ANNOTATION, Tunnel};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::{fs, path};

/// Where Argo CD's tests look for it.
const DIR: &str = "deploy/gitops/argo-cd/resource_customizations/opentunnel.dev/Tunnel/testdata";

const UID: &str = "0b8f6f0c-5f0e-4e0c-9a3c-2f1f6f3f5c11";
const SECRET: &str = "pump-7-tokens";
const ATTEMPT: &str = "6f1c2a9be04d7735";
const DIGEST: &str = "5d4140b0c83e1b6ea8c2c3b7bf5ac0e1c0f6ef0a2f6f5c5b7a3b3d9e3d5c1a20";

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

fn reference() -> TunnelRef {
    let id = "c4f1b7a2-9d3e-4a55-8f60-1b2c3d4e5f60";
    let arn = format!("arn:aws:iot:eu-central-1:123456789012:tunnel/{id}");
    TunnelRef { id: TunnelId(id.into()), arn }
}

/// A Tunnel and what there is beside it.
struct Scene {
    tunnel: Value,
    memory: Remembered,
    facts: Facts,
    now: Timestamp,
}

/// Just created, and claimed by this process.
fn new(spec: Value) -> Scene {
    let metadata = json!({
        "name": "pump-7", "namespace": "edge", "uid": UID, "generation": 1,
        "creationTimestamp": "2026-01-05T10:00:00Z",
    });
    let mut all = json!({
        "description": "maintenance of pump 7",
        "destination": {"thingName": "pump-7", "services": ["SSH"]},
        "tags": [{"key": "team", "value": "edge"}],
        "timeout": {"maxLifetimeTimeoutMinutes": 60},
        "updatePolicy": "Immutable", "deletionPolicy": "Close", "reopenPolicy": "Never", "suspend": false,
    });
    merge(&mut all, spec);
    let facts = Facts {
        fresh_attempt: attempt(ATTEMPT),
        secrets: vec![],
        search: None,
        in_account: InAccount::Yes,
        described: vec![],
        reads_fail: None,
        turns: crate::facts::Turns::all(Turn::Granted),
        gate: None,
        trouble: None,
        tags: Tags::from([("team".into(), "edge".into())]),
        rival: None,
        takes_secrets: true,
    };
    let memory = Remembered { saw_creation: true, first_seen: mono(MONO - 10), ..Remembered::default() };
    let status = json!({"observedGeneration": -1});
    let tunnel = json!({
        "apiVersion": "opentunnel.dev/v1alpha1", "kind": "Tunnel",
        "metadata": metadata, "spec": all, "status": status,
    });
    Scene { tunnel, memory, facts, now: at("2026-01-05T10:00:10Z") }.secret(missing())
}

/// It is open, and its tokens are in the Secret.
fn open() -> Scene {
    open_with(json!({}))
}

fn open_with(spec: Value) -> Scene {
    let mut scene = new(spec);
    scene.metadata(json!({"finalizers": [FINALIZER], "annotations": {OPENING_ANNOTATION: format!("{UID}/{ATTEMPT}")}}));
    scene.memory.opening.attempt = Some(attempt(ATTEMPT));
    scene.memory.opening.claim = Some((attempt(ATTEMPT), mono(MONO)));
    let digest = scene.object().spec.request.digest();
    scene.memory.answer = Some(Box::new(Answer {
        of: AnswerOf::Open(attempt(ATTEMPT)),
        tunnel: reference(),
        tokens: both(),
        opened_with: Some((scene.facts.tags.clone(), digest)),
        at: mono(MONO),
        wall: at("2026-01-05T10:00:01Z"),
        written: vec![],
    }));
    let mut scene = scene.secret(live()).told();
    scene.memory.owned = vec![reference()];
    scene.memory.backoff.trial = trial(MONO, None);
    scene
}

fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(from) => from.into_iter().for_each(|(key, value)| merge(&mut into[key], value)),
        from => *into = from,
    }
}

/// It holds the live tokens.
fn live() -> Option<FoundSecret> {
    but(ours(1), |s| (s.controller, s.sha256) = (Some(UID.into()), DIGEST.into()))
}

impl Scene {
    fn metadata(&mut self, metadata: Value) {
        merge(&mut self.tunnel["metadata"], metadata);
    }

    /// The user edits the spec.
    fn edited(mut self, spec: Value) -> Self {
        merge(&mut self.tunnel["spec"], spec);
        let generation = self.object().generation + 1;
        self.metadata(json!({"generation": generation}));
        self
    }

    fn secret(mut self, found: Option<FoundSecret>) -> Self {
        self.facts.secrets = vec![SecretFacts { name: SECRET.into(), found, sha256_of_answer: Some(DIGEST.into()) }];
        self
    }

    /// AWS tells that its tunnel was closed then.
    fn closed(mut self, time: &str) -> Self {
        let life = Life::Closed { created_at: at("2026-01-05T10:00:01Z"), closed_at: at(time) };
        self.facts.described = vec![(reference().id, Described { life, asked: mono(MONO), details: None })];
        self.now = at(time);
        self.secret(missing())
    }

    /// The last call to AWS has failed.
    fn failed(mut self, kind: CallErrorKind, message: &str) -> Self {
        let step = Open { attempt: attempt(ATTEMPT), tags: Tags::new() };
        let answer = Err(CallError { kind, message: message.into() });
        let (object, now) = (self.object(), Now { wall: self.now, mono: mono(MONO) });
        let mut memory = Memory::restore(self.memory);
        memory.learn(&step, &Outcome::Opened { called: mono(MONO), answer }, &object, &LIMITS, now);
        self.memory = memory.into_inner();
        self
    }

    fn typed(&self) -> Tunnel {
        serde_json::from_value(self.tunnel.clone()).unwrap()
    }

    fn object(&self) -> Object {
        read(&self.typed()).unwrap()
    }

    /// What is decided next is written into the status.
    fn told(mut self) -> Self {
        let object = self.object();
        let view = View { object: object.clone(), read_at: Some(mono(MONO)), gone: false, wiped: false };
        let (memory, now) = (Memory::restore(self.memory), Now { wall: self.now, mono: mono(MONO) });
        let leads = Standing::Leads { since: mono(0) };
        let step = decide(&view, &self.facts, &memory, leads, &LIMITS, now);
        let Record(change) = step else { panic!("{step:#?}") };
        let after = object.record.after(&change, object.generation, object.spec.lifetime);
        self.tunnel["status"] = json!(render(&object, &change, &after, now.wall));
        self.memory = Remembered { first_seen: mono(MONO - 10), ..Remembered::default() };
        self
    }
}

/// Each by the name of its file.
fn samples() -> BTreeMap<&'static str, Scene> {
    let waiting = |cause: Option<(CallErrorKind, &str)>| {
        let mut scene = new(json!({}));
        scene.facts.turns = crate::facts::Turns::all(Turn::Waiting);
        scene.facts.gate =
            cause.map(|(cause, message)| Gate { cause, message: message.into(), since: at("2026-01-05T10:00:02Z") });
        scene.told()
    };
    let failed = |kind, message| new(json!({})).failed(kind, message).told();
    let suspended = || open().edited(json!({"suspend": true})).told();
    let recreating = || {
        open_with(json!({"updatePolicy": "Recreate"})).edited(json!({"destination": {"services": ["HTTPS"]}})).told()
    };
    let rotated = || {
        let mut scene = open();
        scene.metadata(json!({"annotations": {"opentunnel.dev/rotate-at": "2026-01-05T10:30:00Z"}}));
        scene.told()
    };
    let modified = || {
        let edited = but(live(), |s| (s.sha256, s.editors) = (EDITED.into(), Some("gitops (data.region)".into())));
        let mut scene = open().secret(edited);
        scene.memory.rotating.redone = Some(Redone { damage: Some(Damage::Edited), times: 3, last: mono(MONO) });
        scene.told()
    };
    let wrong_account = || {
        let mut scene = open();
        scene.facts.in_account = InAccount::No;
        scene.told()
    };
    let deleted = || {
        let mut scene = open();
        scene.metadata(json!({"deletionTimestamp": "2026-01-05T10:00:10Z"}));
        scene.memory.ending.down = Some(mono(MONO - 10));
        scene.facts.turns = crate::facts::Turns::all(Turn::Waiting);
        scene.told()
    };
    let theirs = || but(ours(0), |s| (s.controller, s.holder) = (None, "controlled by nobody".into()));
    BTreeMap::from([
        ("created", new(json!({}))),
        ("opening", waiting(None)),
        ("limit-exceeded", waiting(Some((CallErrorKind::LimitExceeded, "LimitExceededException: too many tunnels")))),
        ("aws-unavailable", failed(CallErrorKind::Unreachable, "OpenTunnel has no answer: connection refused")),
        (
            "access-denied",
            failed(CallErrorKind::AccessDenied, "AccessDeniedException: not authorized for iot:OpenTunnel"),
        ),
        ("invalid-request", failed(CallErrorKind::InvalidRequest, "ValidationException: services: at most 3")),
        ("secret-conflict", new(json!({})).secret(theirs()).told()),
        ("open", open()),
        ("edited", open().edited(json!({"tags": [{"key": "team", "value": "pumps"}]}))),
        ("rotating", rotated()),
        ("secret-modified", modified()),
        ("wrong-account", wrong_account()),
        ("recreating", recreating()),
        ("closing", suspended()),
        ("suspended", suspended().closed("2026-01-05T10:20:00Z").told()),
        ("expired", open().closed("2026-01-05T11:00:01Z").told()),
        ("closed", open().closed("2026-01-05T10:20:00Z").told()),
        ("reopening", open_with(json!({"reopenPolicy": "Always"})).closed("2026-01-05T10:20:00Z").told()),
        ("deleted", deleted()),
    ])
}

/// The operator writes the status as a merge patch: what is null there is not stored.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[test]
fn the_test_data_of_the_gitops_tools_is_what_the_operator_writes() {
    let dir = path::Path::new(env!("CARGO_MANIFEST_DIR")).join(DIR);
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    if update {
        fs::create_dir_all(&dir).expect("a directory can be made");
    }
    let (mut files, mut reasons) = (BTreeSet::new(), BTreeSet::new());
    for (name, scene) in samples() {
        let mut tunnel = json!(scene.typed());
        drop_nulls(&mut tunnel);
        reasons.extend(scene.object().record.reported.map(|reason| reason.to_string()));
        let text = format!(
            "# Written by `make docs`, from what the operator decides: src/decide/tests/samples.rs.\n{}",
            serde_saphyr::to_string(&tunnel).unwrap()
        );
        let file = dir.join(format!("{name}.yaml"));
        if update {
            fs::write(&file, &text).expect("a file can be written");
        }
        assert!(fs::read_to_string(&file).unwrap_or_default() == text, "{} is old: make docs", file.display());
        files.insert(file);
    }
    let present: BTreeSet<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(present, files);
    assert_eq!(reasons, Reason::ALL.iter().map(Reason::to_string).collect(), "each reason has a sample");
}
