//! One form for all worlds that differ in nothing that matters: in what things are called, in ages beyond what
//! they are compared with, in what is forgotten anyhow.

use crate::world::*;
use foldhash::quality::FixedState;
use std::hash::{BuildHasher, Hash, Hasher};

impl World {
    /// The same world in the form that all worlds like it have. `attempts`: what they are called does not matter.
    pub fn canonical(mut self, attempts: bool) -> Self {
        for i in 0..2 {
            let standby = !self.leads(i) && !self.calls.iter().any(|c| c.by == Some(i as u8));
            if standby && !self.operators[i].lags {
                crate::next::deliver(&mut self, i);
            }
            // What it saw before it led is not rounded to what it has seen since.
            let term = self.leads_for;
            let before = |m: &Mem| self.leads(i) && term != OLD && m.first_seen > term;
            let sees_its_term_next = self.operators[i].memory.as_ref().is_some_and(before);
            self.operators[i].round(standby);
            match &mut self.operators[i].memory {
                Some(memory) if sees_its_term_next => memory.first_seen = term + 1,
                // Its memory shows by now that it leads.
                _ if self.leader == Some(Some(i as u8)) => self.leads_for = OLD,
                _ => {}
            }
        }
        if self.leader.flatten().is_none() {
            self.leads_for = OLD;
        }
        // What is left to go wrong says whether a tunnel's age matters.
        if self.left.lag == 0 && !self.operators.iter().any(|o| matches!(o.described, Some((_, Life::NotFound, _)))) {
            self.tunnels.iter_mut().for_each(|t| t.age = OLD);
        }
        self.calls.iter_mut().filter(|c| c.by.is_none()).for_each(|c| c.called = 0);
        self.forget_what_nobody_knows();
        let hash = |n: usize| {
            let mut hasher = FixedState::default().build_hasher();
            (&self.operators[n], self.leader == Some(Some(n as u8))).hash(&mut hasher);
            self.calls
                .iter()
                .filter(|c| c.by == Some(n as u8))
                .for_each(|c| (c.of, c.age, c.called, c.result).hash(&mut hasher));
            hasher.finish()
        };
        if hash(1) < hash(0) {
            self.operators.swap(0, 1);
            self.leader = self.leader.map(|leader| leader.map(|i| 1 - i));
            self.calls.iter_mut().filter_map(|c| c.by.as_mut()).for_each(|by| *by = 1 - *by);
        }
        self.calls.sort_by_key(|call| FixedState::default().hash_one(call));
        // Versions and tunnels' IDs keep their order.
        self.last.version = rename(&mut self, Kind::Version, true);
        self.last.tunnel = rename(&mut self, Kind::Tunnel, true);
        self.last.token = rename(&mut self, Kind::Token, false);
        if attempts {
            self.last.attempt = rename(&mut self, Kind::Attempt, false);
        }
        self
    }

    /// A closed tunnel that nobody speaks of is as none.
    fn forget_what_nobody_knows(&mut self) {
        let there: Vec<u8> = self.tunnels.iter().map(|t| t.id).collect();
        for memory in self.operators.iter_mut().filter_map(|o| o.memory.as_mut()) {
            for ids in [&mut memory.closed, &mut memory.foreign, &mut memory.owned] {
                ids.retain(|id| there.contains(id));
                ids.sort_unstable();
                ids.dedup();
            }
        }
        let closed: Vec<Tunnel> = self.tunnels.iter().filter(|t| !t.open).cloned().collect();
        if closed.is_empty() {
            return;
        }
        self.tunnels.retain(|t| t.open);
        let mut known = Vec::new();
        // What only a memory of tunnels, or a Secret, says of one is nothing that a decision depends on.
        let mut mute = self.clone();
        for memory in mute.operators.iter_mut().filter_map(|o| o.memory.as_mut()) {
            [&mut memory.closed, &mut memory.foreign, &mut memory.owned].into_iter().for_each(Vec::clear);
        }
        visit(&mut mute, Kind::Tunnel, &mut |id| known.push(*id));
        self.tunnels.extend(closed.into_iter().filter(|t| known.contains(&t.id)));
        self.tunnels.sort_by_key(|t| t.id);
        let there: Vec<u8> = self.tunnels.iter().map(|t| t.id).collect();
        for memory in self.operators.iter_mut().filter_map(|o| o.memory.as_mut()) {
            [&mut memory.closed, &mut memory.foreign, &mut memory.owned]
                .into_iter()
                .for_each(|ids| ids.retain(|id| there.contains(id)));
        }
    }
}

