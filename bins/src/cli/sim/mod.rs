//! `ol sim`: policies side by side on one workload, in a simulation of the live code.

mod args;
mod report;
mod run;

pub(super) use args::SimArgs;
pub(super) use run::sim;
