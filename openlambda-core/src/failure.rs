//! What can go wrong with an invocation, in one type that every layer uses.
//!
//! A [`Failure`] says what went wrong ([`FailureKind`]), whose fault it is ([`Culprit`]) and whether
//! the handler may have started ([`Started`]): a retry happens only on [`Started::No`].
//! [`wire`](crate::wire) holds the one table that turns it into HTTP and back.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Whose fault a failure is. Sent as `x-openlambda-error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Culprit {
    /// The request itself: a bad name, a body that is too large.
    Client,
    /// The function's own code.
    Function,
    /// The sandbox around it.
    Sandbox,
    /// The worker, or the way to it.
    Worker,
    /// The balancer, or what it depends on.
    Balancer,
}

/// Whether the handler may have seen the invocation. Sent as `x-openlambda-started`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Started {
    /// It has not: another attempt cannot run anything twice.
    No,
    /// It is not known, for example when a connection broke.
    Maybe,
    /// It has.
    Yes,
}

/// The kinds of failure. The code is what clients see in `{"error": code}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureKind {
    /// A bad name, bad JSON where JSON is needed, a bad header.
    BadRequest,
    /// This is for those who know the cluster's secret.
    Unauthorized,
    /// The client may not do this, whatever its identity; or the function asks for more than the operator
    /// allows.
    Forbidden,
    /// No such function, or no such version.
    NotFound,
    /// The manifest does not allow this method.
    MethodNotAllowed,
    /// The body is larger than the limit.
    BodyTooLarge,
    /// The client asks for a WebSocket, and the function takes plain requests only.
    #[serde(rename = "no_websocket")]
    NoWebSocket,
    /// Too many invocations wait for the function already, or this one waited for too long.
    QueueFull,
    /// The handler raised.
    FunctionError,
    /// The function's code cannot be loaded: an import that raises, a handler that is missing.
    InitError,
    /// The sandbox ended in the middle of the call.
    SandboxCrashed,
    /// The sandbox ran out of memory.
    OutOfMemory,
    /// The function's reply breaks the protocol: not JSON, too large.
    BadReply,
    /// The worker died, or the way to it broke, in the middle of the call.
    WorkerDied,
    /// There is no worker that can take the call.
    NoWorker,
    /// The worker or balancer is shutting down.
    Draining,
    /// The registry cannot be reached and nothing is cached.
    RegistryUnavailable,
    /// The bundle is broken or the sandbox cannot be made.
    StartFailed,
    /// Over the function's time limit.
    Timeout,
    /// A defect of the platform.
    Internal,
}

impl FailureKind {
    /// Every kind, for tables and tests.
    pub const ALL: [FailureKind; 20] = [
        FailureKind::BadRequest,
        FailureKind::Unauthorized,
        FailureKind::Forbidden,
        FailureKind::NotFound,
        FailureKind::MethodNotAllowed,
        FailureKind::BodyTooLarge,
        FailureKind::NoWebSocket,
        FailureKind::QueueFull,
        FailureKind::FunctionError,
        FailureKind::InitError,
        FailureKind::SandboxCrashed,
        FailureKind::OutOfMemory,
        FailureKind::BadReply,
        FailureKind::WorkerDied,
        FailureKind::NoWorker,
        FailureKind::Draining,
        FailureKind::RegistryUnavailable,
        FailureKind::StartFailed,
        FailureKind::Timeout,
        FailureKind::Internal,
    ];

