//! `ol completions` and `ol man`: completions for shells, and manual pages.
//!
//! The script that a shell loads asks this very binary whenever the user presses Tab, so it knows what the
//! binary knows: its policies and sandboxes, and the functions of the running cluster with their versions. A completion costs
//! the start of a process, and a request to the registry where it completes a function's name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Command, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use openlambda_core::catalog::Catalog as PartCatalog;

use super::{block_on, print};
use crate::Catalog;
use crate::cluster::DataDir;
use crate::error::{CliError, Context, Result};

/// Set by the script when it asks.
const VARIABLE: &str = "OPENLAMBDA_COMPLETE";

/// How long a shell waits for functions' names.
const PATIENCE: Duration = Duration::from_millis(500);

/// The commands whose argument `function` is the name of one.
const ABOUT_FUNCTIONS: [&str; 7] =
    ["invoke", "describe", "versions", "alias", "rollback", "logs", "rm"];

/// Those of them that take `NAME:VERSION` and `NAME:ALIAS` as well.
const BY_REFERENCE: [&str; 2] = ["invoke", "describe"];

#[derive(Args, Debug)]
#[command(after_help = "To have them in every new shell:\n  \
    bash  echo 'source <(ol completions bash)' >> ~/.bashrc\n  \
    zsh   echo 'source <(ol completions zsh)' >> ~/.zshrc\n  \
    fish  ol completions fish > ~/.config/fish/completions/ol.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Answers a shell that asks and ends the program; does nothing in every other run. `ol`: the command line.
pub(super) fn answer(ol: fn() -> Command, catalog: &Arc<Catalog>) {
    if std::env::var_os(VARIABLE).is_some() {
        CompleteEnv::with_factory(|| command(ol(), catalog)).var(VARIABLE).complete();
    }
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let shell = match args.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let program = std::env::args_os().next().map(PathBuf::from).unwrap_or_else(|| "ol".into());
    let name = program.file_name().map_or("ol".into(), |name| name.to_string_lossy().into_owned());
    // One that was found by its name alone is found again; another is not where the shell is later.
    let program = match program.components().count() {
        0 | 1 => PathBuf::from(&name),
        _ => std::path::absolute(&program).unwrap_or(program),
    };
    let shells = Shells::builtins();
    let shell = shells.completer(shell).ok_or_else(|| CliError::new("no such shell"))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, &name, &name, &program.to_string_lossy(), &mut script)
        .context(|| "cannot write the script".to_owned())?;
    if matches!(args.shell, Shell::Bash) {
        // Bash would end a word at the colon of NAME:VERSION.
        print("COMP_WORDBREAKS=${COMP_WORDBREAKS//:/}\n");
    }
    print(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}

/// The command line with what only this binary and this cluster know.
fn command(mut command: Command, catalog: &Arc<Catalog>) -> Command {
    for name in ABOUT_FUNCTIONS {
        let catalog = Arc::clone(catalog);
        let references = BY_REFERENCE.contains(&name);
        let names = move |word: &OsStr| match word.to_string_lossy().split_once(':') {
            Some((name, _)) if references => {
                let known = known(&catalog, Some(name));
                begun_by(word, known.iter().flat_map(|known| known.references()))
            }
            _ => begun_by(word, known(&catalog, None).iter().map(|known| known.name.clone())),
        };
        command = complete(command, name, "function", ArgValueCompleter::new(names));
    }
    for (name, argument) in [("alias", "alias"), ("alias", "version"), ("rollback", "version")] {
        let catalog = Arc::clone(catalog);
        let wanted = move |word: &OsStr| {
            let Some(function) = function_before(name) else { return Vec::new() };
            let known = known(&catalog, Some(&function));
            let (versions, aliases) = (name != argument, argument == "alias" || name == "rollback");
            let offered = known.iter().flat_map(|known| {
                let aliases = known.aliases.iter().filter(|_| aliases).cloned();
                aliases.chain(known.versions.iter().filter(|_| versions).cloned())
            });
            begun_by(word, offered)
        };
        command = complete(command, name, argument, ArgValueCompleter::new(wanted));
    }
    let policies = || {
        let catalog = Arc::clone(catalog);
        ArgValueCandidates::new(move || entries(catalog.policies()))
    };
    let keep_alive = || {
        let catalog = Arc::clone(catalog);
        ArgValueCandidates::new(move || entries(catalog.keep_alive_policies()))
    };
    let queues = || {
        let catalog = Arc::clone(catalog);
        ArgValueCandidates::new(move || entries(catalog.queue_policies()))
    };
    let fixed = |values: Vec<&'static str>| {
        ArgValueCandidates::new(move || values.iter().map(CompletionCandidate::new).collect())
    };
    let sandboxes = [&["auto"], &*catalog.sandbox_names()].concat();
    command = offer(command, "up", "balancer.policy", policies());
    command = offer(command, "up", "worker.sandbox", fixed(sandboxes));
    command = offer(command, "up", "cluster.registry", fixed(vec!["native", "dir"]));
    command = offer(command, "sim", "policies", policies());
    for (command_name, argument) in [("up", "worker.keep_alive"), ("sim", "keep_alive")] {
        command = offer(command, command_name, argument, keep_alive());
    }
    for (command_name, argument) in [("up", "worker.queue_policy"), ("sim", "queue_policy")] {
        command = offer(command, command_name, argument, queues());
    }
    command
}

