//! `ol policies`: what balances, and what workers keep alive.

use std::process::ExitCode;

use clap::Args;
use openlambda_core::keep_alive;

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
    let entries = catalog.policies().entries();
    if args.json {
        let policies = entries.map(|entry| {
            let parameters = entry.parameters.iter().map(|parameter| {
                serde_json::json!({
                    "name": parameter.name,
                    "default": parameter.default,
                    "about": parameter.about,
                })
            });
            serde_json::json!({
                "name": entry.name,
                "parameters": parameters.collect::<Vec<_>>(),
                "about": entry.about,
                "source": entry.source,
            })
        });
        let policies = policies.collect::<Vec<_>>();
        let keep_alive = &keep_alive::ENTRIES;
        print_json(&serde_json::json!({ "policies": policies, "keep_alive": keep_alive }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::from("Balancing policies, for --policy:\n\n");
    for entry in entries {
        text.push_str(&format!("{}: {} [{}]\n", entry.name, entry.about, entry.source));
        for parameter in &entry.parameters {
            let (name, default) = (&parameter.name, &parameter.default);
            text.push_str(&format!("    {name} = {default}: {}\n", parameter.about));
        }
    }
    text.push_str("\nKeep-alive policies of the workers, for --keep-alive:\n\n");
    for entry in &keep_alive::ENTRIES {
        text.push_str(&format!("{}: {} [{}]\n", entry.name, entry.about, entry.source));
        for parameter in entry.parameters {
            let (name, default) = (parameter.name, parameter.default);
            text.push_str(&format!("    {name} = {default}: {}\n", parameter.about));
        }
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}
