//! Times as people write and read them. The calendar is Howard Hinnant's ("chrono-Compatible
//! Low-Level Date Algorithms").

/// Milliseconds since 1970 as `2026-01-31T12:00:00.000Z`.
pub(super) fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let ms = ms % 1000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
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
    ago.or_else(|| rfc3339(text)).ok_or_else(|| {
        format!("\"{text}\" is not a time; write 10m, 2h, 1d or 2026-01-31T12:00:00Z")
    })
}

fn ago(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let ms = match unit {
        's' => 1000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    digits(&text[..text.len() - 1])?.checked_mul(ms)
}

fn rfc3339(text: &str) -> Option<u64> {
    let day = text.get(..10)?;
    let [year, month, day] = three(day, '-', [4, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        _ => return None,
    };
    if year < 1970 || !(1..=length).contains(&day) {
        return None;
    }
    let shifted_year = year - u64::from(month <= 2);
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let midnight = ((era * 146_097 + day_of_era) - 719_468) * 86_400_000;
    let rest = &text[10..];
    if rest.is_empty() {
        return Some(midnight);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let [hour, minute, second] = three(rest.get(..8)?, ':', [2, 2, 2])?;
    // 60 is a leap second.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut rest = &rest[8..];
    let mut ms = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|c: char| !c.is_ascii_digit())?;
        let padded = format!("{:0<3}", &fraction[..end]);
        (ms, rest) = (digits(padded.get(..3).filter(|_| end > 0)?)?, &fraction[end..]);
    }
    let time = midnight + (hour * 3600 + minute * 60 + second) * 1000 + ms;
    if matches!(rest, "Z" | "z") {
        return Some(time);
    }
    let (ahead, offset) = match rest.strip_prefix('+') {
        Some(offset) => (true, offset),
        None => (false, rest.strip_prefix('-')?),
    };
    let (hours, minutes) = offset.split_once(':').filter(|_| offset.len() == 5)?;
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let offset = (hours * 60 + minutes) * 60_000;
    if ahead { time.checked_sub(offset) } else { Some(time + offset) }
}

/// Three numbers of these lengths with a separator between them.
fn three(text: &str, separator: char, lengths: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; 3];
    for (number, length) in numbers.iter_mut().zip(lengths) {
        *number = digits(parts.next().filter(|part| part.len() == length)?)?;
    }
    parts.next().is_none().then_some(numbers)
}

/// A number in digits alone: `parse` would take a sign too.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
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
