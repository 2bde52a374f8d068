//! The phases of a call, to and from `Server-Timing`.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;

use crate::invocation::Phases;

/// `queue;dur=0.1, pull;dur=0, …` in milliseconds, with `run` only when it is known.
pub fn server_timing(phases: &Phases, with_run: bool) -> HeaderValue {
    let all = [
        ("queue;dur=", phases.queue),
        (", pull;dur=", phases.pull),
        (", create;dur=", phases.create),
        (", init;dur=", phases.init),
        (", run;dur=", phases.run),
    ];
    let told = if with_run { &all[..] } else { &all[..4] };
    let mut text = String::with_capacity(96);
    for (name, duration) in told {
        text.push_str(name);
        push_ms(&mut text, *duration);
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("digits and names are for headers")
}

/// Milliseconds with three digits after the point. It uses integers alone: each reply has five of these,
/// and printing a float takes as long as writing the rest of the header.
fn push_ms(text: &mut String, duration: Duration) {
    let micros = duration.saturating_add(Duration::from_nanos(500)).as_micros();
    if micros == 0 {
        text.push_str("0.000");
        return;
    }
    let _ = write!(text, "{}.{:03}", micros / 1000, micros % 1000);
}

/// Reads what [`server_timing`] wrote, in a header, a trailer or both.
pub fn parse_server_timing<'a>(values: impl IntoIterator<Item = &'a HeaderValue>) -> Phases {
    let mut phases = Phases::default();
    for value in values {
        for entry in value.to_str().unwrap_or_default().split(',') {
            let Some((name, ms)) = entry.trim().split_once(";dur=") else { continue };
            let Ok(ms) = ms.parse::<f64>() else { continue };
            let Ok(duration) = Duration::try_from_secs_f64(ms / 1e3) else { continue };
            match name {
                "queue" => phases.queue = duration,
                "pull" => phases.pull = duration,
                "create" => phases.create = duration,
                "init" => phases.init = duration,
                "run" => phases.run = duration,
                _ => {}
            }
        }
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_timing_survives_a_round_trip() {
        let ms = Duration::from_millis;
        let phases = Phases { queue: ms(1), pull: ms(2), create: ms(3), init: ms(4), run: ms(5) };
        assert_eq!(parse_server_timing([&server_timing(&phases, true)]), phases);
    }
}
