//! `ol completions` and `ol man`: completions for shells, and manual pages.
//!
//! The script that a shell loads asks this very binary whenever the user presses Tab, so it knows what the
//! binary knows: its policies and sandboxes, and the functions of the running cluster. A completion costs
//! the start of a process, and a request to the registry where it completes a function's name.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Command, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
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
    print(&String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}

/// The command line with what only this binary and this cluster know.
fn command(mut command: Command, catalog: &Arc<Catalog>) -> Command {
    for name in ABOUT_FUNCTIONS {
        let catalog = Arc::clone(catalog);
        let names = move || functions(&catalog).into_iter().map(CompletionCandidate::new).collect();
        command = offer(command, name, "function", ArgValueCandidates::new(names));
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

/// The names of the functions, or none: a shell has no use for an error.
fn functions(catalog: &Catalog) -> Vec<String> {
    let names = || {
        let named = std::env::var_os("OPENLAMBDA_DATA_DIR").map(PathBuf::from);
        let state = DataDir::new(named)?.running()?;
        let registry = state.open_registry(catalog)?;
        block_on(async {
            let list = tokio::time::timeout(PATIENCE, registry.list()).await;
            let list = list.context(String::new)?.context(String::new)?;
            Ok(list.into_iter().map(|listing| listing.name.to_string()).collect())
        })
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
