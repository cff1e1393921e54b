//! What a failure means, and foreign words.

use super::*;

#[test]
fn only_a_well_formed_4xx_is_definite() {
    use CallErrorKind::*;
    for (status, code, kind) in [
        (400, Some("LimitExceededException"), LimitExceeded),
        (400, Some("ThrottlingException"), Throttled),
        (429, Some("Whatever"), Throttled),
        (400, Some("ResourceNotFoundException"), NotFound),
        (400, Some("ValidationException"), InvalidRequest),
        (403, Some("InvalidSignatureException"), AccessDenied),
        (403, Some("SomethingNew"), AccessDenied),
        (400, Some("ExpiredTokenException"), AccessDenied),
        (400, None, Doubt),
        (403, None, Doubt),
        (408, Some("RequestTimeout"), Doubt),
        (500, Some("InternalFailure"), Doubt),
        (503, Some("ThrottlingException"), Doubt),
        (200, None, Doubt),
    ] {
        assert_eq!(kind_of(status, code), kind, "{status} {code:?}");
    }
}

#[test]
fn foreign_words_are_cut_and_have_no_control_characters() {
    let words = clean(&format!("a\nb\u{1b}[31m{}", "ü".repeat(2000)));
    assert!(words.starts_with("a b [31m") && words.len() <= 1024, "{}", words.len());
}
