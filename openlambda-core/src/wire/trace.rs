//! `traceparent`: the trace that a request belongs to.

use http::HeaderMap;

/// What a request's `traceparent` says: <https://www.w3.org/TR/trace-context/>, section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent<'a> {
    /// The trace: 32 digits, hexadecimal and lower case, not all 0.
    pub trace: &'a str,
    /// The caller's part of it: 16 digits of that kind.
    pub parent: &'a str,
    /// Whether the caller records it.
    pub sampled: bool,
}

impl<'a> TraceParent<'a> {
    /// Reads `00-<trace>-<parent>-<flags>`, and what later versions may add behind. `None` when the
    /// text is nothing of the kind: then a trace begins anew, as the specification wants it.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace) = (parts.next()?, parts.next()?);
        let (parent, flags) = (parts.next()?, parts.next()?);
        let digits = |text: &str, count: usize| {
            text.len() == count
                && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let not_zero = |text: &str| text.bytes().any(|digit| digit != b'0');
        let whole = digits(version, 2)
            && digits(trace, 32)
            && digits(parent, 16)
            && digits(flags, 2)
            && not_zero(trace)
            && not_zero(parent);
        let known = version != "ff" && (version != "00" || parts.next().is_none());
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        (whole && known).then_some(TraceParent { trace, parent, sampled })
    }

    /// The one that the headers hold, if they do.
    pub fn of(headers: &'a HeaderMap) -> Option<Self> {
        Self::parse(headers.get("traceparent")?.to_str().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_read_and_nothing_else() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let read = |text: &str| TraceParent::parse(text).map(|it| (it.trace.len(), it.sampled));
        assert_eq!(read(&format!("00-{trace}-{parent}-01")), Some((32, true)));
        assert_eq!(read(&format!("00-{trace}-{parent}-02")), Some((32, false)));
        assert_eq!(read(&format!("01-{trace}-{parent}-03-more")), Some((32, true)));
        let (no_trace, no_parent) = ("0".repeat(32), "0".repeat(16));
        for bad in [
            "",
            "00",
            "00-1-2-3",
            &format!("00-{trace}-{parent}"),
            &format!("00-{trace}-{parent}-+1"),
            &format!("00-{trace}-{parent}-01-more"),
            &format!("ff-{trace}-{parent}-01"),
            &format!("00-{}-{parent}-01", trace.to_uppercase()),
            &format!("00-{no_trace}-{parent}-01"),
            &format!("00-{trace}-{no_parent}-01"),
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