fn entries<T: ?Sized>(catalog: &PartCatalog<T>) -> Vec<CompletionCandidate> {
    let entries = catalog.entries().map(|entry| {
        let about = Some(entry.about.clone().into());
        CompletionCandidate::new(entry.name.clone()).help(about)
    });
    entries.collect()
}

fn offer(
    command: Command,
    subcommand: &'static str,
    argument: &'static str,
    candidates: ArgValueCandidates,
) -> Command {
    let add = |command: Command| command.mut_arg(argument, |argument| argument.add(candidates));
    command.mut_subcommand(subcommand, add)
}

fn complete(
    command: Command,
    subcommand: &'static str,
    argument: &'static str,
    completer: ArgValueCompleter,
) -> Command {
    let add = |command: Command| command.mut_arg(argument, |argument| argument.add(completer));
    command.mut_subcommand(subcommand, add)
}

/// The candidates that a word may become.
fn begun_by(word: &OsStr, candidates: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let word = word.to_string_lossy();
    candidates.filter(|it| it.starts_with(&*word)).map(CompletionCandidate::new).collect()
}

/// The function that is named on the command line which is being completed: the first word behind the
/// command that is no flag.
fn function_before(command: &str) -> Option<String> {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    // The shell's words stand behind `--`.
    let words = words.skip_while(|word| word != "--").skip_while(|word| word != command);
    words.skip(1).find(|word| !word.starts_with('-'))
}

/// A function, as a command line names it.
struct Known {
    name: String,
    versions: Vec<String>,
    aliases: Vec<String>,
}

impl Known {
    /// `NAME:ALIAS`, `NAME:VERSION`.
    fn references(&self) -> impl Iterator<Item = String> {
        let qualifiers = self.aliases.iter().chain(&self.versions);
        qualifiers.map(|qualifier| format!("{}:{qualifier}", self.name))
    }
}

/// All functions, or this one with its versions; none where that cannot be told: a shell has no use for
/// an error.
fn known(catalog: &Catalog, only: Option<&str>) -> Vec<Known> {
    let names = || {
        let named = std::env::var_os("OPENLAMBDA_DATA_DIR").map(PathBuf::from);
        let state = DataDir::new(named)?.running()?;
        let registry = state.open_registry(catalog)?;
        let look = async {
            let list = registry.list().await.context(String::new)?;
            let mut known = Vec::new();
            for listing in list {
                let name = listing.name.to_string();
                let versions = match only {
                    Some(only) if only == name => {
                        registry.versions(&listing.name).await.context(String::new)?
                    }
                    Some(_) => continue,
                    None => Vec::new(),
                };
                let versions = versions.iter().rev().map(|info| info.version.to_string());
                let aliases = listing.aliases.into_keys();
                known.push(Known {
                    name,
                    versions: versions.collect(),
                    aliases: aliases.collect(),
                });
            }
            Ok(known)
        };
        block_on(async { tokio::time::timeout(PATIENCE, look).await.context(String::new)? })
    };
    names().unwrap_or_default()
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// The folder for the pages
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes a page for each command of `ol` and for each daemon, as packages hold them.
pub(super) fn man(args: &ManArgs, ol: Command) -> Result<ExitCode> {
    let write = move |out: &Path| {
        std::fs::create_dir_all(out)?;
        for command in [ol].into_iter().chain(crate::daemon::commands()) {
            clap_mangen::generate_to(command.disable_help_subcommand(true), out)?;
        }
        Ok::<(), std::io::Error>(())
    };
    write(&args.out).context(|| format!("cannot write to {}", args.out.display()))?;
    Ok(ExitCode::SUCCESS)
}
