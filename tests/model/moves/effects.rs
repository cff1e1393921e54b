//! What a step does to the world, as the product's `act` does it to the API server and to AWS.

use super::{Effect, Fault, failed};
use crate::operator::{self, attempt, number};
use crate::world::*;
use opentunnel_operator::facts::View;
use opentunnel_operator::record::Change;
use opentunnel_operator::step::{Identity, Need, Outcome, Step};
use opentunnel_operator::tunnels::{CallError, CallErrorKind};

impl Effect<'_> {
    /// Carries a step out. `None`: a call to AWS is under way, which is answered later.
    pub(super) fn act(&mut self, step: &Step, view: &View) -> Option<Outcome> {
        let uid = self.reconcile.view.uid;
        match step {
            Step::Wait(wait) => {
                let operator = &mut self.world.operators[self.i];
                operator.searching |= matches!(wait.need, Some(Need::Search(_)));
                if let (Some(Need::Describe(id)), true) = (&wait.need, self.reconcile.view.closed) {
                    operator.describing = Some(number(&id.0));
                }
            }
            Step::Read => {
                self.wrote = true;
                if self.fault.is_some() {
                    return Some(failed());
                }
                self.read();
            }
            Step::Claim { attempt, new } => return Some(self.claim(number(&attempt.0), *new, view)),
            Step::RestoreFinalizer => return Some(self.patch(view, |o| o.finalizer = true)),
            Step::RemoveFinalizer => return Some(self.patch(view, |o| o.finalizer = false)),
            Step::Open { attempt, tags } => {
                let request = operator::request_number(&view.object.spec.request);
                let tag = operator::tag(tags);
                return self.call(CallOf::Open { uid, attempt: number(&attempt.0), request, tag });
            }
            // The tag tells no more than the status does, unless etcd is restored. It is written at once.
            Step::Mark { .. } => {
                let error = || CallError { kind: CallErrorKind::Doubt, message: String::new() };
                return Some(Outcome::Tagged(if self.fault.is_some() { Err(error()) } else { Ok(()) }));
            }
            Step::Tag { tunnel, tags, .. } => return Some(self.tag(number(&tunnel.id.0), operator::tag(tags))),
            Step::TakeTagsOff { tunnel, keys, .. } => {
                assert_eq!(keys, &[operator::TAG], "no other is the operator's");
                return Some(self.tag(number(&tunnel.id.0), 0));
            }
            Step::Identify { tunnel, .. } => return Some(Outcome::Identified(self.identify(number(&tunnel.id.0)))),
            Step::Rotate { tunnel, mode, generation, others } => {
                let tunnel = number(&tunnel.id.0);
                let generation = u8::try_from(*generation).unwrap_or(u8::MAX);
                let others = others.as_ref().map(|others| operator::with_tokens(tunnel, others));
                return self.call(CallOf::Rotate { tunnel, mode: *mode, generation, others });
            }
            Step::Close { tunnel, .. } => return self.call(CallOf::Close { tunnel: number(&tunnel.id.0) }),
            Step::Untag { tunnel, .. } => return self.call(CallOf::Untag { tunnel: number(&tunnel.id.0) }),
            Step::WriteSecret { secret, tunnel, tokens, generation } => {
                let data = operator::with_tokens(number(&tunnel.0), tokens).of(secret.mode);
                return Some(self.write_secret(number(&secret.name), data, *generation));
            }
            Step::DeleteSecret { name } => return Some(self.delete_secret(number(name))),
            Step::TryCreate { secret } => {
                self.wrote = true;
                return Some(match self.world.secrets[usize::from(number(&secret.name))] {
                    _ if self.fault.is_some() => failed(),
                    Some(_) => Outcome::NameTaken,
                    None => Outcome::Tried(None),
                });
            }
            Step::Record(change) => return Some(self.record(change, view)),
            Step::CloseSurplus { tunnel, attempt } => {
                let surplus = (uid, number(&attempt.0), number(&tunnel.id.0));
                self.world.operators[self.i].surplus.push(surplus);
            }
            Step::Queue(_) | Step::Reuse { .. } | Step::Forget | Step::TellUnconnected | Step::TellRival(_) => {}
        }
        Some(Outcome::Done)
    }

    /// TagResource or UntagResource. It is answered at once.
    fn tag(&mut self, id: u8, value: u8) -> Outcome {
        self.wrote = true;
        if self.fault != Some(Fault::Refused) {
            self.world.tunnel(id).into_iter().for_each(|t| t.tag = value);
        }
        let error = || CallError { kind: CallErrorKind::Doubt, message: String::new() };
        Outcome::Tagged(if self.fault.is_some() { Err(error()) } else { Ok(()) })
    }

    fn claim(&mut self, n: u8, new: bool, view: &View) -> Outcome {
        let uid = self.reconcile.view.uid;
        if new && !self.rules.counted_attempts {
            self.world.last.attempt = n;
        }
        if self.rules.no_claim {
            self.reconcile.view.claim = Some((uid, n));
            self.reconcile.read = Some(0);
            return Outcome::Written(Box::new(view.object.clone()));
        }
        let finalizer = !self.rules.no_finalizer;
        let overruled = self.reconcile.view.claim.is_some_and(|(of, a)| of == uid && a != n);
        // Without a leader, whoever claimed before may live and be about to open.
        self.world.may_double |= overruled && self.fits() && self.is_acted_on();
        self.patch(view, |o| {
            o.finalizer |= finalizer;
            o.claim = Some((uid, n));
        })
    }

    fn call(&mut self, of: CallOf) -> Option<Outcome> {
        self.world.calls.push(Call { by: Some(self.i as u8), of, age: 0, called: 0, result: None });
        None
    }

    /// What DescribeTunnel says. It is answered at once.
    fn identify(&mut self, id: u8) -> Result<Identity, CallError> {
        self.wrote = true;
        if self.fault.is_some() {
            return Err(CallError { kind: CallErrorKind::Doubt, message: String::new() });
        }
        let uid = self.reconcile.view.uid;
        Ok(match self.world.tunnels.iter().find(|t| t.id == id) {
            None => Identity::NotFound,
            Some(t) if t.uid == uid && !t.untagged => Identity::Own(operator::tunnel(id)),
            Some(_) => Identity::Foreign,
        })
    }

    fn read(&mut self) {
        match self.world.current(self.reconcile.view.uid).cloned() {
            Some(object) => self.see(object),
            None => self.reconcile.gone = true,
        }
    }

    fn see(&mut self, object: Object) {
        self.written = Some(object.clone());
        self.reconcile.view = object;
        self.reconcile.read = Some(0);
    }

    /// Whether the other operator acts on the claim that stands: it has read it a moment ago, or has called since the
    /// claim was searched for.
    fn is_acted_on(&self) -> bool {
        let other = &self.world.operators[1 - self.i];
        let Some((memory, (_, claim))) = other.memory.as_ref().zip(self.reconcile.view.claim) else { return false };
        let read = memory.attempt == Some(claim) && other.reconcile.as_ref().is_some_and(|r| r.read.is_some());
        let called = |c: &Call| matches!(c.of, CallOf::Open { attempt, .. } if attempt == claim);
        let answered = memory.answer.as_ref().is_some_and(|a| a.of == AnswerOf::Open(claim));
        let opened = self.world.tunnels.iter().any(|t| t.open && t.attempt == claim);
        self.world.leader.is_none() && (read || answered || opened || self.world.calls.iter().any(called))
    }

    /// Whether the Tunnel is as it was read.
    fn fits(&self) -> bool {
        let (uid, version) = (self.reconcile.view.uid, self.reconcile.view.version);
        self.world.current(uid).is_some_and(|o| o.version == version || self.rules.unconditioned)
    }

    /// A write of the Tunnel, conditioned by what was read.
    fn patch(&mut self, view: &View, change: impl FnOnce(&mut Object)) -> Outcome {
        let as_read = || Some(Box::new(view.object.clone()));
        self.wrote = true;
        if self.fault == Some(Fault::Refused) {
            return failed();
        }
        if !self.fits() {
            self.read();
            return Outcome::Conflict(as_read());
        }
        let mut written = self.world.object.take().expect("it fits");
        change(&mut written);
        written.version = self.world.next_version();
        if !written.deleted || written.finalizer {
            self.world.object = Some(written.clone());
        }
        match self.fault {
            Some(Fault::Lost) => failed(),
            Some(_) => {
                self.read();
                Outcome::Conflict(as_read())
            }
            None => {
                self.see(written);
                Outcome::Written(Box::new(view.object.clone()))
            }
        }
    }

    fn record(&mut self, change: &Change, view: &View) -> Outcome {
        let object = &view.object;
        let mut after = object.record.after(change, object.generation, object.spec.lifetime);
        if self.rules.forgets_request && matches!(change, Change::Opened { .. } | Change::OpenedInVain { .. }) {
            after.tunnel.iter_mut().for_each(|t| t.opened_with = Some(object.spec.request.digest()));
        }
        if matches!(change, Change::Rotated { .. }) {
            if self.rules.forgets_handled {
                after.handled_rotate_at.clone_from(&object.record.handled_rotate_at);
            }
            if self.rules.handles_present {
                after.handled_rotate_at = object.rotate.as_ref().map(|rotate| rotate.value.clone());
            }
        }
        let unnamed = self.world.object.as_ref().is_none_or(|o| o.tunnel != self.reconcile.view.tunnel);
        let unwritten = match change {
            Change::Rotating { .. } => self.rules.no_rotation_claim,
            Change::TagKeys(_) => self.rules.no_union && object.spec.request.tags.len() == 1,
            Change::Closing(_) => self.rules.closes_ready || (self.rules.closes_unnamed && unnamed),
            Change::Adopted { .. } => self.rules.closes_unnamed && object.spec.suspend,
            _ => false,
        };
        let outcome = if unwritten {
            operator::take(&mut self.reconcile.view, &after);
            self.reconcile.read = Some(0);
            Outcome::Written(Box::new(object.clone()))
        } else {
            self.patch(view, |o| operator::take(o, &after))
        };
        if matches!(outcome, Outcome::Written(_)) && change.ends_search() {
            let operator = &mut self.world.operators[self.i];
            (operator.search, operator.searching, operator.describing) = (None, false, None);
        }
        outcome
    }
}

/// The step that a call under way was made for.
pub fn step_of(world: &World, of: CallOf, late: bool) -> Option<Step> {
    let opened_at = |tunnel| operator::opened_at(world, tunnel, late);
    Some(match of {
        CallOf::Open { attempt: n, tag, .. } => Step::Open { attempt: attempt(n), tags: operator::tags(tag) },
        CallOf::Rotate { tunnel, mode, generation, others } => Step::Rotate {
            tunnel: operator::tunnel(tunnel),
            mode,
            generation: generation.into(),
            others: others.map(operator::tokens),
        },
        CallOf::Close { tunnel } => Step::Close { tunnel: operator::tunnel(tunnel), opened_at: opened_at(tunnel) },
        CallOf::Untag { tunnel } => Step::Untag { tunnel: operator::tunnel(tunnel), opened_at: opened_at(tunnel) },
        CallOf::CloseSurplus { .. } => return None,
    })
}
