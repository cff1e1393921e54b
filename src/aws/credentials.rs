//! AWS credentials: when they are loaded anew, and what is told of them.
//!
//! Where they come from is the SDK's business, which looks in the same places as every AWS program. But its provider of
//! profiles reads the files once, its cache has a call wait while credentials are loaded, and a program that starts
//! without credentials could not go on when they come. So they are loaded here, apart from the calls: a call is signed
//! with what is there, or fails at once with the reason why nothing is.

use super::connections;
use super::{chain, clean, find};
use crate::telemetry::Readiness;
use crate::tunnels::CallErrorKind;
use aws_config::{BehaviorVersion, ConfigLoader};
use aws_credential_types::Credentials;
use aws_credential_types::credential_feature::AwsCredentialFeature;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_sts::operation::assume_role::AssumeRoleError;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError;
use sha2::{Digest, Sha256};
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::{sleep, timeout};

/// How long one try may take. The SDK asks STS, the agent or the instance metadata up to three times within it.
const LOAD_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at the profile's files.
const LOOK: Duration = Duration::from_secs(30);
/// Credentials that do not say when they end are loaded anew after this time, as the SDK's own cache does. Not sooner:
/// each run of a `credential_process` may cost something, as a lease of Vault's.
const RELOAD: Duration = Duration::from_secs(15 * 60);
/// Credentials are loaded anew so long before they end, or when half of their time is over.
const AHEAD: Duration = Duration::from_secs(5 * 60);
/// The longest pause after a try that failed.
const RETRY: Duration = Duration::from_secs(30);

/// The AWS configuration of the environment. Whoever loads it anew reads the profile's files anew.
pub(super) fn environment() -> ConfigLoader {
    aws_config::defaults(BehaviorVersion::latest()).http_client(connections::http_client())
}

/// Why there are no credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Lack {
    pub(super) kind: CallErrorKind,
    pub(super) message: String,
}

/// The credentials that calls are signed with.
#[derive(Clone, Debug)]
pub(super) struct Keeper(Arc<Mutex<Result<Credentials, Lack>>>);

impl ProvideCredentials for Keeper {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(self.present().map_err(CredentialsError::not_loaded))
    }
}

impl Keeper {
    /// Loads the credentials, once; from then on it keeps them fresh in the background. Those who want to know whether
    /// there are any are told by `readiness`.
    pub(super) async fn start(readiness: Arc<Readiness>) -> Self {
        let keeper = Self(Arc::new(Mutex::new(Err(Lack { kind: CallErrorKind::Unreachable, message: String::new() }))));
        let files = Files::now();
        let mut keeping = Keeping { keeper: keeper.clone(), readiness, files, failures: 0, told: None };
        let pause = keeping.load().await;
        tokio::spawn(keeping.run(pause));
        keeper
    }

    fn present(&self) -> Result<Credentials, Lack> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, outcome: Result<Credentials, Lack>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }
}

struct Keeping {
    keeper: Keeper,
    readiness: Arc<Readiness>,
    files: Files,
    /// Tries that failed, one after the other.
    failures: u32,
    /// What the log was told last.
    told: Option<String>,
}

impl Keeping {
    async fn run(mut self, mut pause: Duration) {
        let mut loaded = Instant::now();
        loop {
            sleep(pause.saturating_sub(loaded.elapsed()).min(LOOK)).await;
            let files = Files::now();
            let replaced = std::mem::replace(&mut self.files, files) != self.files;
            if replaced || loaded.elapsed() >= pause {
                pause = self.load().await;
                loaded = Instant::now();
            }
        }
    }

    /// Returns after which time they are to be loaded again.
    async fn load(&mut self) -> Duration {
        let load = async {
            let config = environment().load().await;
            let provider = config.credentials_provider().ok_or_else(CredentialsError::not_loaded_no_source)?;
            provider.provide_credentials().await
        };
        let outcome =
            timeout(LOAD_LIMIT, load).await.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(LOAD_LIMIT)));
        let now = SystemTime::now();
        match outcome {
            Ok(credentials) => {
                let pause = good_for(&credentials, now);
                self.tell(source(&credentials), |source| {
                    let account = credentials.account_id().map(|id| id.as_str());
                    let role = env::var("AWS_ROLE_ARN").ok().filter(|_| source == IRSA);
                    tracing::info!(source, account, role, "AWS credentials are loaded");
                });
                self.failures = 0;
                self.readiness.aws(None);
                self.keeper.set(Ok(credentials));
                pause
            }
            Err(error) => {
                let words = clean(&chain(&error));
                self.tell(&words, |words| tracing::warn!("AWS credentials cannot be loaded ({words}); trying again"));
                let pause = Duration::from_secs(1).saturating_mul(1 << self.failures.min(8)).min(RETRY);
                self.failures += 1;
                // Those that are there are used as long as they may be.
                let left = self.keeper.present().map(|present| left(&present, now)).unwrap_or_default();
                if !left.is_zero() {
                    return pause.min(left);
                }
                let lack = lack(&error);
                self.readiness.aws(Some(lack.message.clone()));
                self.keeper.set(Err(lack));
                pause
            }
        }
    }

    /// Tells the log what it was not told last.
    fn tell(&mut self, words: &str, log: impl FnOnce(&str)) {
        if self.told.as_deref() != Some(words) {
            log(words);
            self.told = Some(words.to_owned());
        }
    }
}

