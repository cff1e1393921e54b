use aws_sdk_iotsecuretunneling::Client;
use aws_sdk_iotsecuretunneling::operation::list_tunnels::ListTunnelsOutput;
use aws_sdk_iotsecuretunneling::types::DestinationConfig;

use crate::client::{emulator, open_id, refusal, sdk};

fn ids(page: &ListTunnelsOutput) -> Vec<String> {
    page.tunnel_summaries().iter().map(|s| s.tunnel_id().expect("an ID").to_owned()).collect()
}

async fn open_for(client: &Client, thing: &str) -> String {
    let config = DestinationConfig::builder().thing_name(thing).services("SSH").build().expect("a destination");
    let opened = client.open_tunnel().destination_config(config).send().await.expect("OpenTunnel");
    opened.tunnel_id().expect("an ID").to_owned()
}

#[tokio::test]
async fn pages_are_newest_first_and_stable_while_tunnels_are_opened_and_deleted() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let mut expected = Vec::new();
    for _ in 0..25 {
        expected.insert(0, open_id(&client).await);
    }
    let mut seen = Vec::new();
    let mut pages = Vec::new();
    let mut token = None;
    loop {
        let page = client.list_tunnels().max_results(10).set_next_token(token).send().await.expect("a page");
        pages.push(page.tunnel_summaries().len());
        seen.extend(ids(&page));
        // A newer tunnel appears, and the very one that the page ended with goes.
        open_id(&client).await;
        emulator.delete(seen.last().expect("a tunnel")).expect("deleted");
        token = page.next_token().map(str::to_owned);
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, expected);
    assert_eq!(pages, [10, 10, 5]);
}

#[tokio::test]
async fn a_full_last_page_has_no_token() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    for _ in 0..4 {
        open_id(&client).await;
    }
    let first = client.list_tunnels().max_results(2).send().await.expect("a page");
    let token = first.next_token().expect("a token");
    let second = client.list_tunnels().max_results(2).next_token(token).send().await.expect("a page");
    assert_eq!(second.tunnel_summaries().len(), 2);
    assert_eq!(second.next_token(), None);
}

#[tokio::test]
async fn without_a_size_a_page_has_100() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    for _ in 0..101 {
        open_id(&client).await;
    }
    let page = client.list_tunnels().send().await.expect("a page");
    assert_eq!(page.tunnel_summaries().len(), 100);
    assert!(page.next_token().is_some());
}

#[tokio::test]
async fn a_thing_s_tunnels_are_paged_alone() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.insert(0, open_for(&client, "mine").await);
        open_for(&client, "other").await;
        open_id(&client).await;
    }
    let list = || client.list_tunnels().thing_name("mine").max_results(2);
    let first = list().send().await.expect("a page");
    assert_eq!(ids(&first), expected[..2]);
    let second = list().set_next_token(first.next_token().map(str::to_owned)).send().await.expect("a page");
    assert_eq!(ids(&second), expected[2..]);
    assert_eq!(second.next_token(), None);
}

#[tokio::test]
async fn a_token_that_was_never_given_is_refused() {
    let emulator = emulator().await;
    let client = sdk(&emulator);
    for token in ["nonsense", "tunnels-before-", "tunnels-before-x"] {
        let (error, message) = refusal(client.list_tunnels().next_token(token).send().await);
        assert_eq!((error.as_str(), message.as_str()), ("ValidationException", "Invalid nextToken"));
    }
}
