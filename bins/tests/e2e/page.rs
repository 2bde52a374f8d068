//! The chat page in a real browser, driven by [WebDriver](https://www.w3.org/TR/webdriver2/).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::common::{Cluster, HttpClient, client, post, send, wait_for};

/// Two people, one with the page as a file and one with the page from a web server, talk; one of
/// them reloads; the cluster goes away and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn two_pages_chat_and_outlive_the_server() {
    let cluster = Cluster::start(&[]);
    let place = &cluster.place;
    let folder = place.copy_of_example("pychat");
    // A cluster that stops waits for the polls under way.
    let manifest = fs::read_to_string(folder.join("ol.toml")).unwrap();
    let shorter = manifest.replace("LONG_POLL_SECONDS = \"20\"", "LONG_POLL_SECONDS = \"3\"");
    assert_ne!(manifest, shorter);
    fs::write(folder.join("ol.toml"), shorter).unwrap();
    let deployed = place.json(&["deploy", folder.to_str().unwrap(), "--json"]);
    let page = Path::new(deployed["page"].as_str().unwrap()).to_owned();
    for own in ["config.json", "config.js"] {
        assert!(!folder.join("static").join(own).exists(), "the author's folder stays as it is");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(page.join("config.json")).unwrap()).unwrap();
    assert_eq!(config, json!({ "url": deployed["url"] }));
    // What was written is no part of the bundle.
    assert_eq!(place.json(&["deploy", folder.to_str().unwrap(), "--json"]), deployed);

    let server = WebServer::start(&page);
    let driver = Driver::start();
    let file = driver.open(&format!("file://{}", page.join("index.html").display())).await;
    let served = driver.open(&format!("{}/index.html", server.url)).await;
    for browser in [&file, &served] {
        browser.until("#empty:not([hidden])").await;
        let unlabelled = "return [...document.querySelectorAll('input, textarea')]
            .filter(field => field.labels.length === 0).length";
        assert_eq!(browser.script(unlabelled).await, 0);
    }

    let mut said = Vec::new();
    file.write("#name", "Ada").await;
    file.say("hello").await;
    said.push(("Ada", "hello"));
    served.shows(&said).await;
    served.say("who is there?").await;
    said.push(("Anonymous", "who is there?"));
    // What people write is text, whatever it looks like.
    let (image, bold) = ("<img src=x onerror=\"document.title = 'hit'\">", "<b>Eve</b>");
    served.write("#name", bold).await;
    served.say(image).await;
    said.push((bold, image));
    file.shows(&said).await;
    // Shift and Enter.
    file.say("two\u{e008}\u{e007}\u{e008}lines").await;
    said.push(("Ada", "two\nlines"));
    for browser in [&file, &served] {
        browser.shows(&said).await;
        assert_eq!(
            browser
                .script("return document.querySelectorAll('#messages img, #messages b').length")
                .await,
            0
        );
        assert_eq!(browser.script("return document.title").await, "pychat");
    }
    assert_eq!(file.script("return document.querySelectorAll('#messages .own').length").await, 2);

    // Nobody types faster than the page sends.
    let hurried = "for (const text of ['1', '2', '3']) {
        document.getElementById('text').value = text;
        document.getElementById('composer').requestSubmit();
    }";
    file.script(hurried).await;
    said.extend([("Ada", "1"), ("Ada", "2"), ("Ada", "3")]);
    for browser in [&file, &served] {
        browser.shows(&said).await;
    }

    // A reload keeps the messages, and each stands there once. So does the page's other way to find
    // its function.
    fs::rename(page.join("config.json"), page.join("elsewhere")).unwrap();
    served.reload().await;
    served.shows(&said).await;
    fs::rename(page.join("elsewhere"), page.join("config.json")).unwrap();
    file.reload().await;
    file.shows(&said).await;
    assert_eq!(file.script("return document.getElementById('name').value").await, "Ada");

    place.ol(&["down"]);
    for browser in [&file, &served] {
        browser.until("#status:not([hidden])").await;
        let status = browser.script("return document.getElementById('status').textContent").await;
        assert!(status.as_str().unwrap().contains("cannot be reached"), "{status}");
    }
    file.say("are you back?").await;
    file.until("#unsent:not([hidden])").await;
    let kept = file.script("return document.getElementById('text').value").await;
    assert_eq!(kept, "are you back?");
    let address = cluster.address().to_string();
    let up = wait_for(|| {
        let up = place.run(&["up", "--detach", "--listen", &address]);
        up.status.success().then_some(())
    });
    assert!(up.is_some(), "the cluster does not come back at {address}");
    for browser in [&file, &served] {
        browser.until("#status[hidden]").await;
    }
    file.say("").await;
    said.push(("Ada", "are you back?"));
    for browser in [&file, &served] {
        browser.shows(&said).await;
    }
    file.until("#unsent[hidden]").await;

    // On a phone nothing sticks out.
    let phone = json!({"width": 320, "height": 560, "deviceScaleFactor": 2, "mobile": true});
    file.devtools("Emulation.setDeviceMetricsOverride", phone).await;
    let wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(file.script(wide).await, 0);
    let below =
        "return document.getElementById('send').getBoundingClientRect().bottom > innerHeight";
    assert_eq!(file.script(below).await, false);

    // A page that came before its function says what to do.
    fs::remove_file(page.join("config.json")).unwrap();
    fs::remove_file(page.join("config.js")).unwrap();
    for browser in [&file, &served] {
        browser.reload().await;
        browser.until("#status:not([hidden])").await;
        let status = browser.script("return document.getElementById('status').textContent").await;
        assert!(status.as_str().unwrap().contains("ol deploy"), "{status}");
    }
    // And finds it by itself once it is there.
    place.ol(&["deploy", folder.to_str().unwrap()]);
    for browser in [&file, &served] {
        browser.shows(&said).await;
    }
    file.close().await;
    served.close().await;
}

