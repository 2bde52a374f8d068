//! Cgroups of version 2, for real as far as a machine goes that has its controllers in version 1:
//! joining, pausing and removing need none.

use std::path::Path;

use openlambda_core::function::Digest;
use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::NoLog;
use openlambda_core::time::SystemClock;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_are_cloned_into_their_cgroup_of_version_2_and_frozen_there() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" cgroup2 "));
    let root = rustix::process::geteuid().is_root();
    let (Some(mount), true) = (mount, root) else {
        // An ordinary user has none to make groups in, unless a system hands it one.
        assert!(!root, "no cgroup tree of version 2 is mounted; mount one to run this test");
        return;
    };
    let place = Path::new(mount.split(' ').nth(1).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mark = format!("test-v2-{}", std::process::id());
    let clock = Arc::new(SystemClock::new());
    let config = SockConfig::new(dir.path(), &mark, Spawner::start().unwrap(), clock);
    let mut factory = SockFactory::new(config).unwrap();
    let folder = place.join(cgroup::name_of(&mark));
    fs::create_dir(&folder).unwrap();
    let shared = Arc::get_mut(&mut factory.shared).unwrap();
    shared.cgroups.as_ref().unwrap().remove_folder();
    shared.cgroups = Ok(Cgroups::V2(folder.clone(), Vec::new()));

    let code = dir.path().join("code");
    fs::create_dir(&code).unwrap();
    let words =
        "import subprocess\nsubprocess.Popen(['/bin/sleep', '1000'])\ndef f(event): return event";
    fs::write(code.join("f.py"), words).unwrap();
    let manifest = Arc::new(Manifest::load(&code).unwrap());
    let digest = Digest::from_bytes([1; 32]);
    let name: FunctionName = "v2".parse().unwrap();
    let spec = SandboxSpec::new(name, digest, code, manifest, Arc::new(NoLog));
    for round in 0..3 {
        let sandbox = factory.create(spec.clone()).await.unwrap().sandbox;
        // One group for all rounds, with both processes and their init in it.
        let group = folder.join("0");
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(members.lines().count(), 3);
        let frozen =
            || fs::read_to_string(group.join("cgroup.events")).unwrap().contains("frozen 1");
        sandbox.pause().await.unwrap();
        assert!(frozen());
        if round > 0 {
            sandbox.resume().await.unwrap();
            assert!(!frozen());
        }
        sandbox.destroy().await;
        assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap(), "");
        assert!(!frozen());
    }
    factory.shutdown().await;
    assert!(!folder.exists());
}
