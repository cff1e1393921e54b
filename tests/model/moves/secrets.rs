//! The writes of Secrets: each conditioned by what was read.

use super::{Effect, Fault, failed};
use crate::world::{Data, GARBAGE, Policy, Secret};
use opentunnel_operator::step::Outcome;

impl Effect<'_> {
    /// Whether the Secret is as it was read; a write to somebody else's is wrong.
    fn fits_secret(&mut self, name: usize) -> bool {
        let version = |s: &Option<Secret>| s.as_ref().map(|s| s.version);
        let read = self.reconcile.secrets.as_ref().expect("read before");
        let present = &self.world.secrets[name];
        let fits = version(present) == version(&read[name]) || self.rules.unconditioned;
        if fits && present.as_ref().is_some_and(|s| s.owner != Some(self.reconcile.view.uid) && !s.leftover) {
            self.wrong = Some("a Secret of somebody else's is written");
        }
        fits
    }

    /// Writes it, or deletes it.
    fn put(&mut self, name: u8, secret: Option<Secret>, keep: bool) -> Outcome {
        let name = usize::from(name);
        self.wrote = true;
        if self.fault == Some(Fault::Refused) {
            return failed();
        }
        if !self.fits_secret(name) {
            return Outcome::SecretConflict;
        }
        if !keep {
            self.world.secrets[name].clone_from(&secret);
        }
        match self.fault {
            Some(Fault::Lost) => failed(),
            Some(_) => Outcome::SecretConflict,
            None => {
                let written = secret.is_some();
                self.reconcile.secrets.as_mut().expect("read before")[name] = secret;
                Outcome::SecretWritten(written.then(Box::default))
            }
        }
    }

    pub(super) fn write_secret(&mut self, name: u8, data: Data, generation: i64) -> Outcome {
        let secret = Secret {
            version: self.world.next_version(),
            owner: Some(self.reconcile.view.uid),
            leftover: false,
            generation: u8::try_from(generation).unwrap_or(u8::MAX),
            data: if self.world.policy == Policy::On { Data { source: GARBAGE, ..data } } else { data },
            sound: true,
        };
        self.put(name, Some(secret), false)
    }

    pub(super) fn delete_secret(&mut self, name: u8) -> Outcome {
        let memory = self.world.operators[self.i].memory.as_ref();
        let keep = self.rules.keeps_secrets && memory.is_some_and(|m| m.answer.is_none());
        self.put(name, None, keep)
    }
}
