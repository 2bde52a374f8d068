//! Operations that fail.

use async_trait::async_trait;

use super::disturbance::{Disturbance, Operation, Permit, Trouble};
use super::draws::Draws;

/// Makes operations fail.
#[derive(Debug)]
pub struct Faulty {
    probability: f64,
    draws: Draws,
}

impl Faulty {
    /// Each operation fails with this probability, 0 to 1, with draws of `seed`.
    pub fn new(probability: f64, seed: u64) -> Self {
        Faulty { probability, draws: Draws::new("faulty", seed) }
    }
}

#[async_trait]
impl Disturbance for Faulty {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        match self.draws.next(operation).chance(self.probability) {
            true => Err(Trouble::Fault(operation)),
            false => Ok(Permit::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn fates(faulty: &Faulty, operation: Operation) -> Vec<bool> {
        let mut fates = Vec::new();
        for _ in 0..1000 {
            fates.push(faulty.before(operation).await.is_err());
        }
        fates
    }

    #[tokio::test]
    async fn the_same_seed_has_the_same_faults_whatever_else_is_done() {
        let (one, two) = (Faulty::new(0.1, 7), Faulty::new(0.1, 7));
        let resolves = fates(&one, Operation::Resolve).await;
        fates(&two, Operation::List).await;
        assert_eq!(fates(&two, Operation::Resolve).await, resolves);
        let share = resolves.iter().filter(|fault| **fault).count();
        assert!((60..140).contains(&share), "{share} of 1000");
        assert_ne!(fates(&Faulty::new(0.1, 8), Operation::Resolve).await, resolves);
        assert!(!fates(&Faulty::new(0.0, 7), Operation::Get).await.contains(&true));
        assert!(!fates(&Faulty::new(1.0, 7), Operation::Get).await.contains(&false));
    }
}
