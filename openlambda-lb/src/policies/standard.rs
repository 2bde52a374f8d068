//! The list of this crate's policies; each has its entry in its own file.

use super::catalog::{PolicyCatalog, PolicyEntry};

impl PolicyCatalog {
    /// The policies of this crate, in order of their names.
    pub fn standard() -> Self {
        let mut catalog = PolicyCatalog::new();
        entries().into_iter().for_each(|entry| catalog.register(entry));
        catalog
    }
}

/// What can be chosen by name, in order of the names.
fn entries() -> [PolicyEntry; 22] {
    [
        super::bounded_load::entry(),
        super::central_queue::entry(),
        super::ch_rlu::entry(),
        super::consistent_hashing::entry(),
        super::dodoor::entry(),
        super::guardrails::entry(),
        super::hermod::entry(),
        super::hiku::entry(),
        super::join_idle_queue::entry(),
        super::late_binding::entry(),
        super::least_outstanding::entry(),
        super::maglev::entry(),
        super::min_worker_set::entry(),
        super::openwhisk::entry(),
        super::package_aware::entry(),
        super::palette::entry(),
        super::peak_ewma::entry(),
        super::power_of_d::entry(),
        super::prequal::entry(),
        super::random::entry(),
        super::rendezvous::entry(),
        super::round_robin::entry(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::catalog::{PolicyCatalog, PolicyConfig};
    use super::super::random::Random;
    use super::*;

    fn error(text: &str) -> String {
        let built = text.parse().and_then(|config| PolicyCatalog::standard().build(&config));
        built.unwrap_err().to_string()
    }

    #[test]
    fn every_entry_builds_with_its_defaults_and_with_them_spelt_out() {
        let catalog = PolicyCatalog::standard();
        for entry in catalog.entries() {
            catalog.build(&PolicyConfig::named(&entry.name)).unwrap();
            let mut text = entry.name.clone();
            for parameter in &entry.parameters {
                text += &format!(",{}={}", parameter.name, parameter.default);
            }
            let config: PolicyConfig = text.parse().unwrap();
            assert_eq!(config.to_string().parse::<PolicyConfig>().unwrap(), config);
            catalog.build(&config).unwrap();
        }
        catalog.build(&PolicyConfig::named(PolicyCatalog::DEFAULT)).unwrap();
        assert!(catalog.entries().map(|entry| &entry.name).is_sorted());
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest() {
        assert_eq!(
            error("round-robbin"),
            "policy: unknown policy \"round-robbin\"; did you mean \"round-robin\"?"
        );
        assert!(error("zzz").contains("least-outstanding"));
        assert_eq!(
            error("bounded-load,epsilom=1"),
            "policy bounded-load: unknown parameter \"epsilom\"; did you mean \"epsilon\"?"
        );
        assert!(error("palette,assign=last-assigned").contains("did you mean least-assigned?"));
        assert!(error("random,d=2").ends_with("it takes none"));
        assert!(error("bounded-load,epsilon").contains("parameter=value"));
        assert!(error("power-of-two,d=2,d=3").contains("twice"));
        assert!(error("").contains("ol policies"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "power-of-two,d=0",
            "power-of-two,d=17",
            "power-of-two,d=1.5",
            "power-of-two,d=two",
            "bounded-load,epsilon=0",
            "bounded-load,epsilon=-1",
            "bounded-load,epsilon=nan",
            "bounded-load,epsilon=inf",
            "bounded-load,vnodes=0",
            "bounded-load,vnodes=10001",
            "ch-rlu,popular=1.1",
            "ch-rlu,bound=0",
            "ch-rlu,chain=65",
            "consistent-hashing,vnodes=0.5",
            "maglev,size=100",
            "maglev,size=16777217",
            "min-worker-set,window=0",
            "min-worker-set,utilisation=1.01",
            "package-aware,threshold=0",
            "palette,assign=3",
            "palette,assign=random",
            "palette,buckets=0",
            "central-queue,wait=0",
            "dodoor,b=0",
            "guardrails,c=1",
            "guardrails,g=0.5",
            "join-idle-queue,below=0",
            "late-binding,d=9",
            "peak-ewma,tau=0",
            "prequal,quantile=1.1",
        ] {
            assert!(error(text).contains("is not valid; use"), "{text}: {}", error(text));
        }
    }

    #[test]
    fn a_policy_may_have_another_inside() {
        let mut catalog = PolicyCatalog::standard();
        let made = |catalog: &PolicyCatalog, text: &str| catalog.build(&text.parse().unwrap());
        made(&catalog, "guardrails,inner={ name = \"power-of-two\", d = 3 }").unwrap();
        assert!(error("guardrails,inner=randon").contains("did you mean \"random\"?"));
        assert!(error("guardrails,inner=central-queue").contains("holds requests"));
        let wrong = made(&catalog, "guardrails,inner={ name = \"power-of-two\", d = 0 }");
        assert!(wrong.unwrap_err().to_string().contains("d = 0 is not valid"));
        catalog.register(PolicyEntry::new("mine", "as random", "me", || Box::new(Random)));
        made(&catalog, "guardrails,inner=mine").unwrap();
    }

    #[test]
    fn a_policy_of_ones_own_joins() {
        let mut catalog = PolicyCatalog::standard();
        catalog.register(PolicyEntry::new("mine", "as random", "me", || Box::new(Random)));
        catalog.build(&PolicyConfig::named("mine")).unwrap();
        assert_eq!(catalog.entries().count(), PolicyCatalog::standard().entries().count() + 1);
    }
}
