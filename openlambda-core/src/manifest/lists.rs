//! How long a list may be that goes into a header of replies.

/// The most entries of a list that goes into a header of replies, and the most bytes of all of them: a
/// client takes about 8 KiB for one header.
const HEADER_LIST: (usize, usize) = (100, 4096);

/// Whether a list is short enough for a header.
pub(super) fn is_short(list: &[String]) -> bool {
    list.len() <= HEADER_LIST.0 && list.iter().map(String::len).sum::<usize>() <= HEADER_LIST.1
}

/// How short that is.
pub(super) fn short() -> String {
    format!("at most {} entries with {} bytes together", HEADER_LIST.0, HEADER_LIST.1)
}
