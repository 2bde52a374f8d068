//! `ol deploy`, `ol invoke`, `ol ls`, `ol rm`, and what other commands about functions share.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use http::StatusCode;
use openlambda_core::bundle;
use openlambda_core::config::nearest;
use openlambda_core::function::{FunctionName, FunctionRef};
use openlambda_core::registry::{BundleStream, Listing, Published, Registry, RegistryError};
use openlambda_core::wire;

use super::page::Page;
use super::progress::Progress;
use super::watch::Look;
use super::{Common, block_on, print, print_json, table};
use crate::Catalog;
use crate::cluster::ClusterState;
use crate::error::{CliError, Context, Result};
use crate::http_client;

#[derive(Args, Debug)]
pub(super) struct DeployArgs {
    /// The function's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Its name, NAME or NAMESPACE/NAME [default: the folder's name]
    #[arg(long, value_name = "NAME")]
    name: Option<FunctionName>,
    /// Deploy it again whenever a file in it is saved; calls go on meanwhile
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn deploy(args: &DeployArgs, catalog: &Catalog) -> Result<ExitCode> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of_folder(&args.folder)?,
    };
    if args.watch {
        return deploy_every_change(args, &name, catalog);
    }
    let deployed = deploy_once(args, &name, catalog)?;
    deployed.report(args, &name);
    if !args.common.json {
        eprintln!("call it: ol invoke {name}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Deploys the folder now and after every save, until the person ends it. What is wrong with a save
/// is said, and the version before goes on.
fn deploy_every_change(
    args: &DeployArgs,
    name: &FunctionName,
    catalog: &Catalog,
) -> Result<ExitCode> {
    // What no save can mend ends it at once.
    args.common.dir()?.running()?;
    let folder = &args.folder;
    std::fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let mut first = true;
    let mut look = Look::at(folder);
    loop {
        match deploy_once(args, name, catalog) {
            // Touching a file without changing it is no news.
            Ok(deployed) if deployed.published.new || first => deployed.report(args, name),
            Ok(_) => {}
            Err(error) => crate::error::print("ol", &error),
        }
        if first {
            eprintln!("deploying {} whenever it changes; Ctrl-C ends it", folder.display());
            first = false;
        }
        look = look.wait_for_another(folder);
    }
}

struct Deployed {
    published: Published,
    url: String,
    page: Option<Page>,
}

fn deploy_once(args: &DeployArgs, name: &FunctionName, catalog: &Catalog) -> Result<Deployed> {
    let page = Page::of(&args.folder)?;
    let progress = Progress::start(format!("packing {}", args.folder.display()));
    let mut tar = Vec::new();
    let packed = bundle::pack_dir(&args.folder, &mut tar)
        .context(|| format!("cannot deploy {}", args.folder.display()))?;
    // Its warnings are lines of their own.
    drop(progress);
    super::syntax::check(&args.folder, &packed.manifest)?;
    let progress = Progress::start(format!("deploying {name}"));
    let state = args.common.dir()?.running()?;
    let registry = catalog.open_registry(&state.registry.spec)?;
    let published = block_on(async {
        let published = registry.publish(name, in_pieces(tar, progress)).await;
        let published = published.context(|| format!("cannot publish {name}"))?;
        refresh(&state, &name.clone().into()).await?;
        Ok(published)
    })?;
    let url = url_of(&state, &name.clone().into());
    if let Some(Err(error)) = page.as_ref().map(|page| page.tell(&url)) {
        let folder = args.folder.join("static");
        let folder = folder.display();
        eprintln!(
            "ol: warning: {folder} cannot be written ({error}), so the page in it does not know the \
             function's URL; copy the folder to where you may write, and deploy from there"
        );
    }
    Ok(Deployed { published, url, page })
}

/// A bundle as a stream that tells how far it has come.
fn in_pieces(tar: Vec<u8>, progress: Progress) -> BundleStream {
    const PIECE: usize = 1 << 20;
    let (tar, mib) = (Bytes::from(tar), |bytes: usize| bytes as f64 / 1_048_576.0);
    let pieces = (0..tar.len()).step_by(PIECE).map(move |at| {
        progress.set(|| format!("sending {:.1} of {:.1} MiB", mib(at), mib(tar.len())));
        Ok(tar.slice(at..tar.len().min(at + PIECE)))
    });
    Box::pin(stream::iter(pieces))
}

impl Deployed {
    fn report(&self, args: &DeployArgs, name: &FunctionName) {
        let Deployed { published, url, page } = self;
        if args.common.json {
            print_json(&serde_json::json!({
                "name": name,
                "version": published.version,
                "digest": published.digest,
                "url": url,
            }));
        } else {
            print(&format!("{url}\n"));
            let what = if published.new { "is deployed" } else { "was deployed already" };
            eprintln!("{name} version {} {what}", published.version);
            if let Some(index) = page.as_ref().and_then(Page::index) {
                eprintln!("its page: open {} in a browser", index.display());
            }
        }
    }
}

fn name_of_folder(folder: &std::path::Path) -> Result<FunctionName> {
    let full = folder.canonicalize();
    let full = full.map_err(|error| {
        let folder = folder.display();
        CliError::new(format!(
            "cannot read the folder {folder}: {error}; `ol new DIR` makes one to start from"
        ))
    })?;
    name_of_path(&full)
}

/// The function's name that the last part of a path is.
pub(super) fn name_of_path(path: &std::path::Path) -> Result<FunctionName> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.parse().context(|| "the folder's name does not do; pass --name".to_owned())
}

/// Where a function is called.
pub(super) fn url_of(state: &ClusterState, function: &FunctionRef) -> String {
    format!("{}{}", state.url, wire::run_path(function))
}

/// Makes the balancer look a function up again, so that the next call sees what was just changed.
pub(super) async fn refresh(state: &ClusterState, function: &FunctionRef) -> Result<()> {
    let url = format!("{}{}", state.url, wire::REFRESH_PATH);
    let request = http::Request::post(&url).body(Bytes::from(function.to_string()));
    let answer = http_client::send(request.context(|| format!("{url} is no address"))?).await?;
    match answer.status() {
        // After `ol rm` it is not there any more, which is right.
        StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
        status => Err(CliError::new(format!(
            "the balancer could not look {function} up ({status}): {}",
            String::from_utf8_lossy(answer.body()).trim()
        ))),
    }
}

#[derive(Args, Debug)]
pub(super) struct InvokeArgs {
    /// The function: NAME, NAMESPACE/NAME, NAME:VERSION, NAME:ALIAS
    function: FunctionRef,
    /// The body: text, @FILE, or - for standard input [default: empty]
    #[arg(short = 'd', long = "data", value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// The HTTP method [default: POST]
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "POST")]
    method: http::Method,
    /// A header; may be given more than once
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// What follows the function in the URL: /PATH?QUERY
    #[arg(long, value_name = "PATH", default_value = "")]
    path: String,
    #[command(flatten)]
    common: Common,
}

