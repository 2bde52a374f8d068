//! Manifests from any source, `ol.toml` and `ol.yaml`: an accepted manifest can be used, and is the same
//! after it has been written and read again.
//!
//! The first byte says which files exist; odd: the rest is YAML, even: TOML.

#![no_main]

use http::Method;
use libfuzzer_sys::fuzz_target;
use openlambda_core::manifest::Manifest;

const FILES: [&str; 7] =
    ["f.py", "lambda_func.py", "lambda_function.py", "bootstrap", "index.js", "app.py", "wsgi.py"];

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let has = |file: &str| {
        FILES.iter().enumerate().any(|(at, known)| *known == file && first & (2 << at) != 0)
    };
    let manifest = match first & 1 {
        0 => Manifest::parse(text),
        _ => Manifest::parse_yaml(text, has),
    };
    let manifest = match manifest.and_then(|manifest| manifest.complete(has)) {
        Ok(manifest) => manifest,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert!(manifest.runtime.is_some() && manifest.handler.is_some());
    assert!(manifest.timeout().as_secs() <= 86_400 && !manifest.timeout().is_zero());
    assert!(manifest.memory_bytes() >> 20 == manifest.memory_mb);
    let _ = manifest.admits(&Method::GET);

    // As registries keep it and the network carries it.
    let written = serde_json::to_string(&manifest).expect("a manifest is JSON");
    let read: Manifest = serde_json::from_str(&written).expect("it was written");
    assert_eq!(read, manifest);
    assert_eq!(read.complete(has).expect("it is complete"), manifest);
});
