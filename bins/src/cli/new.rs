//! `ol new`: a folder with a function to start from. The templates are part of the binary, so it
//! works without a network.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use openlambda_core::function::FunctionName;

use super::deploy::name_of_path;
use super::{print, print_json};
use crate::error::{CliError, Context, Result};
use crate::terminal::say;

#[derive(Args, Debug)]
pub(super) struct NewArgs {
    /// The folder to make; it must be empty or not there yet
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// What to start from
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Template::Python)]
    template: Template,
    /// The function's name, NAME or NAMESPACE/NAME [default: the folder's name]
    #[arg(long, value_name = "NAME")]
    name: Option<FunctionName>,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Template {
    /// Python: the JSON body in, a JSON value out
    Python,
    /// Python: the whole HTTP request in, a whole HTTP response out
    PythonHttp,
    /// Python: a WSGI application, as of Flask or Django
    PythonWsgi,
    /// Node.js: the JSON body in, a JSON value out
    Node,
    /// A shell script that speaks the Lambda Runtime API with curl
    BootstrapSh,
    /// A Rust program without dependencies that speaks the Lambda Runtime API
    BootstrapRust,
}

/// A file of a template: its path, its text with `{{name}}` for the function's name, and whether it
/// can be executed.
type File = (&'static str, &'static str, bool);

impl Template {
    fn files(self) -> &'static [File] {
        macro_rules! file {
            ($template:literal, $path:literal) => {
                ($path, include_str!(concat!("../../templates/", $template, "/", $path)), false)
            };
            ($template:literal, $path:literal, executable) => {
                ($path, include_str!(concat!("../../templates/", $template, "/", $path)), true)
            };
        }
        match self {
            Template::Python => &[file!("python", "f.py"), file!("python", "ol.toml")],
            Template::PythonHttp => {
                &[file!("python-http", "f.py"), file!("python-http", "ol.toml")]
            }
            Template::PythonWsgi => {
                &[file!("python-wsgi", "app.py"), file!("python-wsgi", "ol.toml")]
            }
            Template::Node => &[file!("node", "index.mjs"), file!("node", "ol.toml")],
            Template::BootstrapSh => {
                &[file!("bootstrap-sh", "bootstrap", executable), file!("bootstrap-sh", "ol.toml")]
            }
            Template::BootstrapRust => &[
                file!("bootstrap-rust", "Cargo.toml"),
                file!("bootstrap-rust", "README.md"),
                file!("bootstrap-rust", "build.sh", executable),
                file!("bootstrap-rust", "ol.toml"),
                file!("bootstrap-rust", "src/main.rs"),
            ],
        }
    }

    /// What to run in the folder before it can be deployed.
    fn build(self) -> Option<&'static str> {
        matches!(self, Template::BootstrapRust).then_some("build.sh")
    }

    /// How `ol invoke` calls it, after the function's name.
    fn call(self) -> &'static str {
        match self {
            Template::PythonHttp | Template::PythonWsgi => "-X GET --path '/?name=you'",
            _ => r#"-d '{"name": "you"}'"#,
        }
    }
}

pub(super) fn new(args: &NewArgs) -> Result<ExitCode> {
    let folder = &args.folder;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            // The folder need not be there yet; `.` and links have the name of what is there.
            let full = folder.canonicalize().or_else(|_| std::path::absolute(folder));
            name_of_path(&full.context(|| format!("cannot use {}", folder.display()))?)?
        }
    };
    make_empty(folder)?;
    let files = args.template.files();
    for (path, text, executable) in files {
        write(&folder.join(path), &text.replace("{{name}}", &name.to_string()), *executable)?;
    }
    let next = next_commands(args, &name);
    if args.json {
        print_json(&serde_json::json!({
            "name": name,
            "folder": folder,
            "files": files.iter().map(|(path, ..)| path).collect::<Vec<_>>(),
            "next": next,
        }));
    } else {
        let paths: Vec<&str> = files.iter().map(|(path, ..)| *path).collect();
        say!("made {}: {}; go on with", folder.display(), paths.join(", "));
        print(&format!("{}\n", next.join("\n")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that the folder is empty: existing files are never overwritten.
fn make_empty(folder: &Path) -> Result<()> {
    match fs::read_dir(folder) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(CliError::new(format!(
                "{} is not empty; name a folder that is not there yet",
                folder.display()
            ))),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(folder).context(|| format!("cannot make {}", folder.display()))
        }
        Err(error) => Err(error).context(|| format!("cannot use {}", folder.display())),
    }
}

fn write(path: &Path, text: &str, executable: bool) -> Result<()> {
    let written = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
        if executable {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        Ok::<(), std::io::Error>(())
    };
    written().context(|| format!("cannot write {}", path.display()))
}

fn next_commands(args: &NewArgs, name: &FunctionName) -> Vec<String> {
    let folder = quoted(&args.folder.display().to_string());
    let named = match &args.name {
        Some(name) => format!(" --name {name}"),
        None => String::new(),
    };
    let build = args.template.build().map(|script| format!("sh {folder}/{script}"));
    build
        .into_iter()
        .chain([
            format!("ol deploy {folder}{named}"),
            format!("ol invoke {name} {}", args.template.call()),
        ])
        .collect()
}

/// As a shell reads it back.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/+=@:,~".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
