//! When the service is tried again, and with what: plain values, without a clock.

use crate::tokens::Tokens;
use std::time::Duration;

/// The shortest wait between two attempts.
const SHORTEST: Duration = Duration::from_millis(500);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(30);
/// A link that has lived so long was of use: the next one is tried at once. One that is cut again and again, by another
/// proxy with the same tokens for instance, is not made anew at full speed.
const OF_USE: Duration = Duration::from_secs(30);

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The service is tried, after so long a wait. Other tokens end the wait.
    After(Duration),
    /// Only other tokens can help.
    OtherTokens,
}

/// How often it went wrong, and which tokens were refused.
#[derive(Debug, Default)]
pub struct Reconnect {
    /// Waits since the last link that was of use.
    waits: u32,
    refused: Option<Tokens>,
}

impl Reconnect {
    /// What happens next with these tokens. `random` is from 0 to 1: the waits of many proxies whose service has failed
    /// are spread out (full jitter).
    pub fn next(&mut self, tokens: &Tokens, random: f64) -> Next {
        if self.refused.as_ref() == Some(tokens) {
            return Next::OtherTokens;
        }
        self.refused = None;
        let wait = match self.waits {
            0 => Duration::ZERO,
            waits => {
                let longest = LONGEST.min(SHORTEST * 2u32.saturating_pow(waits));
                SHORTEST + (longest - SHORTEST).mul_f64(random.clamp(0.0, 1.0))
            }
        };
        self.waits = self.waits.saturating_add(1);
        Next::After(wait)
    }

    /// A link was lost that had lived so long.
    pub fn lost(&mut self, lived: Duration) {
        if lived >= OF_USE {
            self.waits = 0;
        }
    }

    /// There are other tokens: what went wrong with the last ones says nothing about them.
    pub fn other_tokens(&mut self) {
        self.waits = 0;
    }

    /// The service will not take these tokens, however often they are tried.
    pub fn refused(&mut self, tokens: Tokens) {
        self.refused = Some(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::AccessToken;

    fn tokens(access: &str) -> Tokens {
        Tokens { access: AccessToken::new(access).expect("a token"), client: None }
    }

    fn waits(reconnect: &mut Reconnect, random: f64, count: usize) -> Vec<u128> {
        let mut wait = || match reconnect.next(&tokens("a"), random) {
            Next::After(wait) => wait.as_millis(),
            Next::OtherTokens => panic!("they were not refused"),
        };
        (0..count).map(|_| wait()).collect()
    }

    #[test]
    fn the_first_is_at_once_and_the_others_wait_up_to_twice_as_long_each_time() {
        assert_eq!(waits(&mut Reconnect::default(), 1.0, 9), [0, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(waits(&mut Reconnect::default(), 0.0, 4), [0, 500, 500, 500]);
        assert_eq!(waits(&mut Reconnect::default(), 0.5, 3), [0, 750, 1250]);
        let mut many = Reconnect { waits: u32::MAX, ..Reconnect::default() };
        assert_eq!(waits(&mut many, 1.0, 2), [30000, 30000]);
    }

    #[test]
    fn a_link_that_was_of_use_is_made_anew_at_once() {
        let mut reconnect = Reconnect::default();
        waits(&mut reconnect, 1.0, 5);
        reconnect.lost(Duration::from_secs(29));
        assert_eq!(waits(&mut reconnect, 1.0, 1), [16000]);
        reconnect.lost(Duration::from_secs(30));
        assert_eq!(waits(&mut reconnect, 1.0, 2), [0, 1000]);
    }

    #[test]
    fn a_token_that_was_refused_is_not_tried_again() {
        let mut reconnect = Reconnect::default();
        waits(&mut reconnect, 1.0, 3);
        reconnect.refused(tokens("a"));
        assert_eq!(reconnect.next(&tokens("a"), 1.0), Next::OtherTokens);
        assert_eq!(reconnect.next(&tokens("a"), 1.0), Next::OtherTokens);
        reconnect.other_tokens();
        assert_eq!(reconnect.next(&tokens("a"), 1.0), Next::OtherTokens);
        assert_eq!(reconnect.next(&tokens("b"), 1.0), Next::After(Duration::ZERO));
    }
}
