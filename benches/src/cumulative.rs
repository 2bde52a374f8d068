//! Draws from a finite distribution: [`Cumulative`].

/// The sums of the probabilities of `0..=i`, and where to begin to search in them.
///
/// A binary search in the sums of many functions would be one cache miss for each of its steps. A
/// *guide table* names, for each of as many equal parts of the unit interval as there are sums, the
/// first sum that can be the one, so that a draw looks at two of them in the mean, whatever the
/// distribution. It finds what a search finds.
///
/// Source: H.-C. Chen, Y. Asau, On generating random variates from an empirical distribution, AIIE
/// Transactions 6(2), 1974.
#[derive(Debug)]
pub(crate) struct Cumulative {
    sums: Vec<f64>,
    /// By part of the unit interval: how many sums are not above its beginning.
    guide: Vec<u32>,
}

impl Cumulative {
    /// Of sums that grow from over 0 to about 1, fewer than 2^32.
    pub(crate) fn new(sums: Vec<f64>) -> Self {
        let parts = sums.len();
        let mut below = 0;
        let guide = (0..parts).map(|part| {
            let begins = part as f64 / parts as f64;
            while sums.get(below).is_some_and(|sum| *sum <= begins) {
                below += 1;
            }
            below as u32
        });
        Cumulative { guide: guide.collect(), sums }
    }

    /// The place of the first sum above `draw`, which is in `0.0..1.0`; one behind the last if none is.
    pub(crate) fn first_above(&self, draw: f64) -> usize {
        let part = (draw * self.guide.len() as f64) as usize;
        // Rounding may have led to the part behind that of the draw.
        let part = part.saturating_sub(1);
        let from = self.guide.get(part).map_or(0, |below| *below as usize);
        from + self.sums[from..].iter().take_while(|sum| **sum <= draw).count()
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::random::Rng;

    use super::*;

    #[test]
    fn it_finds_what_a_search_finds() {
        let mut rng = Rng::from_seed(1);
        for n in [1, 2, 3, 10, 1000] {
            for zipf in [0.0, 0.5, 1.0, 3.0] {
                let weights: Vec<f64> = (1..=n).map(|k| libm::pow(f64::from(k), -zipf)).collect();
                let total: f64 = weights.iter().sum();
                let mut sum = 0.0;
                let sums = weights.iter().map(|weight| {
                    sum += weight / total;
                    sum
                });
                let sums: Vec<f64> = sums.collect();
                let cumulative = Cumulative::new(sums.clone());
                let edges = (0..n).map(|part| f64::from(part) / f64::from(n));
                let ends = sums.iter().flat_map(|sum| [sum.next_down(), *sum, sum.next_up()]);
                let draws = (0..2000).map(|_| rng.unit()).chain(edges).chain(ends);
                for draw in draws.filter(|draw| *draw < 1.0) {
                    let expected = sums.partition_point(|sum| *sum <= draw);
                    assert_eq!(cumulative.first_above(draw), expected, "{draw} of {n} by {zipf}");
                }
            }
        }
    }

    #[test]
    fn without_sums_there_is_nothing_to_find() {
        assert_eq!(Cumulative::new(Vec::new()).first_above(0.5), 0);
        // Where nothing is called by chance, the sums are not numbers.
        assert_eq!(Cumulative::new(vec![f64::NAN; 3]).first_above(0.5), 0);
    }
}
