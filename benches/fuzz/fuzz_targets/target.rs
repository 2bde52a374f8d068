//! Paths of requests: of calls and of the registry. An accepted path has a canonical form that means the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use openlambda_core::function::FunctionRef;
use openlambda_core::wire::{parse_registry_path, parse_target, run_path};

fuzz_target!(|path: &str| {
    if let Some(Ok(target)) = parse_target(path) {
        assert!(target.path.starts_with('/'));
        let whole = format!("{}{}", target.root, target.path);
        assert!(whole == path || whole.strip_suffix('/') == Some(path), "{target:?} is {path:?}");
        let again = parse_target(&run_path(&target.function));
        let again = again.expect("it is a call's path").expect("its name is valid");
        assert_eq!(again.function, target.function);
        printed(&target.function);
    }
    if let Some(Ok(registry)) = parse_registry_path(path) {
        assert!(!registry.config || registry.function.is_some());
        registry.function.iter().for_each(printed);
    }
    if let Ok(function) = path.parse() {
        printed(&function);
    }
});

/// What a reference prints is read as that reference.
fn printed(function: &FunctionRef) {
    let text = function.to_string();
    assert_eq!(text.parse::<FunctionRef>().as_ref(), Ok(function), "{text}");
}