impl Operator {
    /// Rounds what no decision depends on: ages beyond what they are compared with, and what is forgotten anyhow.
    fn round(&mut self, standby: bool) {
        let Some(m) = &mut self.memory else { return };
        if standby && m.answer.is_none() && self.reconcile.is_none() {
            // It will take over with no more than this.
            *m = Mem {
                uid: m.uid,
                first_seen: 1,
                open_doubt: m.open_doubt,
                rotation: m.rotation.filter(|r| matches!(r.stage, Stage::Doubt(_))),
                late_rotation: m.late_rotation,
                redone: m.redone,
                closed: std::mem::take(&mut m.closed),
                foreign: std::mem::take(&mut m.foreign),
                owned: std::mem::take(&mut m.owned),
                written: m.written.take(),
                ..Mem::default()
            };
            (self.search, self.searching) = (None, false);
            (self.describing, self.described, self.told_tag) = (None, None, None);
        }
        // The watch has caught up.
        if let (Some(written), Some(watched)) = (&m.written, &self.watched) {
            let released = written.deleted && !written.finalizer;
            if written.uid != watched.uid || (written.version <= watched.version && !released) {
                m.written = None;
            }
        }
        let newest = self.reconcile.as_ref().map(|r| &r.view).or(m.written.as_ref()).or(self.watched.as_ref());
        let known = newest.is_some_and(|o| o.tunnel.is_some());
        let reopens = newest.is_some_and(|o| o.closed);
        // What a decision sees for the first time it sees since then.
        m.opens = m.opens.map(|age| age.min(1)).filter(|age| reopens || (!known && *age != m.first_seen.min(1)));
        let settled = newest.is_some_and(|o| o.attempt.is_some() && o.attempt == o.claim.map(|(_, attempt)| attempt));
        let own = m.attempt;
        let settled = |claim: u8| settled || own == Some(claim);
        if let Some((claim, age)) = &mut m.claim
            && settled(*claim)
        {
            *age = 0;
        }
        let searched = self.search.as_ref().map(|(age, _)| *age);
        // A search that was asked for began after what it was asked for.
        m.first_seen = m.first_seen.min(searched.unwrap_or_default().max(1));
        // That a search began when the grace was over stays so.
        let claimed = m.claim.filter(|(claim, _)| !settled(*claim)).map(|(_, age)| age);
        let deleted = newest.is_some_and(|o| o.deleted);
        let since = [claimed, m.open_doubt].into_iter().flatten().min();
        if let (Some((age, _)), Some(since)) = (&mut self.search, since)
            && (m.deleting.is_none() || !deleted)
            && *age + GRACE <= since
        {
            *age = 0;
            m.claim.iter_mut().for_each(|(_, age)| *age = OLD);
            m.open_doubt = m.open_doubt.map(|_| OLD);
        }
        m.failure.iter_mut().for_each(|(_, age, _)| *age = (*age).min(1));
        m.trial = m.trial.filter(|age| *age == 0);
        // Only what is newer counts: what this process has done, or what AWS has told.
        match (&mut m.tag, &mut self.told_tag) {
            (Some((_, set)), Some((.., told))) if *set <= *told => (*set, self.told_tag) = (1, None),
            (_, Some((.., told))) => (m.tag, *told) = (None, 0),
            (Some((_, set)), None) => *set = 1,
            (None, None) => {}
        }
        match &mut self.described {
            Some((_, Life::Closed, age)) => *age = 0,
            Some((_, Life::Open, age)) if m.expired.is_some_and(|since| *age <= since) => {
                *age = (*age).min(1);
                m.expired = m.expired.map(|since| since.min(1));
            }
            Some((_, Life::Open, age)) if *age > 0 => self.described = None,
            _ => {}
        }
        let Some(reconcile) = &mut self.reconcile else { return };
        match (&mut m.answer, reconcile.read) {
            (Some(answer), Some(read)) if read <= answer.age => {
                answer.age = OLD;
                reconcile.read = Some(read.min(1));
            }
            (Some(answer), _) => {
                answer.age = 0;
                reconcile.read = None;
            }
            (None, read) => reconcile.read = read.filter(|age| *age == 0),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Version,
    Tunnel,
    Token,
    Attempt,
}

/// Gives new numbers, from 1, and returns the last.
fn rename(world: &mut World, kind: Kind, keep_order: bool) -> u8 {
    let mut names = [0; 256];
    let mut last = 0;
    visit(world, kind, &mut |n| {
        let name = &mut names[usize::from(*n)];
        if *name == 0 {
            last += 1;
            *name = last;
        }
    });
    if keep_order {
        (1..).zip(names.iter_mut().filter(|name| **name != 0)).for_each(|(n, name)| *name = n);
    }
    visit(world, kind, &mut |n| *n = names[usize::from(*n)]);
    last
}

/// Every number of a kind.
fn visit(world: &mut World, kind: Kind, f: &mut impl FnMut(&mut u8)) {
    let data = |d: &mut Data, f: &mut dyn FnMut(&mut u8)| match kind {
        Kind::Tunnel => f(&mut d.tunnel),
        Kind::Token => {
            [&mut d.source, &mut d.destination].into_iter().filter(|t| **t != 0 && **t != GARBAGE).for_each(f)
        }
        _ => {}
    };
    let object = |o: &mut Object, f: &mut dyn FnMut(&mut u8)| {
        match kind {
            Kind::Version => f(&mut o.version),
            Kind::Tunnel => o.tunnel.iter_mut().for_each(&mut *f),
            Kind::Attempt => {
                o.claim.iter_mut().for_each(|(_, attempt)| f(attempt));
                o.attempt.iter_mut().for_each(&mut *f);
            }
            Kind::Token => {}
        }
        o.kept.iter_mut().flatten().for_each(|(_, d)| data(d, f));
    };
    let secrets = |all: &mut [Option<Secret>; 3], f: &mut dyn FnMut(&mut u8)| {
        for secret in all.iter_mut().flatten() {
            if kind == Kind::Version {
                f(&mut secret.version);
            }
            data(&mut secret.data, f);
        }
    };
    world.object.iter_mut().for_each(|o| object(o, f));
    secrets(&mut world.secrets, f);
    world.asked.iter_mut().for_each(|asked| data(asked, f));
    for tunnel in &mut world.tunnels {
        match kind {
            Kind::Tunnel => f(&mut tunnel.id),
            Kind::Attempt => f(&mut tunnel.attempt),
            Kind::Token => [&mut tunnel.source, &mut tunnel.destination].into_iter().for_each(&mut *f),
            Kind::Version => {}
        }
    }
    for call in &mut world.calls {
        match &mut call.of {
            CallOf::Open { attempt, .. } if kind == Kind::Attempt => f(attempt),
            CallOf::Rotate { tunnel, .. }
            | CallOf::Close { tunnel }
            | CallOf::Untag { tunnel }
            | CallOf::CloseSurplus { tunnel }
                if kind == Kind::Tunnel =>
            {
                f(tunnel);
            }
            _ => {}
        }
        if let Some(CallResult::Done(d)) = &mut call.result {
            data(d, f);
        }
        if let CallOf::Rotate { others: Some(d), .. } = &mut call.of {
            data(d, f);
        }
    }
    for operator in &mut world.operators {
        operator.watched.iter_mut().for_each(|o| object(o, f));
        if let Some(reconcile) = &mut operator.reconcile {
            object(&mut reconcile.view, f);
            reconcile.secrets.iter_mut().for_each(|s| secrets(s, f));
        }
        if kind == Kind::Tunnel {
            operator.search.iter_mut().for_each(|(_, found)| found.iter_mut().for_each(&mut *f));
            operator.describing.iter_mut().for_each(&mut *f);
            operator.described.iter_mut().for_each(|(id, ..)| f(id));
            operator.told_tag.iter_mut().for_each(|(id, ..)| f(id));
            operator.surplus.iter_mut().for_each(|(.., id)| f(id));
        }
        if kind == Kind::Attempt {
            operator.surplus.iter_mut().for_each(|(_, attempt, _)| f(attempt));
        }
        let Some(m) = &mut operator.memory else { continue };
        m.written.iter_mut().for_each(|o| object(o, f));
        match kind {
            Kind::Attempt => {
                m.claim.iter_mut().for_each(|(attempt, _)| f(attempt));
                m.attempt.iter_mut().for_each(&mut *f);
                if let Some(Answer { of: AnswerOf::Open(attempt), .. }) = &mut m.answer {
                    f(attempt);
                }
            }
            Kind::Tunnel => {
                [&mut m.closed, &mut m.foreign, &mut m.owned].into_iter().flatten().for_each(&mut *f);
            }
            _ => {}
        }
        m.answer.iter_mut().for_each(|a| data(&mut a.data, f));
    }
}
