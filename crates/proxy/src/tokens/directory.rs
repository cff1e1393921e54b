//! Tokens in a directory, as a Secret is mounted: either with the keys of the operator's token Secret, or with the names
//! that AWS's local proxy reads from the environment.
//!
//! The kubelet writes a Secret's files into a directory of their own, and then lets the link `..data` point there: all
//! are of one version as long as the link stays. The link is looked at once a second. A watch by inotify would save the
//! 2 s that a token comes late at most, but it needs a thread or a crate, sees nothing on network file systems, and the
//! kubelet itself lets a Secret's change wait for up to a minute.

use super::{AccessToken, ClientToken, MAX_ACCESS_TOKEN, TokenError, Tokens};
use crate::Side;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// So often it is read again where it changes meanwhile. A kubelet changes it every minute at most.
const ATTEMPTS: usize = 5;

/// A directory of tokens.
#[derive(Debug)]
pub struct TokenDirectory {
    path: PathBuf,
    side: Side,
    contents: Contents,
}

/// What was read, at one moment.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    /// Where `..data` pointed to: of a mounted Secret alone.
    version: Option<PathBuf>,
    tokens: Result<Tokens, TokenError>,
    region: Option<String>,
}

impl TokenDirectory {
    /// Reads a directory for one side. What cannot be read now may be there later: [`TokenDirectory::current`] says so.
    pub fn open(path: PathBuf, side: Side) -> Self {
        let contents = read(&path, side);
        Self { path, side, contents }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The region that stands beside the tokens.
    pub fn region(&self) -> Option<&str> {
        self.contents.region.as_deref()
    }

    /// The tokens as they were last read.
    ///
    /// # Errors
    /// They could not be used.
    pub fn current(&self) -> Result<&Tokens, &TokenError> {
        self.contents.tokens.as_ref()
    }

    /// Waits until [`TokenDirectory::current`] says something else.
    pub async fn changed(&mut self) {
        loop {
            sleep(INTERVAL).await;
            // Some µs: a Secret is mounted from memory. A thread for it would cost more.
            if version(&self.path).is_some_and(|version| Some(version) == self.contents.version) {
                continue;
            }
            let contents = read(&self.path, self.side);
            let changed = contents.tokens != self.contents.tokens;
            self.contents = contents;
            if changed {
                return;
            }
        }
    }
}

fn version(path: &Path) -> Option<PathBuf> {
    fs::read_link(path.join("..data")).ok()
}

fn read(path: &Path, side: Side) -> Contents {
    for _ in 0..ATTEMPTS {
        let version = version(path);
        // By the link's target, so that a link that changes under way does not mix two versions.
        let files = version.as_ref().map_or_else(|| path.to_owned(), |version| path.join(version));
        let (tokens, region) = read_files(&files, path, side);
        let contents = Contents { version, tokens, region };
        // The kubelet removes the old version: then files are missing. A directory without versions is looked at twice.
        let unchanged = match &contents.version {
            Some(version) => self::version(path).as_ref() == Some(version),
            None => self::version(path).is_none() && read_files(path, path, side).0 == contents.tokens,
        };
        if unchanged {
            return contents;
        }
    }
    Contents { version: None, tokens: Err(TokenError::Changing { path: path.to_owned() }), region: None }
}

/// `directory`: how it is called where something is wrong, which is not the name of its version.
fn read_files(files: &Path, directory: &Path, side: Side) -> (Result<Tokens, TokenError>, Option<String>) {
    let file = |name: &str| read_file(&files.join(name), &directory.join(name));
    let region = ["region", "AWSIOT_TUNNEL_REGION"].iter().find_map(|name| file(name).ok().flatten());
    let tokens = || -> Result<Tokens, TokenError> {
        let own = |kind: &str| format!("{side}{kind}");
        let (mut access_name, mut client_name) = (own("AccessToken"), own("ClientToken"));
        let mut access = file(&access_name)?;
        if access.is_none() {
            // Beside the other side's own key, AWS's name holds the other side's token as well.
            if file(&format!("{}AccessToken", side.other()))?.is_some() {
                return Err(TokenError::OtherSide { path: directory.to_owned(), side });
            }
            (access_name, client_name) =
                ("AWSIOT_TUNNEL_ACCESS_TOKEN".to_owned(), "AWSIOT_TUNNEL_CLIENT_TOKEN".to_owned());
            access = file(&access_name)?;
        }
        let in_file = |name: &str| {
            let path = directory.join(name);
            move |error| TokenError::InFile { path, error: Box::new(error) }
        };
        let access = access.ok_or_else(|| TokenError::Missing { path: directory.to_owned(), side })?;
        let access = AccessToken::new(access).map_err(in_file(&access_name))?;
        let client = file(&client_name)?.filter(|token| !token.is_empty());
        let client = client.map(ClientToken::new).transpose().map_err(in_file(&client_name))?;
        Ok(Tokens { access, client })
    };
    (tokens(), region)
}

/// `None`: there is no such file. What was written by hand ends in a line break.
fn read_file(path: &Path, name: &Path) -> Result<Option<String>, TokenError> {
    let unreadable =
        |error: std::io::Error| TokenError::Unreadable { path: name.to_owned(), reason: error.to_string() };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    // With a line break, and one more that tells that there are more.
    let longest = MAX_ACCESS_TOKEN + "\r\n".len();
    let mut bytes = Vec::new();
    file.take(longest as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > longest {
        return Err(TokenError::FileTooLong { path: name.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|_| TokenError::NotText { path: name.to_owned() })?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}
