//! What a namespace keeps in a registry, and whether one more version fits: [`Stored`].

use std::collections::BTreeMap;

use thiserror::Error;

use super::Allow;
use crate::function::Digest;

/// The versions and bundles of one namespace. A bundle that several of its versions have counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    versions: u64,
    bytes: u64,
    bundles: BTreeMap<Digest, u64>,
}

impl Stored {
    /// One more version, with this bundle, of so many bytes.
    pub fn add(&mut self, digest: Digest, bytes: u64) {
        self.versions += 1;
        if self.bundles.insert(digest, bytes).is_none() {
            self.bytes += bytes;
        }
    }

    /// How many versions there are.
    pub fn versions(&self) -> u64 {
        self.versions
    }

    /// How many different bundles, and the bytes of their tars together.
    pub fn bundles(&self) -> (u64, u64) {
        (self.bundles.len() as u64, self.bytes)
    }
}

/// A namespace would keep more in the registry than the operator allows.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "namespace {namespace} would have {asked}, and the operator allows at most {allowed} ({bound} in \
     {table}); {next}, or have the operator change {bound}"
)]
pub struct OverQuota {
    /// Which.
    pub namespace: String,
    /// What it would have, in words.
    pub asked: String,
    /// What it may have.
    pub allowed: String,
    /// The operator's key.
    pub bound: &'static str,
    /// The table of the configuration that the bound stands in.
    pub table: String,
    /// What to do about it.
    pub next: &'static str,
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Allow {
    /// Whether a namespace has a quota in registries, so that what it keeps has to be known.
    pub fn bounds_what_is_stored(&self, namespace: &str) -> bool {
        self.bound(namespace, |bounds| bounds.versions.or(bounds.bundles).or(bounds.stored_mb))
            .is_some()
    }

    /// Whether a bundle of this namespace may be so large.
    ///
    /// # Errors
    ///
    /// It may not.
    pub fn check_size(&self, namespace: &str, bytes: u64) -> Result<(), Box<OverQuota>> {
        match self.bound(namespace, |bounds| bounds.bundle_mb) {
            Some((most, table)) if bytes > most.saturating_mul(1 << 20) => {
                Err(Box::new(OverQuota {
                    namespace: namespace.to_owned(),
                    asked: format!("a bundle of {:.1} MiB unpacked", mib(bytes)),
                    allowed: format!("{most} MiB"),
                    bound: "bundle_mb",
                    table: table.of(namespace),
                    next: "deploy less, or fetch large data at run time",
                }))
            }
            _ => Ok(()),
        }
    }

    /// Whether a namespace that keeps this in a registry may have one more version, with this bundle.
    ///
    /// # Errors
    ///
    /// The first quota that it would be over.
    pub fn check_stored(
        &self,
        namespace: &str,
        stored: &Stored,
        digest: &Digest,
        bytes: u64,
    ) -> Result<(), Box<OverQuota>> {
        let is_new = !stored.bundles.contains_key(digest);
        let bundles = stored.bundles.len() as u64 + u64::from(is_new);
        let all = stored.bytes + if is_new { bytes } else { 0 };
        let over = |asked: String, allowed: String, bound, table: super::Table| {
            let (namespace, table) = (namespace.to_owned(), table.of(namespace));
            let next = "remove functions that are not needed (`ol rm`)";
            Err(Box::new(OverQuota { namespace, asked, allowed, bound, table, next }))
        };
        if let Some((most, table)) = self.bound(namespace, |bounds| bounds.versions)
            && stored.versions + 1 > most
        {
            let asked = format!("{} versions", stored.versions + 1);
            return over(asked, most.to_string(), "versions", table);
        }
        // Nothing but the number of versions grows by what is there already.
        if !is_new {
            return Ok(());
        }
        if let Some((most, table)) = self.bound(namespace, |bounds| bounds.bundles)
            && bundles > most
        {
            return over(format!("{bundles} bundles"), most.to_string(), "bundles", table);
        }
        if let Some((most, table)) = self.bound(namespace, |bounds| bounds.stored_mb)
            && all > most.saturating_mul(1 << 20)
        {
            let asked = format!("{:.1} MiB of bundles", mib(all));
            return over(asked, format!("{most} MiB"), "stored_mb", table);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allow::Bounds;

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    #[test]
    fn each_quota_is_kept_and_a_bundle_counts_once() {
        let (mib, mut stored) = (1 << 20, Stored::default());
        let bounds = Bounds { versions: Some(4), bundles: Some(2), ..Bounds::default() };
        let mut allow = Allow::default();
        allow.namespace.insert("a".to_owned(), bounds);
        allow.all.stored_mb = Some(3);
        assert!(allow.bounds_what_is_stored("a") && allow.bounds_what_is_stored("b"));
        assert!(!Allow::default().bounds_what_is_stored("a"));
        let mut put = |n: u8, bytes: u64| {
            let checked = allow.check_stored("a", &stored, &digest(n), bytes);
            checked.map(|()| stored.add(digest(n), bytes)).map_err(|error| error.to_string())
        };
        put(1, mib).unwrap();
        assert_eq!(
            put(2, 2 * mib + 1).unwrap_err(),
            "namespace a would have 3.0 MiB of bundles, and the operator allows at most 3 MiB \
             (stored_mb in [allow]); remove functions that are not needed (`ol rm`), or have the \
             operator change stored_mb"
        );
        put(2, 2 * mib).unwrap();
        assert!(put(3, 1).unwrap_err().contains("3 bundles, and the operator allows at most 2 "));
        put(1, mib).unwrap();
        put(2, 2 * mib).unwrap();
        let error = put(1, mib).unwrap_err();
        assert!(
            error.contains("5 versions, and the operator allows at most 4 (versions in [allow.n")
        );
        assert_eq!((stored.versions(), stored.bundles()), (4, (2, 3 * mib)));
    }
}
