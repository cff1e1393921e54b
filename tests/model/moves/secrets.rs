//! The writes of Secrets: each conditioned by what was read.

use super::{Failed, Fault, Step};
use crate::world::Secret;

impl Step<'_> {
    /// Whether the Secret is as it was read; what fails is noted.
    fn may_write(&mut self, name: usize) -> Result<bool, Failed> {
        self.wrote = true;
        if self.fault == Some(Fault::Refused) {
            return Err(Failed);
        }
        let version = |s: &Option<Secret>| s.as_ref().map(|s| s.version);
        let read = self.reconcile.secrets.as_ref().expect("read before");
        let present = &self.world.secrets[name];
        let fits = version(present) == version(&read[name]) || self.rules.unconditioned;
        if !fits {
            (self.reconcile.secrets, self.reconcile.read) = (None, None);
        } else if present.as_ref().is_some_and(|s| s.owner != Some(self.reconcile.view.uid)) {
            self.wrong = Some("a Secret of somebody else's is written");
        }
        Ok(fits)
    }

    pub(super) fn write_secret(&mut self, index: usize, generation: i64) -> Result<(), Failed> {
        let name = self.name(index);
        let Some(answer) = self.mem.answer.clone().map(|a| a.data) else { return Ok(()) };
        if !self.may_write(name)? {
            return Ok(());
        }
        let mode = self.specs[usize::from(self.reconcile.view.spec)][index].1;
        let secret = Secret {
            version: self.world.next_version(),
            owner: Some(self.reconcile.view.uid),
            generation: u8::try_from(generation).unwrap_or(u8::MAX),
            data: answer.of(mode),
            sound: true,
        };
        self.world.secrets[name] = Some(secret.clone());
        match self.fault {
            Some(Fault::Lost) => return Err(Failed),
            Some(_) => (self.reconcile.secrets, self.reconcile.read) = (None, None),
            None => self.reconcile.secrets.as_mut().expect("read before")[name] = Some(secret),
        }
        Ok(())
    }

    pub(super) fn delete_secret(&mut self, index: usize) -> Result<(), Failed> {
        let name = self.name(index);
        if self.may_write(name)? {
            if !(self.rules.keeps_secrets && self.memory.answer.is_none()) {
                self.world.secrets[name] = None;
            }
            self.reconcile.secrets = None;
            match self.fault {
                Some(Fault::Lost) => return Err(Failed),
                Some(_) => self.reconcile.read = None,
                None => {}
            }
        }
        Ok(())
    }
}
