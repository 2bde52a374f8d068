//! A cluster of real processes in a temporary folder, and ways to talk to it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use openlambda_core::serving::identity::prove;
use openlambda_core::serving::{Connector, Secret};
use serde_json::Value;
use tempfile::TempDir;

/// The command-line program.
pub const OL: &str = env!("CARGO_BIN_EXE_ol");

/// Names a folder with copies of the programs, for tests that run as a user who cannot read the others.
pub const COPIES: &str = "OPENLAMBDA_TEST_PROGRAMS";

/// One of the programs, by its name.
pub fn program(name: &str) -> PathBuf {
    match std::env::var_os(COPIES) {
        Some(folder) => Path::new(&folder).join(name),
        None => Path::new(OL).with_file_name(name),
    }
}

/// By a process of its own: a child that another test starts meanwhile would hold our descriptor, and what
/// is open for writing cannot be executed.
pub fn copy_program(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// The same command, as it runs from a terminal: where the tests run in a shell's background, or under `nohup`,
/// children are born with these signals ignored.
pub fn from_a_terminal(command: &Command) -> Command {
    let mut wrapped = Command::new("env");
    wrapped.arg("--default-signal=INT,HUP").arg(command.get_program()).args(command.get_args());
    for (variable, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(variable, value),
            None => wrapped.env_remove(variable),
        };
    }
    wrapped.stdin(Stdio::null());
    wrapped
}

/// A folder for one cluster. Drop stops the cluster and looks for what is left.
pub struct Place {
    dir: TempDir,
    environment: Vec<(String, String)>,
}

impl Place {
    /// For a cluster that has the [secret] of all tests.
    pub fn new() -> Self {
        Place::with_its_own_secret().with("OPENLAMBDA_SECRET_FILE", secret().file())
    }

    /// For a cluster whose secret is known to itself alone.
    pub fn with_its_own_secret() -> Self {
        Place { dir: tempfile::tempdir().unwrap(), environment: Vec::new() }
    }

    /// The same, with one more variable for each `ol`.
    pub fn with(mut self, variable: &str, value: impl Into<String>) -> Self {
        self.environment.push((variable.to_owned(), value.into()));
        self
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// `ol` with these arguments, about this cluster.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("ol"));
        command.args(args).env("OPENLAMBDA_DATA_DIR", self.data_dir()).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(variable, value)| (variable, value)));
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What `ol` prints when it succeeds.
    pub fn ol(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = texts(&output);
        assert!(output.status.success(), "ol {args:?}: {}\n{out}{err}", output.status);
        out
    }

    /// What `ol` says when it fails with status 1.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "ol {args:?}: {out}{err}");
        err
    }

    /// What `ol` says when it is called wrongly, which is status 2.
    pub fn refuses(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "ol {args:?}: {out}{err}");
        err
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ol(args)).unwrap()
    }

    /// A function's folder with these files.
    pub fn function(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.dir.path().join("functions").join(name);
        fs::create_dir_all(&folder).unwrap();
        for (file, text) in files {
            fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            fs::write(folder.join(file), text).unwrap();
            if *file == "bootstrap" {
                use std::os::unix::fs::PermissionsExt;
                let executable = fs::Permissions::from_mode(0o755);
                fs::set_permissions(folder.join(file), executable).unwrap();
            }
        }
        folder
    }

    /// A copy of one of the repository's functions: `ol deploy` may write into its folder.
    pub fn copy_of_example(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join("functions");
        fs::create_dir_all(&folder).unwrap();
        let copied = Command::new("cp").arg("-R").arg(example(name)).arg(&folder).status();
        assert!(copied.unwrap().success());
        folder.join(name)
    }

    /// What every process and cgroup of this cluster is marked with.
    fn mark(&self) -> String {
        let data_dir = self.data_dir();
        let bytes = data_dir.as_os_str().as_encoded_bytes();
        format!("ol-{:016x}", openlambda_core::hash::stable_hash(0, bytes))
    }

    /// Control groups of this cluster.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mark = self.mark();
        let mut found = Vec::new();
        let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.file_name().to_string_lossy().contains(&mark) {
                        found.push(entry.path());
                    }
                    folders.push(entry.path());
                }
            }
        }
        found
    }

    /// Processes of this cluster: each carries the cluster's folder in its arguments or environment,
    /// or its mark.
    pub fn processes(&self) -> Vec<String> {
        let data_dir = self.data_dir();
        let (needle, mark) = (data_dir.to_str().unwrap(), self.mark());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
                continue;
            };
            if pid == std::process::id() {
                continue;
            }
            let read = |file: &str| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).replace('\0', " ")
            };
            let (line, environment) = (read("cmdline"), read("environ"));
            if [needle, &mark].iter().any(|n| line.contains(n) || environment.contains(n)) {
                found.push(format!("{pid}: {line}"));
            }
        }
        found
    }

    /// Waits until no process of this cluster is left.
    pub fn assert_nothing_left(&self) {
        let gone = wait_for(|| self.processes().is_empty().then_some(()));
        assert!(gone.is_some(), "processes are left: {:#?}", self.processes());
        assert_eq!(self.cgroups(), [""; 0].map(PathBuf::from), "cgroups are left");
        let sandboxes =
            fs::read_dir(self.data_dir().join("workers")).into_iter().flatten().flatten();
        for worker in sandboxes {
            let left: Vec<_> = fs::read_dir(worker.path().join("sandboxes"))
                .into_iter()
                .flatten()
                .map(|entry| entry.unwrap().path())
                .collect();
            assert!(left.is_empty(), "sandboxes' folders are left: {left:?}");
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let down = self.run(&["down"]);
        if !std::thread::panicking() {
            assert!(down.status.success(), "{:?}", texts(&down));
            self.assert_nothing_left();
        }
    }
}

