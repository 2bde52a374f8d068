//! A function as you write it for AWS Lambda, with AWS's own crate.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    run(service_fn(handler)).await
}

/// Says hello. What it prints is in `ol logs`.
async fn handler(call: LambdaEvent<Value>) -> Result<Value, Error> {
    let (event, context) = call.into_parts();
    println!("called with {event}");
    let Some(name) = event["name"].as_str() else {
        return Err("there is no name; send {\"name\": \"…\"}".into());
    };
    Ok(json!({
        "message": format!("Hello, {name}!"),
        "request": context.request_id,
        "function": context.env_config.function_name,
    }))
}
