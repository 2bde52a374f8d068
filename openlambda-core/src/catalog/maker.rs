//! A chosen part as a configuration holds it: [`Maker`].

use std::fmt;
use std::sync::Arc;

/// Makes any number of parts of one kind, all alike: of a policy, one for each worker or balancer.
///
/// A [`Catalog`](super::Catalog) makes a maker from a name and its parameters, once, where they are read;
/// the code that is configured by it does not deal with names. Your own part needs no catalogue:
///
/// ```
/// use openlambda_core::catalog::Maker;
/// use openlambda_core::keep_alive::{KeepAlivePolicy, Lru};
///
/// let lru = Maker::<dyn KeepAlivePolicy>::new("lru", || Box::new(Lru::default()));
/// let [one, another] = [lru.make(), lru.make()];
/// # drop((one, another));
/// ```
///
/// Clones share the function that makes parts.
pub struct Maker<T: ?Sized> {
    text: Arc<str>,
    make: Arc<dyn Fn() -> Box<T> + Send + Sync>,
}

impl<T: ?Sized> Maker<T> {
    /// A maker of what `make` returns. `text` names it where people read of it, in reports and
    /// recordings; a program whose catalogue makes the same part of this text can repeat them.
    pub fn new(
        text: impl Into<Arc<str>>,
        make: impl Fn() -> Box<T> + Send + Sync + 'static,
    ) -> Self {
        Maker { text: text.into(), make: Arc::new(make) }
    }

    /// What was chosen, as `ttl,seconds=60`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Makes one.
    pub fn make(&self) -> Box<T> {
        (self.make)()
    }
}

impl<T: ?Sized> Clone for Maker<T> {
    fn clone(&self) -> Self {
        Maker { text: self.text.clone(), make: self.make.clone() }
    }
}

impl<T: ?Sized> fmt::Debug for Maker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Maker").field(&self.text).finish()
    }
}
