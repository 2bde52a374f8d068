//! `ol bench`: what sandboxes cost on this machine. The laboratory measures it
//! ([`openlambda_lab::live`]); this folder has the arguments and the tables.

mod kinds;
mod memory;
mod resume;
mod soak;
mod start;
mod turns;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use self::kinds::CatalogKinds;
use super::{block_on, print, print_json, table};
use crate::Catalog;
use crate::error::Result;

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Subcommand, Debug)]
enum Bench {
    /// Create a sandbox, get its first answer, destroy it
    Start(start::StartArgs),
    /// Measure the memory that one more idle instance takes, the kernel's included
    Memory(memory::MemoryArgs),
    /// Resume a paused instance and get its answer
    Resume(resume::ResumeArgs),
    /// Start and destroy thousands of instances, and look for what they leave behind
    Soak(soak::SoakArgs),
    /// Take turns for a bench that asks over standard input
    #[command(hide = true)]
    Turns(turns::TurnsArgs),
}

pub(super) fn bench(args: BenchArgs, catalog: &Catalog) -> Result<ExitCode> {
    let kinds = CatalogKinds::of(catalog)?;
    match args.what {
        Bench::Start(args) => block_on(start::start(args, &kinds)),
        Bench::Memory(args) => block_on(memory::memory(args, &kinds)),
        Bench::Resume(args) => block_on(resume::resume(args, &kinds)),
        Bench::Soak(args) => block_on(soak::soak(args, &kinds)),
        Bench::Turns(args) => block_on(turns::turns(args, &kinds)),
    }
}