    /// The code in JSON, for example `queue_full`.
    pub const fn code(self) -> &'static str {
        match self {
            FailureKind::BadRequest => "bad_request",
            FailureKind::Unauthorized => "unauthorized",
            FailureKind::Forbidden => "forbidden",
            FailureKind::NotFound => "not_found",
            FailureKind::MethodNotAllowed => "method_not_allowed",
            FailureKind::BodyTooLarge => "body_too_large",
            FailureKind::NoWebSocket => "no_websocket",
            FailureKind::QueueFull => "queue_full",
            FailureKind::FunctionError => "function_error",
            FailureKind::InitError => "init_error",
            FailureKind::SandboxCrashed => "sandbox_crashed",
            FailureKind::OutOfMemory => "out_of_memory",
            FailureKind::BadReply => "bad_reply",
            FailureKind::WorkerDied => "worker_died",
            FailureKind::NoWorker => "no_worker",
            FailureKind::Draining => "draining",
            FailureKind::RegistryUnavailable => "registry_unavailable",
            FailureKind::StartFailed => "start_failed",
            FailureKind::Timeout => "timeout",
            FailureKind::Internal => "internal",
        }
    }

    /// The default culprit, when nothing more is known.
    pub const fn usual_culprit(self) -> Culprit {
        match self {
            FailureKind::BadRequest
            | FailureKind::Unauthorized
            | FailureKind::Forbidden
            | FailureKind::NotFound
            | FailureKind::MethodNotAllowed
            | FailureKind::BodyTooLarge
            | FailureKind::NoWebSocket => Culprit::Client,
            FailureKind::FunctionError
            | FailureKind::InitError
            | FailureKind::BadReply
            | FailureKind::Timeout => Culprit::Function,
            FailureKind::SandboxCrashed | FailureKind::OutOfMemory | FailureKind::StartFailed => {
                Culprit::Sandbox
            }
            FailureKind::QueueFull
            | FailureKind::WorkerDied
            | FailureKind::Draining
            | FailureKind::Internal => Culprit::Worker,
            FailureKind::NoWorker | FailureKind::RegistryUnavailable => Culprit::Balancer,
        }
    }

    /// Whether the handler may have started when nothing more is known.
    pub const fn usually_started(self) -> Started {
        match self {
            FailureKind::FunctionError
            | FailureKind::SandboxCrashed
            | FailureKind::OutOfMemory
            | FailureKind::BadReply
            | FailureKind::Timeout => Started::Yes,
            FailureKind::WorkerDied | FailureKind::Internal => Started::Maybe,
            _ => Started::No,
        }
    }
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// What a handler that raised said of it: Lambda's error object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionError {
    /// The message of the exception.
    #[serde(rename = "errorMessage", default)]
    pub message: String,
    /// Its type, for example `ValueError`.
    #[serde(rename = "errorType", default)]
    pub kind: String,
    /// The stack, outermost first; each runtime formats its lines as it likes.
    #[serde(rename = "stackTrace", default)]
    pub stack_trace: Vec<String>,
}

impl FunctionError {
    /// An error of a type, with a message and no stack.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        FunctionError { message: message.into(), kind: kind.into(), stack_trace: Vec::new() }
    }
}

/// An invocation that failed, as every layer passes it on.
#[derive(Clone, Debug, PartialEq, Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub kind: FailureKind,
    /// Whose fault it is.
    pub culprit: Culprit,
    /// Whether the handler may have started.
    pub started: Started,
    /// For a person; ends with the next step where there is one.
    pub message: String,
    /// What the handler said, for [`FailureKind::FunctionError`] and [`FailureKind::InitError`].
    pub function_error: Option<Box<FunctionError>>,
    /// When another try is sensible (`Retry-After`).
    pub retry_after: Option<Duration>,
    /// The methods that are allowed, for [`FailureKind::MethodNotAllowed`].
    pub allow: Option<Box<str>>,
}

/// How much of a failure its caller is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// Everything: the whole message and the stack.
    #[default]
    Full,
    /// The type of the error and the first line of its message. The rest is in the function's log, under the
    /// call's id.
    Type,
}

/// What stands in a message between what happened to an instance and what it printed last.
pub const LAST_WORDS: &str = "; its last words: ";

impl Failure {
    /// As its caller is told of it.
    #[must_use]
    pub fn told(mut self, detail: Detail) -> Self {
        if detail == Detail::Full {
            return self;
        }
        let brief = |message: &str| {
            let line = message.lines().next().unwrap_or_default();
            let line = line.split(LAST_WORDS).next().unwrap_or_default();
            line.trim_end().to_owned()
        };
        self.message = brief(&self.message);
        if let Some(error) = &mut self.function_error {
            error.message = brief(&error.message);
            error.stack_trace = Vec::new();
        }
        self
    }

    /// A failure with the usual culprit and start state of its kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Failure {
            kind,
            culprit: kind.usual_culprit(),
            started: kind.usually_started(),
            message: message.into(),
            function_error: None,
            retry_after: None,
            allow: None,
        }
    }

    /// The same, blamed on another.
    pub fn blame(mut self, culprit: Culprit) -> Self {
        self.culprit = culprit;
        self
    }

    /// The same, with what is known of its start.
    pub fn started(mut self, started: Started) -> Self {
        self.started = started;
        self
    }

    /// The same, with a hint when to try again.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The same, with what the handler said.
    pub fn with_function_error(mut self, error: FunctionError) -> Self {
        self.function_error = Some(Box::new(error));
        self
    }
}

/// An error and its causes as one line: `outer: cause: cause`. For the edge, where a chain is
/// logged once. What an error has said of its cause already is not said again.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