/// How long they may be used. Those that do not say when they end: for ever, as far as one can know here.
fn left(credentials: &Credentials, now: SystemTime) -> Duration {
    credentials.expiry().map_or(Duration::MAX, |end| end.duration_since(now).unwrap_or_default())
}

/// After which time they are loaded anew.
fn good_for(credentials: &Credentials, now: SystemTime) -> Duration {
    if credentials.expiry().is_none() {
        return RELOAD;
    }
    let left = left(credentials, now);
    // What has ended already is asked for again, but not without a pause.
    (left - AHEAD.min(left / 2)).max(Duration::from_secs(1))
}

const IRSA: &str = "STS, for the ServiceAccount's token (IRSA)";

/// Where they come from, for people.
fn source(credentials: &Credentials) -> &'static str {
    use AwsCredentialFeature::*;
    let features = credentials.get_property::<Vec<AwsCredentialFeature>>().map(Vec::as_slice).unwrap_or_default();
    let has = |feature| features.contains(&feature);
    match () {
        () if has(CredentialsProcess) => "the credential_process of a profile",
        () if has(CredentialsStsAssumeRole) => "STS, for a profile's role",
        () if has(CredentialsProfileStsWebIdToken) => IRSA,
        () if has(CredentialsProfile) => "a profile",
        () if has(CredentialsEnvVars) => "the environment",
        () if has(CredentialsHttp) => "the container agent (EKS Pod Identity)",
        () if has(CredentialsImds) => "the instance metadata: the node's role",
        () => "another provider of the AWS SDK",
    }
}

/// What it means that they cannot be loaded. Nothing was sent to AWS IoT, whatever it is.
fn lack(error: &CredentialsError) -> Lack {
    let words = chain(error);
    // What a program writes to its standard error may hold anything, and conditions have many readers. The log has it.
    let words = words.split_once(" Stderr: ").map_or(&*words, |(before, _)| before);
    let needs_a_person = match error {
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => true,
        _ => is_refused(error),
    };
    let (kind, message) = if !needs_a_person {
        (CallErrorKind::Unreachable, format!("AWS credentials cannot be loaded now ({words}): it is tried again"))
    } else {
        let advice = "give the ServiceAccount an IAM role (IRSA or EKS Pod Identity), or set AWS_ACCESS_KEY_ID and \
                      AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; they are used when they come";
        (CallErrorKind::NoCredentials, format!("no AWS credentials could be loaded ({words}): {advice}"))
    };
    Lack { kind, message: clean(&message) }
}

/// Whether whoever gives them out has refused: that needs a person.
fn is_refused(error: &CredentialsError) -> bool {
    let by_web_identity = find::<AssumeRoleWithWebIdentityError>(error).map(|e| e.meta().code());
    let code = by_web_identity.or_else(|| find::<AssumeRoleError>(error).map(|e| e.meta().code())).flatten();
    // What STS answers with where it is not well itself, or cannot reach who issued the token.
    let not_well = ["InternalFailure", "ServiceUnavailable", "Throttling", "IDPCommunicationError"];
    // The agent's status has no type in the SDK.
    let by_agent = || chain(error).contains("StatusCode(4");
    code.map_or_else(by_agent, |code| !not_well.contains(&code))
}

/// The profile's files, as they are now: the digest of each.
#[derive(PartialEq, Eq)]
struct Files([Option<[u8; 32]>; 2]);

impl Files {
    /// Reads them: some kB at most.
    fn now() -> Self {
        let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let places = [("AWS_CONFIG_FILE", ".aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")];
        Self(places.map(|(name, default)| {
            let path = match env::var_os(name).map(PathBuf::from) {
                None => home.join(default),
                Some(path) => path.strip_prefix("~").map(|rest| home.join(rest)).unwrap_or(path),
            };
            std::fs::read(path).ok().map(|bytes| Sha256::digest(bytes).into())
        }))
    }
}
