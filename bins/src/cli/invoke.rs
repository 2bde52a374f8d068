//! `ol invoke`: calls a function and prints its reply.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use openlambda_core::function::FunctionRef;
use openlambda_core::wire;

use super::lookup::not_there;
use super::output::print_bytes;
use super::{Common, block_on, print_json};
use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::http_client;
use crate::terminal::{say, shown};

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

pub(super) fn invoke(args: &InvokeArgs, catalog: &Catalog) -> Result<ExitCode> {
    let headers = args.headers.iter().map(|text| header(text));
    let headers = headers.collect::<Result<Vec<_>>>()?;
    let body = read_data(args.data.as_deref())?;
    let state = args.common.dir()?.running()?;
    let slash = if args.path.is_empty() || args.path.starts_with(['/', '?']) { "" } else { "/" };
    let url = format!("{}{}{slash}{}", state.url, wire::run_path(&args.function), args.path);
    let mut request = http::Request::builder().method(args.method.clone()).uri(&url);
    if !body.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, "application/json");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(body);
    let request = request.map_err(|_| {
        let message = format!(
            "\"{}\" cannot stand in a URL; write /PATH?QUERY, with %20 for a blank",
            args.path
        );
        CliError::new(message).by_the_call()
    })?;
    let answer = block_on(http_client::send(request, state.secret.as_ref()))?;
    let ok = !answer.status().is_client_error() && !answer.status().is_server_error();
    if args.common.json {
        print_json(&invoke_json(&answer));
    } else {
        // A terminal obeys what it gets, so it gets a text; everybody else gets the bytes.
        if std::io::stdout().is_terminal() {
            let text = String::from_utf8_lossy(answer.body());
            let end = if text.ends_with('\n') { "" } else { "\n" };
            print_bytes(format!("{}{end}", shown(&text)).as_bytes());
        } else {
            print_bytes(answer.body());
        }
        if !ok {
            say!("ol: {} answered {}", args.function, answer.status());
            // A function may answer 404 itself.
            let failure = answer.headers().get(wire::FAILURE);
            if failure.is_some_and(|code| code == "not_found") {
                let registry = state.open_registry(catalog)?;
                let why = block_on(async { Ok(not_there(&registry, &args.function).await) })?;
                crate::error::print("ol", &why);
            }
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A header, as the command line has it.
fn header(text: &str) -> Result<(http::HeaderName, http::HeaderValue)> {
    let wrong = |why: &str| {
        let message = format!("header \"{text}\" {why}; write \"NAME: VALUE\"");
        CliError::new(message).by_the_call()
    };
    let (name, value) = text.split_once(':').ok_or_else(|| wrong("has no colon"))?;
    let name = name.trim().parse().map_err(|_| wrong("has a name that none can have"))?;
    let value = value.trim().parse().map_err(|_| wrong("has a value that none can have"))?;
    Ok((name, value))
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
            Some(file) => Ok(std::fs::read(file)
                .context(|| format!("cannot read {file}; name a file behind the @"))?
                .into()),
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
