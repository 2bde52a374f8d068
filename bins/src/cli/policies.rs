//! `ol policies`: the balancing, keep-alive and queue policies.

use std::process::ExitCode;

use clap::Args;
use openlambda_core::catalog::{Catalog as PartCatalog, ParameterInfo};
use serde_json::{Value, json};

use super::{print, print_json};
use crate::Catalog;
use crate::error::Result;

#[derive(Args, Debug)]
pub(super) struct PoliciesArgs {
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub(super) fn policies(args: &PoliciesArgs, catalog: &Catalog) -> Result<ExitCode> {
    let (balancing, keep_alive) = (catalog.policies(), catalog.keep_alive_policies());
    let queues = catalog.queue_policies();
    if args.json {
        print_json(&json!({
            "policies": entries(balancing, |parameter| json!({
                "name": parameter.name,
                "default": parameter.default,
                "about": parameter.about,
            })),
            "keep_alive": entries(keep_alive, with_numbers),
            "queue": entries(queues, with_numbers),
        }));
        return Ok(ExitCode::SUCCESS);
    }
    let balancing = lines(balancing);
    let (keep_alive, queues) = (lines(keep_alive), lines(queues));
    print(&format!(
        "Balancing policies, for --policy:\n\n{balancing}\n\
         Keep-alive policies of the workers, for --keep-alive:\n\n{keep_alive}\n\
         Queue policies of the workers, for --queue-policy:\n\n{queues}"
    ));
    Ok(ExitCode::SUCCESS)
}

/// A parameter whose numbers are told as such, with its bounds.
fn with_numbers(parameter: &ParameterInfo) -> Value {
    let mut told = json!({
        "name": parameter.name,
        "default": parameter.default,
        "about": parameter.about,
    });
    if let Ok(number) = parameter.default.parse::<f64>() {
        told["default"] = number.into();
    }
    if let Some(bounds) = &parameter.bounds {
        told["least"] = (*bounds.start()).into();
        told["most"] = (*bounds.end()).into();
    }
    told
}

fn entries<T: ?Sized>(
    catalog: &PartCatalog<T>,
    parameter: impl Fn(&ParameterInfo) -> Value,
) -> Vec<Value> {
    let entries = catalog.entries().map(|entry| {
        json!({
            "name": entry.name,
            "parameters": entry.parameters.iter().map(&parameter).collect::<Vec<_>>(),
            "about": entry.about,
            "source": entry.source,
        })
    });
    entries.collect()
}

/// A line for each policy, and below it one for each of its parameters.
fn lines<T: ?Sized>(catalog: &PartCatalog<T>) -> String {
    let mut text = String::new();
    for entry in catalog.entries() {
        text.push_str(&format!("{}: {} [{}]\n", entry.name, entry.about, entry.source));
        for ParameterInfo { name, default, about, .. } in &entry.parameters {
            text.push_str(&format!("    {name} = {default}: {about}\n"));
        }
    }
    text
}
