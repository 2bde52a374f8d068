//! Headers that carry data, from clients, workers and balancers: ids, traces, timings, failures, reservations.
//!
//! An input is lines `name: value`, an empty line, and the body of a reply.

#![no_main]

use http::header::{CONNECTION, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use libfuzzer_sys::fuzz_target;
use openlambda_core::function::Digest;
use openlambda_core::invocation::{Phases, RequestId};
use openlambda_core::wire::{self, ReservationKey, TraceParent};

fuzz_target!(|data: &[u8]| {
    let (mut headers, body) = read(data);

    if let Some(trace) = TraceParent::of(&headers) {
        assert_eq!((trace.trace.len(), trace.parent.len()), (32, 16));
    }
    let phases = wire::parse_server_timing(headers.get_all(wire::SERVER_TIMING));
    let written = wire::server_timing(&phases, true);
    let again = wire::parse_server_timing([&written]);
    let Phases { queue, pull, create, init, run } = phases;
    // Beyond that, a number of microseconds has more digits than a float.
    if [queue, pull, create, init, run].iter().all(|phase| phase.as_secs() < 1_000_000_000) {
        assert_eq!(wire::server_timing(&again, true), written, "{phases:?} became {again:?}");
    }

    if let Ok(Some(id)) = wire::request_id_of(&headers) {
        assert_eq!(wire::id_value(&id), headers[wire::REQUEST_ID]);
    }
    let _ = wire::failure_kind_of(&headers);
    if let Some(failure) = wire::read_failure(&headers, body) {
        let reply = wire::failure_response(&failure, None::<&RequestId>);
        assert_eq!(reply.status(), wire::status_of(failure.kind));
        assert_ne!(reply.status(), StatusCode::OK);
        assert_eq!(wire::failure_kind_of(reply.headers()), Some(failure.kind));
    }
    for value in headers.values().filter_map(|value| value.to_str().ok()) {
        if let Ok(key) = value.parse::<ReservationKey>() {
            assert_eq!(key.to_string().parse::<ReservationKey>().expect("it was printed"), key);
        }
        if let Ok(digest) = value.parse::<Digest>() {
            assert_eq!(digest.to_string().parse::<Digest>().expect("it was printed"), digest);
        }
    }
    let _ = (wire::refuse_pages(&headers), wire::declares_more_than(&headers, 6 << 20));
    let _ = wire::refuse_ambiguous(&headers);
    wire::remove_hop_by_hop(&mut headers);
    wire::remove_own(&mut headers);
    assert!(!headers.contains_key(CONNECTION));
    assert!(headers.keys().all(|name| !name.as_str().starts_with(wire::PREFIX)));
});

fn read(data: &[u8]) -> (HeaderMap, &[u8]) {
    let mut headers = HeaderMap::new();
    let mut rest = data;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    (headers, rest)
}