/// A server for files alone.
pub struct WebServer {
    child: Child,
    pub url: String,
}

impl WebServer {
    pub fn start(folder: &Path) -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next());
        let port: u16 = port.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        WebServer { child, url: format!("http://localhost:{port}") }
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Chromium's WebDriver server.
pub struct Driver {
    child: Child,
    /// Open for as long as it runs: it writes there.
    _lines: BufReader<ChildStdout>,
    url: String,
    folder: tempfile::TempDir,
}

impl Driver {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .env("HOME", folder.path())
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // The browsers too, so that all can be ended together.
            .process_group(0)
            .spawn()
            .expect("Debian's package chromium-driver is installed by .ci/deps");
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let port: u16 = loop {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "chromedriver has ended");
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim().trim_end_matches('.').parse().unwrap();
            }
        };
        Driver { child, _lines: lines, url: format!("http://127.0.0.1:{port}"), folder }
    }

    /// A browser of its own, which shows this page.
    pub async fn open(&self, url: &str) -> Browser {
        let options = json!({"args": [
            "--headless=new",
            // For root, which tests may be run as.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--window-size=800,700",
        ]});
        let wanted = json!({"browserName": "chrome", "goog:chromeOptions": options});
        let wanted = json!({"capabilities": {"alwaysMatch": wanted}});
        let client = client();
        let answer = post(&client, &format!("{}/session", self.url), &wanted.to_string()).await;
        let session = &answer.json()["value"]["sessionId"];
        let session = session.as_str().unwrap_or_else(|| panic!("{answer:?}"));
        let browser = Browser { client, url: format!("{}/session/{session}", self.url) };
        browser.command("url", json!({ "url": url })).await;
        browser
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        let folder = self.folder.path().to_str().unwrap().to_owned();
        let left = || {
            let processes = fs::read_dir("/proc").unwrap().flatten();
            let lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
            let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
            lines.filter(|line| line.contains(&folder)).collect::<Vec<_>>()
        };
        let gone = wait_for(|| left().is_empty().then_some(()));
        if !std::thread::panicking() {
            assert!(gone.is_some(), "browsers are left: {:#?}", left());
        }
    }
}

/// One browser with one page.
pub struct Browser {
    client: HttpClient,
    url: String,
}

impl Browser {
    async fn command(&self, command: &str, body: Value) -> Value {
        let url = format!("{}/{command}", self.url);
        let mut answer = post(&self.client, &url, &body.to_string()).await.json();
        let value = answer["value"].take();
        assert!(value["error"].is_null(), "{command} {body}: {value}");
        value
    }

    pub async fn script(&self, script: &str) -> Value {
        self.command("execute/sync", json!({"script": script, "args": []})).await
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        self.command("goog/cdp/execute", json!({"cmd": command, "params": parameters})).await;
    }

    async fn reload(&self) {
        self.command("refresh", json!({})).await;
    }

    /// Types into a field, instead of what is there.
    async fn write(&self, selector: &str, text: &str) {
        let field = self.find(selector).await;
        self.command(&format!("element/{field}/clear"), json!({})).await;
        self.command(&format!("element/{field}/value"), json!({ "text": text })).await;
    }

    /// Types a message and Enter.
    async fn say(&self, text: &str) {
        let field = self.find("#text").await;
        let text = format!("{text}\u{e007}");
        self.command(&format!("element/{field}/value"), json!({ "text": text })).await;
    }

    async fn find(&self, selector: &str) -> String {
        let wanted = json!({"using": "css selector", "value": selector});
        let element = self.command("element", wanted).await;
        let id = element.as_object().and_then(|element| element.values().next());
        id.and_then(Value::as_str).unwrap_or_else(|| panic!("{selector}: {element}")).to_owned()
    }

    /// Waits until there is something like this in the page.
    async fn until(&self, selector: &str) {
        let there = format!("return document.querySelector({}) !== null", json!(selector));
        self.wait(&there, &json!(true)).await;
    }

    /// Waits until the page shows these messages, by these people, and no others.
    async fn shows(&self, said: &[(&str, &str)]) {
        let messages = "return [...document.querySelectorAll('#messages li')].map((li) =>
            ['.who', '.text'].map((part) => li.querySelector(part).textContent))";
        self.wait(messages, &json!(said)).await;
    }

    pub async fn wait(&self, script: &str, wanted: &Value) {
        let mut last = Value::Null;
        for _ in 0..1200 {
            last = self.script(script).await;
            if last == *wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let status = self.script("return document.body.innerText").await;
        panic!("{script}\nnever: {wanted}\nbut: {last}\nthe page: {status}");
    }

    pub async fn close(self) {
        let request = http::Request::delete(&self.url).body("").unwrap();
        assert_eq!(send(&self.client, request).await.unwrap().status, 200);
    }
}
