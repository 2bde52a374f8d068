//! Which balancers listen, and which of them is told of an idle instance.
//!
//! An idle notice is a lease: one stream gets it, each in turn, so that no two balancers send their next
//! call to the same instance. A stream may name its balancer: offers to a balancer go to its named
//! streams only, and when such a stream is next in turn, the notice may go with a reply to its balancer.

use super::messages::StreamId;

/// The streams of events that are open. See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Notices {
    streams: Vec<Stream>,
    /// The place in `streams` that was told last.
    last: usize,
    balancers: u64,
}

/// A balancer with a name, for as long as it has a stream. Each number is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BalancerId(u64);

#[derive(Debug)]
struct Stream {
    id: StreamId,
    balancer: Option<(BalancerId, Box<str>)>,
}

impl Notices {
    pub(super) fn subscribe(&mut self, id: StreamId, balancer: Option<String>) {
        let balancer = balancer.map(|name| {
            let known = self.balancer(&name);
            let fresh = || {
                self.balancers += 1;
                BalancerId(self.balancers)
            };
            (known.unwrap_or_else(fresh), name.into_boxed_str())
        });
        self.streams.push(Stream { id, balancer });
    }

    /// A stream is over. The balancer's name, when it was the last one of its.
    pub(super) fn unsubscribe(&mut self, id: StreamId) -> Option<Box<str>> {
        let at = self.streams.iter().position(|stream| stream.id == id)?;
        let Stream { balancer, .. } = self.streams.remove(at);
        // Who is next stays next.
        self.last = match self.last {
            last if last >= at && last > 0 => last - 1,
            0 if at == 0 => self.streams.len().saturating_sub(1),
            last => last,
        };
        let (_, name) = balancer?;
        self.balancer(&name).is_none().then_some(name)
    }

    /// The balancer of that name, if it listens.
    pub(super) fn balancer(&self, name: &str) -> Option<BalancerId> {
        let mut known = self.streams.iter().filter_map(|stream| stream.balancer.as_ref());
        known.find(|(_, known)| **known == *name).map(|(id, _)| *id)
    }

    /// The newest stream of the balancer of that name.
    pub(super) fn stream_of(&self, name: &str) -> Option<StreamId> {
        let its =
            |stream: &&Stream| stream.balancer.as_ref().is_some_and(|(_, known)| **known == *name);
        self.streams.iter().rev().find(its).map(|stream| stream.id)
    }

    /// The stream that is told next.
    pub(super) fn next(&mut self) -> Option<StreamId> {
        let at = self.next_place()?;
        self.last = at;
        Some(self.streams[at].id)
    }

    /// Whether the balancer is told next. If so its turn is taken: it is told in another way.
    pub(super) fn takes_turn(&mut self, balancer: BalancerId) -> bool {
        let Some(at) = self.next_place() else { return false };
        let its = matches!(self.streams[at].balancer, Some((id, _)) if id == balancer);
        if its {
            self.last = at;
        }
        its
    }

    fn next_place(&self) -> Option<usize> {
        let at = self.last + 1;
        (!self.streams.is_empty()).then_some(if at < self.streams.len() { at } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_is_told_in_turn_also_when_others_come_and_go() {
        let mut notices = Notices::default();
        assert_eq!(notices.next(), None);
        for n in 0..4 {
            notices.subscribe(StreamId(n), Some(format!("b{n}")));
        }
        let told: Vec<_> = (0..5).filter_map(|_| notices.next()).map(|id| id.0).collect();
        assert_eq!(told, [1, 2, 3, 0, 1]);
        // One before, one after, and the one that is next.
        assert_eq!(notices.unsubscribe(StreamId(0)).as_deref(), Some("b0"));
        assert_eq!(notices.next(), Some(StreamId(2)));
        assert_eq!(notices.unsubscribe(StreamId(3)).as_deref(), Some("b3"));
        assert_eq!(notices.next(), Some(StreamId(1)));
        notices.unsubscribe(StreamId(2));
        assert_eq!(notices.next(), Some(StreamId(1)));
        assert_eq!(notices.unsubscribe(StreamId(2)), None);
    }

    #[test]
    fn who_is_next_stays_next_when_a_stream_without_a_name_ends() {
        let mut notices = Notices::default();
        for n in 0..4 {
            notices.subscribe(StreamId(n), (n > 1).then(|| format!("b{n}")));
        }
        assert_eq!([notices.next(), notices.next()], [Some(StreamId(1)), Some(StreamId(2))]);
        assert_eq!(notices.unsubscribe(StreamId(0)), None);
        assert_eq!(notices.next(), Some(StreamId(3)));
        assert_eq!(notices.unsubscribe(StreamId(1)), None);
        assert_eq!(notices.next(), Some(StreamId(2)));
    }

    #[test]
    fn a_turn_is_taken_only_by_the_balancer_that_is_next() {
        let mut notices = Notices::default();
        for (n, name) in [(0, "a"), (1, "b"), (2, "a")] {
            notices.subscribe(StreamId(n), Some(name.to_owned()));
        }
        let [a, b] = ["a", "b"].map(|name| notices.balancer(name).unwrap());
        assert!(!notices.takes_turn(a));
        assert!(notices.takes_turn(b));
        assert!(notices.takes_turn(a));
        assert_eq!(notices.next(), Some(StreamId(0)));
        assert_eq!(notices.stream_of("a"), Some(StreamId(2)));
        // The other stream of the same balancer is there still.
        assert_eq!(notices.unsubscribe(StreamId(2)), None);
        assert_eq!(notices.stream_of("a"), Some(StreamId(0)));
        assert_eq!(notices.unsubscribe(StreamId(0)).as_deref(), Some("a"));
        notices.subscribe(StreamId(3), Some("a".to_owned()));
        assert_ne!(notices.balancer("a"), Some(a), "a balancer that comes again is another one");
    }
}
