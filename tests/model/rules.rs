//! Rules of the protocol, each of which can be left out: by what `decide` is told, or by what becomes of its
//! decision. The product has no hook for it.

use opentunnel_api::{ClientMode, ReopenPolicy};

/// A rule that is left out.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Not a mutation: `deletionPolicy: Retain`.
    pub retain: bool,
    /// Not a mutation: `reopenPolicy`.
    pub reopen: ReopenPolicy,
    /// Not a mutation: `updatePolicy: Recreate`.
    pub recreate: bool,
    /// Not a mutation: the sides that are to get new tokens when the user asks for them.
    pub rotates: ClientMode,
    /// The claim is not written, only remembered.
    pub no_claim: bool,
    /// Writes are not conditioned by the resourceVersion.
    pub unconditioned: bool,
    /// Nothing is searched for.
    pub no_search: bool,
    /// The recovery grace is zero.
    pub no_grace: bool,
    /// The attempt is counted from what stands on the object.
    pub counted_attempts: bool,
    /// A claim is acted on however old it is.
    pub old_claims: bool,
    /// A lost call to OpenTunnel is taken for a refused one.
    pub no_doubt: bool,
    /// Rotation is not claimed: the call goes out at once.
    pub no_rotation_claim: bool,
    /// That a Rotate may have come after a newer one is not remembered.
    pub no_late_rotation: bool,
    /// The claim does not carry the finalizer.
    pub no_finalizer: bool,
    /// A status is taken for a proof of whose a tunnel is.
    pub no_identity: bool,
    /// Not-found is believed of a tunnel that was opened a moment ago.
    pub no_not_found_grace: bool,
    /// Tunnels are closed in the background whoever has them by now.
    pub closes_unread: bool,
    /// There is no sweep.
    pub no_sweep: bool,
    /// A Secret of somebody else's is taken for one's own.
    pub foreign_is_ours: bool,
    /// Whose tunnel has ended keeps its Secrets.
    pub keeps_secrets: bool,
    /// What happens to its Secrets is noticed never.
    pub never_looks: bool,
    /// Another tunnel is opened without AWS's word that the one before is closed.
    pub no_word: bool,
    /// The claim is taken for that of the tunnel that has ended.
    pub settled: bool,
    /// A tunnel is closed for a change of the spec while the Tunnel is Ready.
    pub closes_ready: bool,
    /// A close that has begun is forgotten when the spec wants a tunnel again.
    pub way_back: bool,
    /// A tunnel is closed for `suspend` before the status names it.
    pub closes_unnamed: bool,
    /// What is recorded is the present spec, not what the tunnel was opened with.
    pub forgets_request: bool,
    /// It is not recorded that a rotation that was asked for is made.
    pub forgets_handled: bool,
    /// A rotation counts for what was asked while it was under way.
    pub handles_present: bool,
    /// `status.tagKeys` is not written before a tag is set.
    pub no_union: bool,
    /// What AWS tells of tags is not looked at.
    pub trusts_tags: bool,
    /// A token Secret that nobody controls is somebody else's.
    pub leftover_is_foreign: bool,
    /// A token Secret that nobody controls is taken to hold what it should.
    pub believes_leftovers: bool,
    /// It is not remembered how often what was written did not stay.
    pub no_redone: bool,
}

impl Rules {
    /// Something is left out of what is remembered.
    pub fn forgets(&self) -> bool {
        let openings = self.no_identity || self.no_word || self.settled;
        openings || self.no_late_rotation || self.no_redone
    }
}
