//! libFuzzer's any bytes as a Tunnel: eight for what else is the case, the rest JSON. What must hold is in
//! tests/hostile/entry.rs, which the property tests share.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/hostile/entry.rs"]
mod entry;
#[path = "../../tests/hostile/schema.rs"]
mod schema;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((seed, json)) = bytes.split_first_chunk() {
        entry::any_tunnel(json, u64::from_le_bytes(*seed));
    }
});