pub(super) fn invoke(args: &InvokeArgs) -> Result<ExitCode> {
    let body = read_data(args.data.as_deref())?;
    let state = args.common.dir()?.running()?;
    let slash = if args.path.is_empty() || args.path.starts_with(['/', '?']) { "" } else { "/" };
    let url = format!("{}{}{slash}{}", state.url, wire::run_path(&args.function), args.path);
    let mut request = http::Request::builder().method(args.method.clone()).uri(&url);
    if !body.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
    }
    for header in &args.headers {
        let (name, value) = header.split_once(':').ok_or_else(|| {
            CliError::new(format!("header \"{header}\" has no colon; write \"NAME: VALUE\""))
        })?;
        request = request.header(name.trim(), value.trim());
    }
    let request = request.body(body).context(|| "this is no valid request".to_owned())?;
    let answer = block_on(http_client::send(request))?;
    let ok = !answer.status().is_client_error() && !answer.status().is_server_error();
    if args.common.json {
        print_json(&invoke_json(&answer));
    } else {
        use std::io::{IsTerminal, Write};
        let mut out = std::io::stdout().lock();
        let line_end = out.is_terminal() && !answer.body().ends_with(b"\n");
        let end: &[u8] = if line_end { b"\n" } else { b"" };
        let _ = out.write_all(answer.body()).and_then(|()| out.write_all(end));
        if !ok {
            eprintln!("ol: {} answered {}", args.function, answer.status());
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_data(data: Option<&str>) -> Result<Bytes> {
    match data {
        None => Ok(Bytes::new()),
        Some("-") => {
            let mut body = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut body);
            read.context(|| "cannot read standard input".to_owned())?;
            Ok(body.into())
        }
        Some(text) => match text.strip_prefix('@') {
            Some(file) => Ok(std::fs::read(file).context(|| format!("cannot read {file}"))?.into()),
            None => Ok(Bytes::copy_from_slice(text.as_bytes())),
        },
    }
}

/// The documented form of `ol invoke --json`.
fn invoke_json(answer: &http::Response<Bytes>) -> serde_json::Value {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut headers = serde_json::Map::new();
    for name in answer.headers().keys() {
        let values: Vec<String> = answer.headers().get_all(name).iter().map(text).collect();
        headers.insert(name.to_string(), values.join(", ").into());
    }
    let phases = wire::parse_server_timing(answer.headers().get_all(wire::SERVER_TIMING));
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    serde_json::json!({
        "status": answer.status().as_u16(),
        "headers": headers,
        "body": String::from_utf8_lossy(answer.body()),
        "start": answer.headers().get(wire::START).map(text),
        "phases_ms": {
            "queue": ms(phases.queue),
            "pull": ms(phases.pull),
            "create": ms(phases.create),
            "init": ms(phases.init),
            "run": ms(phases.run),
        },
    })
}

pub(super) fn list(args: &Common, catalog: &Catalog) -> Result<ExitCode> {
    let state = args.dir()?.running()?;
    let registry = catalog.open_registry(&state.registry.spec)?;
    let functions = block_on(list_all(&registry))?;
    let url_of = |name: &FunctionName| url_of(&state, &name.clone().into());
    if args.json {
        let functions = functions.iter().map(|listing| {
            serde_json::json!({
                "name": listing.name,
                "version": listing.version,
                "digest": listing.digest,
                "aliases": listing.aliases,
                "url": url_of(&listing.name),
            })
        });
        print_json(&serde_json::json!({ "functions": functions.collect::<Vec<_>>() }));
        return Ok(ExitCode::SUCCESS);
    }
    let row = |listing: &Listing| {
        let digest: String = listing.digest.hex().chars().take(12).collect();
        let url = url_of(&listing.name);
        vec![listing.name.to_string(), listing.version.to_string(), digest, url]
    };
    let rows: Vec<Vec<String>> = functions.iter().map(row).collect();
    print(&table(&["FUNCTION", "VERSION", "DIGEST", "URL"], &rows));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn list_all(registry: &Arc<dyn Registry>) -> Result<Vec<Listing>> {
    registry.list().await.context(|| "cannot list the functions".to_owned())
}

/// That there is no such function, and which one may be meant.
pub(super) async fn no_function(registry: &Arc<dyn Registry>, name: &FunctionName) -> CliError {
    let known = match list_all(registry).await {
        Ok(known) => known,
        Err(error) => return error,
    };
    let known: Vec<String> = known.iter().map(|listing| listing.name.to_string()).collect();
    let hint = match nearest(&name.to_string(), known.iter().map(String::as_str)) {
        Some(nearest) => format!("did you mean \"{nearest}\"?"),
        None => "`ol ls` shows what there is".to_owned(),
    };
    CliError::new(format!("there is no function \"{name}\"; {hint}"))
}

#[derive(Args, Debug)]
pub(super) struct RmArgs {
    /// The function
    function: FunctionName,
    /// Remove the data in its volumes too
    #[arg(long)]
    volumes: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn remove(args: &RmArgs, catalog: &Catalog) -> Result<ExitCode> {
    let dir = args.common.dir()?;
    let state = dir.running()?;
    let registry = catalog.open_registry(&state.registry.spec)?;
    let name = &args.function;
    block_on(async {
        match registry.delete(name).await {
            Ok(()) => refresh(&state, &name.clone().into()).await,
            Err(RegistryError::NotFound { .. }) => Err(no_function(&registry, name).await),
            Err(error) => Err(error).context(|| format!("cannot remove {name}")),
        }
    })?;
    for worker in &state.workers {
        for log in super::logs::files(&dir, &worker.id, name) {
            let _ = std::fs::remove_file(log);
        }
    }
    let volumes = dir.join("volumes").join(name.namespace()).join(name.name());
    if args.volumes {
        match std::fs::remove_dir_all(&volumes) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("cannot remove {}", volumes.display()))?;
            }
            _ => {}
        }
    }
    if args.common.json {
        print_json(&serde_json::json!({ "name": name }));
    } else {
        let kept = if volumes.exists() { "; its volumes are kept" } else { "" };
        eprintln!("{name} is removed{kept}");
    }
    Ok(ExitCode::SUCCESS)
}
