//! Tokens from a directory, and how a change of them is noticed.

use crate::directory::Directory;
use opentunnel_proxy::Side;
use opentunnel_proxy::tokens::{ClientToken, TokenDirectory, TokenError, TokenSource};
use std::fs;
use std::time::Duration;
use tokio::time::timeout;

const CLIENT: &str = "2da438cf-9a30-4148-b236-c338182f243c";

/// The tokens, or what is wrong with them.
fn read(directory: &Directory, side: Side) -> Result<(String, Option<String>), String> {
    let tokens = TokenDirectory::open(directory.path().to_owned(), side);
    let tokens = tokens.current().map_err(ToString::to_string)?;
    let client = tokens.client.as_ref().map(ClientToken::reveal).map(str::to_owned);
    Ok((tokens.access.reveal().to_owned(), client))
}

#[test]
fn both_layouts_of_a_token_secret_are_read() {
    let all = [("sourceAccessToken", "S"), ("destinationAccessToken", "D\n"), ("destinationClientToken", CLIENT)];
    let named = [("AWSIOT_TUNNEL_ACCESS_TOKEN", "N\r\n"), ("AWSIOT_TUNNEL_CLIENT_TOKEN", &*format!("{CLIENT}\n"))];
    let source_alone = [&named[..], &[("sourceAccessToken", "N"), ("sourceClientToken", CLIENT)]].concat();
    for (files, side, expected) in [
        (&all[..], Side::Source, ("S", None)),
        (&all, Side::Destination, ("D", Some(CLIENT))),
        (&named, Side::Source, ("N", Some(CLIENT))),
        (&named, Side::Destination, ("N", Some(CLIENT))),
        (&source_alone, Side::Source, ("N", Some(CLIENT))),
        (&[("AWSIOT_TUNNEL_ACCESS_TOKEN", "N"), ("AWSIOT_TUNNEL_CLIENT_TOKEN", "")], Side::Source, ("N", None)),
    ] {
        let expected = (expected.0.to_owned(), expected.1.map(str::to_owned));
        assert_eq!(read(&Directory::with(files), side), Ok(expected), "{files:?} {side}");
    }
}

#[test]
fn the_region_stands_beside_the_tokens() {
    for (name, text) in [("region", "us-east-1"), ("AWSIOT_TUNNEL_REGION", "us-east-1\n")] {
        let directory = Directory::with(&[(name, text)]);
        let tokens = TokenDirectory::open(directory.path().to_owned(), Side::Source);
        assert_eq!(tokens.region(), Some("us-east-1"));
        assert!(matches!(tokens.current(), Err(TokenError::Missing { .. })));
    }
}

#[test]
fn what_is_wrong_is_said_without_the_content() {
    let wrong = |files: &[(&str, &str)]| read(&Directory::with(files), Side::Source).expect_err("no tokens");
    let secret = "secret".repeat(10);
    for (error, parts) in [
        (wrong(&[]), &["sourceAccessToken", "AWSIOT_TUNNEL_ACCESS_TOKEN"][..]),
        (
            wrong(&[("destinationAccessToken", &secret), ("AWSIOT_TUNNEL_ACCESS_TOKEN", &secret)]),
            &["token of the destination", "this is the source", "run with -d"],
        ),
        (wrong(&[("sourceAccessToken", &format!("{secret} {secret}"))]), &["/sourceAccessToken:", "a space"]),
        (wrong(&[("sourceAccessToken", "\n")]), &["/sourceAccessToken:", "is empty"]),
        (wrong(&[("sourceAccessToken", &secret.repeat(70))]), &["/sourceAccessToken has more than 4096"]),
        (
            wrong(&[("sourceAccessToken", &secret), ("sourceClientToken", "secret")]),
            &["/sourceClientToken:", "32 to 128"],
        ),
    ] {
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains("secret"), "{error}");
    }
    let directory = Directory::new();
    directory.write("sourceAccessToken", [b's', b'e', b'c', 0xff]);
    let error = read(&directory, Side::Source).expect_err("no text");
    assert!(error.ends_with("/sourceAccessToken is not UTF-8: it holds no token"), "{error}");
    fs::remove_file(directory.path().join("sourceAccessToken")).expect("removed");
    fs::create_dir(directory.path().join("sourceAccessToken")).expect("a directory");
    let error = read(&directory, Side::Source).expect_err("no file");
    assert!(error.contains("/sourceAccessToken cannot be read"), "{error}");
}

/// The clock is virtual, the files are real.
async fn changed(source: &mut TokenSource) -> bool {
    timeout(Duration::from_secs(5), source.changed()).await.is_ok()
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_new_version_of_a_mounted_secret_is_noticed_whole() {
    let directory = Directory::new();
    directory.mount("1", &[("sourceAccessToken", "first"), ("sourceClientToken", CLIENT)]);
    let mut source = TokenSource::Directory(TokenDirectory::open(directory.path().to_owned(), Side::Source));
    let access = |source: &TokenSource| source.current().expect("tokens").access.reveal().to_owned();
    assert_eq!(access(&source), "first");
    assert!(!changed(&mut source).await);

    directory.mount("2", &[("sourceAccessToken", "second")]);
    assert!(changed(&mut source).await);
    assert_eq!(access(&source), "second");
    // The old client token is not the new token's.
    assert_eq!(source.current().map(|tokens| tokens.client.clone()), Ok(None));
    assert!(!changed(&mut source).await);

    // Written again, as it was.
    directory.mount("3", &[("sourceAccessToken", "second")]);
    assert!(!changed(&mut source).await);

    directory.mount("4", &[("tunnelId", "closed")]);
    assert!(changed(&mut source).await);
    assert!(matches!(source.current(), Err(TokenError::Missing { .. })));
    assert!(source.may_change());
}

#[tokio::test(start_paused = true)]
async fn a_change_of_plain_files_is_noticed() {
    let directory = Directory::new();
    let mut source = TokenSource::Directory(TokenDirectory::open(directory.path().to_owned(), Side::Destination));
    assert!(source.current().is_err());
    assert!(!changed(&mut source).await);
    directory.write("AWSIOT_TUNNEL_ACCESS_TOKEN", "first");
    assert!(changed(&mut source).await);
    directory.write("AWSIOT_TUNNEL_ACCESS_TOKEN", "second");
    assert!(changed(&mut source).await);
    assert_eq!(source.current().map(|tokens| tokens.access.reveal()), Ok("second"));
}

/// Versions follow each other as fast as they can be written: what is read is one of them, never of two.
#[cfg(unix)]
#[test]
fn two_versions_of_a_mounted_secret_are_never_mixed() {
    let directory = Directory::new();
    let mount = |version: usize| {
        let client = format!("{version:032}");
        let files = [("sourceAccessToken", &*version.to_string()), ("sourceClientToken", &*client)];
        directory.mount(&version.to_string(), &files);
    };
    mount(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..300).for_each(mount));
        let mut whole = 0;
        while !writer.is_finished() {
            // So fast a writer may be too fast, which is said.
            match read(&directory, Side::Source) {
                Ok((access, client)) => {
                    assert_eq!(client, Some(format!("{access:0>32}")));
                    whole += 1;
                }
                Err(error) => assert!(error.ends_with("changes while it is read"), "{error}"),
            }
        }
        assert!(whole > 0);
    });
}
