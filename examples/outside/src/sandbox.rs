//! A kind of sandbox: [`tables`].

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::Response;
use openlambda_core::failure::FunctionError;
use openlambda_core::manifest::Network;
use openlambda_core::sandbox::kit::{Call, Fault, Handler, Simple};
use openlambda_core::sandbox::{Capabilities, Exit, SandboxError, SandboxErrorKind};
use serde_json::Value;

/// Makes sandboxes whose functions are tables, in a file that the manifest's `handler` names.
///
/// ```text
/// init     raise no luck       what an instance does before its first call
/// greet    answer Hello!       a call whose event has {"op": "greet"} is answered so
/// wait     sleep ms            as many milliseconds as the event's "ms", then the event comes back
/// complain raise message       an error with the event's "message"
/// leave    exit                the instance ends without an answer
/// ```
///
/// Any other event comes back as it is.
pub fn tables() -> Simple {
    let mut capabilities = Capabilities::none();
    capabilities.networks = vec![Network::None, Network::Host];
    capabilities.pause = true;
    Simple::new("tables", capabilities, |spec| async move {
        let file = spec.manifest.handler.as_deref().unwrap_or_default();
        let table = Table::read(&spec.code.join(file))?;
        match table.row("init") {
            Some(("raise", message)) => {
                Err(SandboxError::init(FunctionError::new("Error", message)))
            }
            Some(("hang", _)) => std::future::pending().await,
            _ => Ok(table),
        }
    })
}

/// What is to be done, by operation.
struct Table(Vec<(String, String, String)>);

impl Table {
    fn read(file: &Path) -> Result<Self, SandboxError> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            let message = format!("cannot read the table {}", file.display());
            SandboxError::new(SandboxErrorKind::Resources, message).with_source(error)
        })?;
        let row = |line: &str| {
            let mut words = line.trim().splitn(2, ' ');
            let operation = words.next().unwrap_or_default().to_owned();
            let rest = words.next().unwrap_or_default().trim();
            let (action, argument) = rest.split_once(' ').unwrap_or((rest, ""));
            (operation, action.to_owned(), argument.trim().to_owned())
        };
        Ok(Table(text.lines().map(row).collect()))
    }

    /// An operation's action and its argument.
    fn row(&self, operation: &str) -> Option<(&str, &str)> {
        let row = self.0.iter().find(|(name, ..)| name == operation)?;
        Some((&row.1, &row.2))
    }
}

#[async_trait]
impl Handler for Table {
    async fn answer(&self, call: Call) -> Result<Response<Bytes>, Fault> {
        let event: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let action = event["op"].as_str().and_then(|operation| self.row(operation));
        match action {
            Some(("answer", text)) => return Ok(Response::new(text.to_owned().into())),
            Some(("sleep", key)) => {
                let ms = event[key].as_u64().unwrap_or_default();
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            Some(("raise", key)) => {
                let message = event[key].as_str().unwrap_or_default();
                return Err(FunctionError::new("Error", message).into());
            }
            Some(("exit", _)) => return Err(Fault::Ended(Exit::Status(1))),
            _ => {}
        }
        Ok(Response::new(call.body))
    }
}
