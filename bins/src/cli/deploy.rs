//! `ol deploy`: publishes a folder as a function's newest version, once or at every save.

use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use openlambda_core::bundle;
use openlambda_core::function::FunctionName;
use openlambda_core::manifest::{YAML_FILE, unserved_triggers};
use openlambda_core::registry::{BundleStream, Published};

use super::lookup::{refresh, url_of};
use super::page::Page;
use super::progress::Progress;
use super::watch::Look;
use super::{Common, block_on, print, print_json};
use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::terminal::say;

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
}

fn deploy_once(args: &DeployArgs, name: &FunctionName, catalog: &Catalog) -> Result<Deployed> {
    if args.folder.is_file() {
        let file = args.folder.display();
        return Err(CliError::new(format!("{file} is a file; name the folder of the function")));
    }
    let page = Page::of(&args.folder)?;
    let progress = Progress::start(format!("packing {}", args.folder.display()));
    let mut tar = Vec::new();
    let packed = bundle::pack_dir(&args.folder, &mut tar)
        .context(|| format!("cannot deploy {}", args.folder.display()))?;
    // Its warnings are lines of their own.
    drop(progress);
    super::syntax::check(&args.folder, &packed.manifest)?;
    let yaml = std::fs::read_to_string(args.folder.join(YAML_FILE)).unwrap_or_default();
    for trigger in unserved_triggers(&yaml) {
        say!(
            "ol: warning: {YAML_FILE}: triggers.{trigger} is not served yet; {name} answers HTTP only"
        );
    }
    let progress = Progress::start(format!("deploying {name}"));
    let state = args.common.dir()?.running()?;
    let registry = state.open_to_change(catalog, "ol deploy")?;
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
        say!(
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
            say!("{name} version {} {what}", published.version);
            if let Some(index) = page.as_ref().and_then(Page::index) {
                say!("its page: open {} in a browser", index.display());
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
    name.parse()
        .context(|| "the folder's name is not a valid function name; pass --name".to_owned())
}
