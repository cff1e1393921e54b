//! Access and client tokens: secrets, which nothing prints.

mod directory;

use crate::Side;
pub use directory::TokenDirectory;
use std::fmt;
use std::path::PathBuf;

/// Bytes of an access token at most: AWS's service takes no request of more than 4 KiB.
pub const MAX_ACCESS_TOKEN: usize = 4096;

/// What AWS gives to one side of a tunnel; whoever has it may connect there.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

impl AccessToken {
    /// # Errors
    /// It is empty, has more than [`MAX_ACCESS_TOKEN`] bytes, or has other characters than an HTTP header may have.
    pub fn new(text: impl Into<String>) -> Result<Self, TokenError> {
        let text = text.into();
        match text.len() {
            0 => Err(TokenError::Empty),
            1..=MAX_ACCESS_TOKEN if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Self(text)),
            1..=MAX_ACCESS_TOKEN => Err(TokenError::Characters),
            _ => Err(TokenError::TooLong),
        }
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessToken(..)")
    }
}

/// What a client makes up, and must show again to use an access token once more.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientToken(String);

impl ClientToken {
    /// # Errors
    /// It does not match `^[a-zA-Z0-9-]{32,128}$`, which is what AWS takes.
    pub fn new(text: impl Into<String>) -> Result<Self, TokenError> {
        let text = text.into();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if (32..=128).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text))
        } else {
            Err(TokenError::ClientToken)
        }
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ClientToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientToken(..)")
    }
}

/// What one side connects with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// AWS's.
    pub access: AccessToken,
    /// The client's own. Without it the access token is used up by the first connection.
    pub client: Option<ClientToken>,
}

/// Where tokens come from.
#[derive(Debug)]
pub enum TokenSource {
    /// Flags, environment or a config file: there will be no others.
    Fixed(Tokens),
    /// A mounted Secret, in which they change.
    Directory(TokenDirectory),
}

impl TokenSource {
    /// The tokens as they were last read.
    ///
    /// # Errors
    /// What is in the directory cannot be used now; [`TokenSource::changed`] tells when it can.
    pub fn current(&self) -> Result<&Tokens, &TokenError> {
        match self {
            Self::Fixed(tokens) => Ok(tokens),
            Self::Directory(directory) => directory.current(),
        }
    }

    /// Whether others can come. If not, a token that is refused is the end.
    pub fn may_change(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// Waits until [`TokenSource::current`] says something else; for ever where it cannot change. It may be dropped at
    /// any time without a change being lost.
    pub async fn changed(&mut self) {
        match self {
            Self::Fixed(_) => std::future::pending().await,
            Self::Directory(directory) => directory.changed().await,
        }
    }
}

/// Why something is no token. It never holds any of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// An access token without a character.
    #[error("the access token is empty")]
    Empty,
    /// It has more than [`MAX_ACCESS_TOKEN`] bytes.
    #[error("the access token has more than {MAX_ACCESS_TOKEN} bytes, more than AWS ever gives out")]
    TooLong,
    /// It has a space, a line break, or what is not ASCII.
    #[error("the access token has a space, a line break or another character that no token has: was it copied whole?")]
    Characters,
    /// It is not as AWS wants it.
    #[error("the client token must have 32 to 128 letters, digits and -, as a UUID has")]
    ClientToken,
    /// A file cannot be read.
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// In the system's words.
        reason: String,
    },
    /// A file has more bytes than a token can have.
    #[error("{} has more than {MAX_ACCESS_TOKEN} bytes: it holds no token", path.display())]
    FileTooLong {
        /// Which.
        path: PathBuf,
    },
    /// A file is no text.
    #[error("{} is not UTF-8: it holds no token", path.display())]
    NotText {
        /// Which.
        path: PathBuf,
    },
    /// What a file holds is no token.
    #[error("{}: {error}", path.display())]
    InFile {
        /// Which.
        path: PathBuf,
        /// Why.
        error: Box<TokenError>,
    },
    /// The directory has no access token.
    #[error("{} has neither {side}AccessToken nor AWSIOT_TUNNEL_ACCESS_TOKEN", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
        /// Whose token is wanted.
        side: Side,
    },
    /// The directory has the token of the other side alone.
    #[error(
        "{} has the access token of the {}, and this is the {side}: mount the Secret with the {side}'s token, or run \
         with {}",
        path.display(), side.other(), match side { Side::Source => "-d", Side::Destination => "-s" }
    )]
    OtherSide {
        /// The directory.
        path: PathBuf,
        /// Whose token is wanted.
        side: Side,
    },
    /// The directory changes faster than it can be read.
    #[error("{} changes while it is read", path.display())]
    Changing {
        /// The directory.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_prints_a_token() {
        let secret = "a".repeat(40);
        let tokens = Tokens {
            access: AccessToken::new(&*secret).expect("a token"),
            client: Some(ClientToken::new(&*secret).expect("a token")),
        };
        let printed = format!("{tokens:?} {:#?} {:?}", tokens.access, TokenSource::Fixed(tokens.clone()));
        assert!(!printed.contains("aaa"), "{printed}");
        assert_eq!(
            (tokens.access.reveal(), tokens.client.as_ref().map(ClientToken::reveal)),
            (&*secret, Some(&*secret))
        );
    }

    #[test]
    fn what_aws_would_refuse_is_no_token() {
        let access = |text: &str| AccessToken::new(text).map(|token| token.0.len());
        assert_eq!(access("AQGAAXiVzSmR\\_-="), Ok(16));
        assert_eq!(access(&"a".repeat(MAX_ACCESS_TOKEN)), Ok(MAX_ACCESS_TOKEN));
        assert_eq!(access(&"a".repeat(MAX_ACCESS_TOKEN + 1)), Err(TokenError::TooLong));
        assert_eq!(access(""), Err(TokenError::Empty));
        for text in ["a b", "a\n", "a\r\nhost: other", "ä", "a\0"] {
            assert_eq!(access(text), Err(TokenError::Characters), "{text:?}");
        }
        let client = |text: &str| ClientToken::new(text).is_ok();
        for (length, taken) in [(31, false), (32, true), (128, true), (129, false)] {
            assert_eq!(client(&"x".repeat(length)), taken, "{length}");
        }
        assert!(client("2da438cf-9a30-4148-b236-c338182f243c"));
        for text in ["", "2da438cf_9a30_4148_b236_c338182f243c", "2da438cf-9a30-4148-b236-c338182f243c\n"] {
            assert!(!client(text), "{text:?}");
        }
    }
}
