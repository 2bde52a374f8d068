//! `ol deploy`: publishes a folder as a function's newest version, once or at every save.

use std::cell::Cell;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use openlambda_core::bundle::{self, Packed};
use openlambda_core::files::read_regular;
use openlambda_core::function::FunctionName;
use openlambda_core::manifest::{MANIFEST_LIMIT, Runtime, YAML_FILE, unserved_triggers};
use openlambda_core::registry::{BundleStream, Published};
use openlambda_sandbox::Pythons;

use super::interrupt::Interrupts;
use super::lookup::{refresh, url_of};
use super::page::Page;
use super::progress::Pace;
use super::watch::Look;
use super::{Common, block_on, print, print_json};
use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::terminal::{for_output, say, shown};

#[derive(Args, Debug)]
pub(super) struct DeployArgs {
    /// The function's folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Its name, NAME or NAMESPACE/NAME [default: the folder's name]
    #[arg(long, value_name = "NAME")]
    name: Option<FunctionName>,
    /// Deploy again whenever a file in the folder is saved; calls continue meanwhile
    #[arg(long)]
    watch: bool,
    /// List what would be deployed and what is left out, and deploy nothing
    #[arg(long, conflicts_with = "watch")]
    dry_run: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn deploy(args: &DeployArgs, catalog: &Catalog) -> Result<ExitCode> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => name_of_folder(&args.folder)?,
    };
    if args.dry_run {
        return list(args, &name);
    }
    let interrupts = Interrupts::listen();
    if args.watch {
        return deploy_every_change(args, &name, catalog, &interrupts);
    }
    let deployed = deploy_once(args, &name, catalog, &interrupts)?;
    deployed.report(args, &name);
    if !args.common.json {
        say!("call it: ol invoke {name}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Deploys the folder now and after every save, until the person ends it. What is wrong with a save
/// is said, and the version before goes on.
fn deploy_every_change(
    args: &DeployArgs,
    name: &FunctionName,
    catalog: &Catalog,
    interrupts: &Interrupts,
) -> Result<ExitCode> {
    // What no save can mend ends it at once.
    args.common.dir()?.running()?;
    let folder = &args.folder;
    std::fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let mut first = true;
    let mut look = Look::at(folder);
    loop {
        match deploy_once(args, name, catalog, interrupts) {
            // Touching a file without changing it is no news.
            Ok(deployed) if deployed.published.new || first => deployed.report(args, name),
            Ok(_) => {}
            Err(error) => crate::error::print("ol", &error),
        }
        interrupts.release();
        if interrupts.asked() {
            return Ok(ExitCode::SUCCESS);
        }
        if first {
            say!("deploying {} whenever it changes; Ctrl-C ends it", folder.display());
            first = false;
        }
        look = look.wait_for_another(folder);
    }
}

struct Deployed {
    published: Published,
    url: String,
    page: Option<Page>,
    left_out: Vec<String>,
}

fn deploy_once(
    args: &DeployArgs,
    name: &FunctionName,
    catalog: &Catalog,
    interrupts: &Interrupts,
) -> Result<Deployed> {
    let dir = args.common.dir()?;
    let page = Page::of(&args.folder, dir.page_of(name))?;
    let (packed, tar) = pack(&args.folder)?;
    check(&args.folder, &packed, &dir.worker_settings()?.pythons()?)?;
    let left_out = packed.left_out;
    let pace = Pace::start(&format!("deploying {name}"), "MiB");
    let state = dir.running()?;
    let registry = state.open_to_change(catalog, "ol deploy")?;
    let published = block_on(async {
        let (sent, answered) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
        let work = async {
            let published = registry.publish(name, in_pieces(tar, pace, sent.clone())).await;
            let published = published.context(|| format!("cannot publish {name}"))?;
            answered.store(true, Ordering::SeqCst);
            refresh(&state, &name.clone().into()).await?;
            Ok(published)
        };
        let mut told = Told::Nothing;
        interrupts.during(work, || pressed(name, &sent, &answered, &mut told)).await?
    })?;
    let url = url_of(&state, &name.clone().into());
    if let Some(page) = &page
        && let Err(error) = page.publish(&url)
    {
        let folder = page.folder().display();
        say!(
            "ol: warning: {folder} cannot be written ({error}), so there is no page that knows the \
             function's URL; make room, and deploy again"
        );
    }
    Ok(Deployed { published, url, page, left_out })
}

/// The folder as a bundle.
fn pack(folder: &Path) -> Result<(Packed, Vec<u8>)> {
    if folder.is_file() {
        let file = folder.display();
        return Err(CliError::new(format!("{file} is a file; name the folder of the function")));
    }
    let pace = Pace::start(&format!("packing {}", folder.display()), "MiB");
    let all = Cell::new(0);
    let mut tar = Shown { pace, all: &all, tar: Vec::new() };
    let packed = bundle::pack_dir_telling(folder, &mut tar, |bytes| all.set(bytes as usize))
        .context(|| format!("cannot deploy {}", folder.display()))?;
    Ok((packed, tar.tar))
}

/// A bundle that tells how large it has become.
struct Shown<'a> {
    pace: Pace,
    /// How large its files are.
    all: &'a Cell<usize>,
    tar: Vec<u8>,
}

impl Write for Shown<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let before = mib(self.tar.len());
        self.tar.extend_from_slice(data);
        let now = mib(self.tar.len());
        if now > before {
            self.pace.at(now, mib(self.all.get()).max(now));
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What would go wrong at the first call.
fn check(folder: &Path, packed: &Packed, pythons: &Pythons) -> Result<()> {
    let program = folder.join("bootstrap");
    if packed.manifest.runtime == Some(Runtime::Bootstrap)
        && let Ok(metadata) = program.metadata()
        && metadata.permissions().mode() & 0o111 == 0
    {
        let program = program.display();
        return Err(CliError::new(format!("{program} is not executable; run chmod +x {program}")));
    }
    super::syntax::check(folder, &packed.manifest, pythons)?;
    super::vendored::check(folder, &packed.manifest);
    let yaml = read_regular(&folder.join(YAML_FILE), MANIFEST_LIMIT as u64).unwrap_or_default();
    for trigger in unserved_triggers(&String::from_utf8_lossy(&yaml)) {
        say!(
            "ol: warning: {YAML_FILE}: triggers.{trigger} is not served yet; only HTTP calls the function"
        );
    }
    Ok(())
}

/// Shows what the bundle would hold, and what it would not.
fn list(args: &DeployArgs, name: &FunctionName) -> Result<ExitCode> {
    let (packed, tar) = pack(&args.folder)?;
    check(&args.folder, &packed, &args.common.dir()?.worker_settings()?.pythons()?)?;
    let entries = bundle::files_in(&*tar).context(|| "the bundle cannot be read".to_owned())?;
    if args.common.json {
        print_json(&serde_json::json!({
            "name": name,
            "digest": packed.digest,
            "bytes": packed.bytes,
            "files": entries,
            "left_out": packed.left_out,
        }));
    } else {
        let mut text = String::new();
        for (sign, paths) in [(' ', &entries), ('-', &packed.left_out)] {
            for path in paths {
                text.push_str(&format!("{sign} {}\n", for_output(path)));
            }
        }
        print(&text);
        say!(
            "{name} would have {} files; {} are left out (-); nothing is deployed",
            entries.len(),
            packed.left_out.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// What one who pressed Ctrl-C was told.
#[derive(PartialEq)]
enum Told {
    Nothing,
    Sent,
    Published,
}

/// What Ctrl-C does while a bundle is published: on its way, it ends it, and nothing is published; once it is
/// there, the registry's answer says whether it is; after that the balancer is still to be told.
fn pressed(
    name: &FunctionName,
    sent: &AtomicBool,
    answered: &AtomicBool,
    told: &mut Told,
) -> Result<()> {
    if !sent.load(Ordering::SeqCst) {
        return Err(CliError::new("interrupted; nothing is published"));
    }
    if answered.load(Ordering::SeqCst) {
        if std::mem::replace(told, Told::Published) == Told::Published {
            return Err(CliError::new(format!(
                "interrupted; {name} is published, and the balancer hears of it from the registry"
            )));
        }
        say!("{name} is published: telling the balancer; Ctrl-C again ends that");
        return Ok(());
    }
    if std::mem::replace(told, Told::Sent) == Told::Sent {
        return Err(CliError::new(format!(
            "interrupted, and the registry has not said whether {name} is published; \
             `ol versions {name}` shows it"
        )));
    }
    say!("the bundle is sent already: waiting for the registry's answer; Ctrl-C again ends that");
    Ok(())
}

const MIB: usize = 1 << 20;

fn mib(bytes: usize) -> u64 {
    bytes.div_ceil(MIB) as u64
}

/// A bundle as a stream that tells how far it has come, and when all of it is handed over.
fn in_pieces(tar: Vec<u8>, pace: Pace, sent: Arc<AtomicBool>) -> BundleStream {
    let (tar, mut at) = (Bytes::from(tar), 0);
    let pieces = std::iter::from_fn(move || {
        let (begin, end) = (at, tar.len().min(at + MIB));
        if begin == end {
            pace.set(|| format!("{} MiB are sent; the registry stores them", mib(end)));
            return None;
        }
        pace.at(mib(begin), mib(tar.len()));
        sent.store(end == tar.len(), Ordering::SeqCst);
        at = end;
        Some(Ok(tar.slice(begin..end)))
    });
    Box::pin(stream::iter(pieces))
}

impl Deployed {
    fn report(&self, args: &DeployArgs, name: &FunctionName) {
        let Deployed { published, url, page, left_out } = self;
        if args.common.json {
            print_json(&serde_json::json!({
                "name": name,
                "version": published.version,
                "digest": published.digest,
                "url": url,
                "left_out": left_out,
                "page": page.as_ref().map(Page::folder),
            }));
        } else {
            print(&format!("{url}\n"));
            let what = if published.new { "is deployed" } else { "was deployed already" };
            say!("{name} version {} {what}", published.version);
            if let Some(first) = left_out.first() {
                let others = match left_out.len() - 1 {
                    0 => String::new(),
                    count => format!(" and {count} more"),
                };
                say!("left out: {}{others}; `ol deploy --dry-run` lists all", shown(first));
            }
            if let Some(index) = page.as_ref().and_then(Page::index) {
                say!("its page: open {} in a browser", index.display());
            }
        }
    }
}

fn name_of_folder(folder: &Path) -> Result<FunctionName> {
    // A link has a name of its own, which may be chosen for the function.
    if folder.file_name().is_some() && folder.is_dir() {
        return name_of_path(folder);
    }
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
pub(super) fn name_of_path(path: &Path) -> Result<FunctionName> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.parse()
        .context(|| "the folder's name is not a valid function name; pass --name".to_owned())
}
