//! Logs of operators: no token may ever stand in one.

/// Lines of a log that are shown of a test that failed.
const TAIL: usize = 150;
/// As many characters as the emulator's access tokens have, and AWS's.
const TOKEN_LENGTH: usize = 256;

/// Whether there is an access token in a text: one that is live, was revoked or belongs to a closed
/// tunnel, as it is or in base64. Nothing else has so many letters and digits, upper and lower case,
/// without a break.
pub fn has_token(text: &str) -> bool {
    let is_token_char = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/';
    let mut runs = text.split(|c| !is_token_char(c));
    runs.any(|run| {
        let has = |is: fn(&u8) -> bool| run.as_bytes().iter().any(is);
        run.len() >= TOKEN_LENGTH
            && has(u8::is_ascii_uppercase)
            && has(u8::is_ascii_lowercase)
            && has(u8::is_ascii_digit)
    })
}

/// The end of a log, for people. A token is never shown.
pub fn tail(log: &str) -> String {
    if has_token(log) {
        return "(not shown: there is an access token in it)".into();
    }
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

#[test]
fn a_token_in_a_log_is_noticed() {
    let token = "aB3+/x".repeat(43)[..TOKEN_LENGTH].to_owned();
    assert!(has_token(&format!("answer: \"{token}\"")));
    assert!(tail(&format!("answer: {token}")).starts_with("(not shown"));
    assert!(!has_token(&"a long-name.".repeat(100)));
}
