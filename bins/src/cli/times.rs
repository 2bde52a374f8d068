//! Times as people write and read them.

use jiff::Timestamp;

/// Milliseconds since 1970 as `2026-01-31T12:00:00.000Z`. The year 9999 is the last.
pub(super) fn utc(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    format!("{:.3}", Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX))
}

/// A moment as a person names it, in milliseconds since 1970: a time ago (`90s`, `10m`, `2h`, `1d`),
/// RFC 3339 (`2026-01-31T12:00:00Z`, `2026-01-31 12:00:00.5+01:00`), or a day, which begins at
/// midnight UTC.
///
/// # Errors
///
/// How to write one.
pub(super) fn moment(text: &str, now_ms: u64) -> Result<u64, String> {
    let ago = ago(text).map(|ago| now_ms.saturating_sub(ago));
    ago.or_else(|| date(text)).ok_or_else(|| {
        format!("\"{text}\" is not a time; write 10m, 2h, 1d or 2026-01-31T12:00:00Z")
    })
}

fn ago(text: &str) -> Option<u64> {
    let (number, ms) = match text.char_indices().next_back()? {
        (end, 's') => (&text[..end], 1000),
        (end, 'm') => (&text[..end], 60_000),
        (end, 'h') => (&text[..end], 3_600_000),
        (end, 'd') => (&text[..end], 86_400_000),
        _ => return None,
    };
    // `parse` would take a sign too.
    let number = number.bytes().all(|byte| byte.is_ascii_digit()).then_some(number)?;
    number.parse::<u64>().ok()?.checked_mul(ms)
}

fn date(text: &str) -> Option<u64> {
    let day = "2026-01-31".len();
    let time: Result<Timestamp, _> =
        if text.len() == day { format!("{text}T00:00:00Z").parse() } else { text.parse() };
    u64::try_from(time.ok()?.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc_and_read_back() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_893_456_000_001, "2030-01-01T00:00:00.001Z"),
        ] {
            assert_eq!(utc(ms), text);
            assert_eq!(moment(text, 7), Ok(ms));
        }
        for day in 0..40_000 {
            let ms = day * 86_400_000 + day * 7;
            assert_eq!(moment(&utc(ms), 0), Ok(ms));
        }
    }

    #[test]
    fn a_moment_is_a_time_ago_or_rfc_3339() {
        let now = 1_000_000_000;
        for (text, ms) in [
            ("90s", now - 90_000),
            ("10m", now - 600_000),
            ("2h", now - 7_200_000),
            ("1d", now - 86_400_000),
            ("999999d", 0),
            ("1970-01-02", 86_400_000),
            ("1970-01-02 00:00:00Z", 86_400_000),
            ("1970-01-02t00:00:00.5z", 86_400_500),
            ("1970-01-02T00:00:00.123456+01:00", 82_800_123),
            ("1970-01-02T00:00:00-00:30", 88_200_000),
        ] {
            assert_eq!(moment(text, now), Ok(ms), "{text}");
        }
        for text in [
            "",
            "m",
            "10",
            "10w",
            "-1m",
            "+1m",
            "1.5h",
            "now",
            "1970-02-29",
            "2001-13-01",
            "1969-12-31",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:00:00",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00+1:00",
            "1970-01-01T00:00:00+01:00",
            "99999999999999999999d",
            "日",
            "1970-01-0日",
            "1970-01-01T00:00:0日",
        ] {
            let error = moment(text, now).unwrap_err();
            assert!(error.contains("write 10m, 2h"), "{text}: {error}");
        }
    }
}