/// The secret by which a test is a part of the clusters that it starts.
pub struct TestSecret {
    folder: TempDir,
    secret: Secret,
}

/// The one of all tests.
pub fn secret() -> &'static TestSecret {
    static SECRET: OnceLock<TestSecret> = OnceLock::new();
    SECRET.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let made = Command::new(program("ol")).arg("secret").arg(&path).output().unwrap();
        assert!(made.status.success(), "{:?}", texts(&made));
        TestSecret { secret: Secret::read(&path).unwrap(), folder }
    })
}

impl TestSecret {
    pub fn file(&self) -> String {
        self.folder.path().join("secret").display().to_string()
    }

    pub fn known(&self) -> Secret {
        self.secret.clone()
    }

    /// The header by which tools say that they know it.
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.secret.text())
    }
}

/// One daemon alone. Drop ends it, and sees that it ends as it should.
pub struct Daemon {
    child: Child,
    pub url: String,
}

impl Daemon {
    /// Runs `ol-lb`, `ol-worker` or `ol-registry`, by its path, on a free port.
    pub fn start(program: &str, args: &[&str]) -> Self {
        let mut daemon = Command::new(program);
        daemon.args(["--listen", "127.0.0.1:0", "--secret-file", &secret().file()]).args(args);
        let mut child =
            from_a_terminal(&daemon).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        Daemon { child, url: ready["ready"].as_str().unwrap().to_owned() }
    }

    pub fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    /// Tells it to end.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        kill(self.child.id() as i32, signal);
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        wait_for(|| self.child.try_wait().unwrap()).expect("it stops when it is told to")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.terminate();
        }
        let status = self.ended();
        assert!(std::thread::panicking() || status.success(), "{status}");
    }
}

/// A cluster that serves.
pub struct Cluster {
    pub place: Place,
    pub url: String,
}

impl Cluster {
    pub fn start(args: &[&str]) -> Self {
        Cluster::start_in(Place::new(), args)
    }

    pub fn start_in(place: Place, args: &[&str]) -> Self {
        let mut all = vec!["up", "--detach", "--listen", "127.0.0.1:0"];
        all.extend(args);
        let url = place.ol(&all).trim().to_owned();
        Cluster { place, url }
    }

    /// Deploys the function with these files. Returns its URL.
    pub fn deploy(&self, name: &str, files: &[(&str, &str)]) -> String {
        let folder = self.place.function(name, files);
        self.place.ol(&["deploy", folder.to_str().unwrap()]).trim().to_owned()
    }

    /// Deploys one of the repository's functions.
    pub fn deploy_example(&self, name: &str) -> String {
        let folder = self.place.copy_of_example(name);
        self.place.ol(&["deploy", folder.to_str().unwrap()]).trim().to_owned()
    }

    pub fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    pub fn status(&self) -> Value {
        self.place.json(&["status", "--json"])
    }

    /// The process ids of the workers, by their names.
    pub fn worker_pid(&self, worker: &str) -> Option<i32> {
        let status = self.status();
        let workers = status["workers"].as_array().unwrap();
        let worker = workers.iter().find(|known| known["id"] == worker).unwrap();
        worker["pid"].as_i64().map(|pid| pid as i32)
    }
}

pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/functions").join(name)
}

pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Tries for up to a minute.
pub fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..1200 {
        if let Some(value) = ready() {
            return Some(value);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    None
}

pub fn kill(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

pub type HttpClient = Client<Connector, Full<Bytes>>;

/// A client that calls functions.
pub fn client() -> HttpClient {
    client_of(None)
}

/// A client that is a part of the tests' clusters.
pub fn inside() -> HttpClient {
    client_of(Some(secret().known()))
}

pub fn client_of(secret: Option<Secret>) -> HttpClient {
    let connector = Connector::new(secret, Duration::from_secs(60));
    Client::builder(TokioExecutor::new()).build(connector)
}

pub async fn send(
    client: &HttpClient,
    request: http::Request<impl Into<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    let request = request.map(|body| Full::new(body.into()));
    let answer = client.request(request).await?;
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

/// POSTs `body`.
pub async fn post(client: &HttpClient, url: &str, body: &str) -> Answer {
    let request = http::Request::post(url).body(body.to_owned()).unwrap();
    send(client, request).await.unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// Connects as a process of the tests' clusters does.
pub fn connect(address: SocketAddr) -> TcpStream {
    let proves = async move || {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        prove(&mut stream, &secret().known(), address.into(), &address.to_string()).await?;
        stream.into_std()
    };
    let runs = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(proves())
    };
    // A runtime of its own: the caller may be in one.
    let stream = std::thread::spawn(runs).join().unwrap().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Sends bytes as they are and reads until the other end closes.
pub fn raw(address: SocketAddr, request: &[u8]) -> String {
    exchange(TcpStream::connect(address).unwrap(), request)
}

/// The same, as a process of the tests' clusters.
pub fn raw_inside(address: SocketAddr, request: &[u8]) -> String {
    exchange(connect(address), request)
}

fn exchange(mut stream: TcpStream, request: &[u8]) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a server at the other end of a Unix socket answers to this.
pub fn by_socket(mut stream: UnixStream, request: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
