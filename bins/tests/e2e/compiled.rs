//! A bundle's Python files are compiled once, behind the calls, and what comes of that is used.

use std::fs;
use std::path::PathBuf;

use crate::common::{Cluster, texts, wait_for};

const MODULES: usize = 60;

/// The files of a package with so much source that it is worth to compile it.
fn package() -> Vec<(String, String)> {
    let module = |n: usize| {
        let functions: String = (0..40)
            .map(|k| format!("def f{k}(x):\n    return [x, {n}, {k}, 'some text']\n"))
            .collect();
        (format!("big/m{n}.py"), format!("{functions}V = {n}\n"))
    };
    let all: String = (0..MODULES).map(|n| format!("import big.m{n}\n")).collect();
    (0..MODULES).map(module).chain([("big/__init__.py".to_owned(), all)]).collect()
}

/// Each call is a cold start, and tells the kind of the first and the last file that is compiled: 1, if neither
/// date nor content of its source are compared.
const CODE: &str = "
import sys
import big
def kind(module):
    try:
        with open(module.__spec__.cached, 'rb') as file: return int.from_bytes(file.read(8)[4:], 'little')
    except FileNotFoundError: return None
def f(event): return [kind(big), kind(big.m9), big.m9.V, sys.path[0] in big.__file__]
";

fn unpacked(cluster: &Cluster) -> Vec<PathBuf> {
    let code = cluster.place.data_dir().join("workers/worker-1/code");
    fs::read_dir(code).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn what_is_imported_is_compiled_once_and_no_date_makes_it_stale() {
    for sandbox in ["process", "sock"] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", sandbox]);
        let package = package();
        let mut files: Vec<_> = package.iter().map(|(name, text)| (&**name, &**text)).collect();
        files.extend([("f.py", CODE), ("ol.toml", "reuse = false\n")]);
        cluster.deploy("f", &files);
        let digest = cluster.place.json(&["describe", "f", "--json"])["digest"].clone();
        let ask = || cluster.place.ol(&["invoke", "f"]);
        let compiled = wait_for(|| (ask().replace(' ', "") == "[1,1,9,true]").then_some(()));
        assert!(compiled.is_some(), "{sandbox}: {}", ask());
        // Python would take neither, if it looked at them.
        let [folder] = &unpacked(&cluster)[..] else { panic!("one function was called") };
        assert!(digest.as_str().unwrap().ends_with(folder.file_name().unwrap().to_str().unwrap()));
        fs::write(folder.join("big/m9.py"), "raise RuntimeError('it is compiled again')\n")
            .unwrap();
        assert_eq!(ask().replace(' ', ""), "[1,1,9,true]", "{sandbox}");
        // The same package in another bundle has nothing of it.
        let other = CODE.replace("def f(", "def g(event): pass\ndef f(");
        files.retain(|(name, _)| *name != "f.py");
        files.push(("f.py", &other));
        cluster.deploy("g", &files);
        assert!(
            wait_for(|| (cluster.place.ol(&["invoke", "g"]).contains(", 9,")).then_some(()))
                .is_some()
        );
        assert_eq!(unpacked(&cluster).len(), 2, "{sandbox}");
        // With the bundle it goes.
        cluster.place.ol(&["rm", "f"]);
        cluster.place.ol(&["rm", "g"]);
        let gone = wait_for(|| unpacked(&cluster).is_empty().then_some(()));
        assert!(gone.is_some(), "{sandbox}: {:?}", unpacked(&cluster));
    }
}

/// Files that cannot be compiled, and files that a compiler written in Python could take for its own.
#[test]
fn no_file_of_a_bundle_keeps_the_others_from_being_compiled_or_is_run_by_that() {
    for sandbox in ["process", "sock"] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", sandbox]);
        let mut files = package();
        for name in
            ["marshal", "posix", "_imp", "compile", "openlambda_bootstrap", "encodings", "warnings"]
        {
            let code = "import os\nos.write(2, b'it was run')\nos._exit(3)\n";
            files.push((format!("{name}.py"), code.to_owned()));
        }
        for (name, text) in [
            ("syntax", "def f(:\n".to_owned()),
            ("deep", format!("x = {}{}\n", "(".repeat(5000), ")".repeat(5000))),
            ("lists", format!("x = {}{}\n", "[".repeat(90), "]".repeat(90))),
            ("long", format!("x = {}1\n", "1 + ".repeat(20_000))),
            ("zero", "x = '\0'\n".to_owned()),
            ("escape", "x = '\\d'\n".to_owned()),
            ("codec", "# -*- coding: no-such -*-\n".to_owned()),
        ] {
            files.push((format!("a/{name}.py"), text));
        }
        files.push(("f.py".to_owned(), CODE.to_owned()));
        files.push(("ol.toml".to_owned(), "reuse = false\n".to_owned()));
        let files: Vec<_> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
        cluster.deploy("f", &files);
        let ask = || cluster.place.run(&["invoke", "f"]);
        let compiled =
            wait_for(|| (texts(&ask()).0.replace(' ', "") == "[1,1,9,true]").then_some(()));
        assert!(compiled.is_some(), "{sandbox}: {:?}", ask());
        assert!(!texts(&cluster.place.run(&["logs", "f"])).0.contains("it was run"));
    }
}
