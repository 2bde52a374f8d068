//! Where the lines that functions print go.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::function::FunctionName;

/// Takes the lines that functions print. Called from many threads; must not wait for long.
pub trait LogSink: Send + Sync + fmt::Debug {
    /// One line, without its line break.
    fn line(&self, line: LogLine<'_>);
}

/// One line that a function printed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LogLine<'a> {
    /// The function.
    pub function: &'a FunctionName,
    /// The invocation that was running, when there was exactly one.
    pub request_id: Option<&'a str>,
    /// Where it was printed.
    pub stream: LogStream,
    /// The text; what is not UTF-8 is replaced by U+FFFD.
    pub text: &'a str,
}

impl<'a> LogLine<'a> {
    /// A line of `function`.
    pub fn new(
        function: &'a FunctionName,
        request_id: Option<&'a str>,
        stream: LogStream,
        text: &'a str,
    ) -> Self {
        LogLine { function, request_id, stream, text }
    }
}

/// Where a line was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The platform's own word on the instance.
    Platform,
}

/// A log sink that drops every line.
#[derive(Debug, Default)]
pub struct NoLog;

impl LogSink for NoLog {
    fn line(&self, _line: LogLine<'_>) {}
}
