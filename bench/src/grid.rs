//! Values by round, by what was measured and by whom. Pure.

use std::collections::BTreeMap;

use tpx_bench::stats::median;

/// One round: of each way, each metric. What failed is missing.
pub(crate) type Row<W, M> = BTreeMap<W, BTreeMap<M, f64>>;

/// One metric of one way, round by round.
pub(crate) fn column<W: Ord, M: Ord>(rows: &[Row<W, M>], way: W, metric: M) -> Vec<Option<f64>> {
    rows.iter().map(|row| row.get(&way)?.get(&metric).copied()).collect()
}

/// Its middle value.
pub(crate) fn middle<W: Ord, M: Ord>(rows: &[Row<W, M>], way: W, metric: M) -> Option<f64> {
    median(&column(rows, way, metric).into_iter().flatten().collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_in_which_a_way_failed_has_a_gap() {
        let seen = |value| BTreeMap::from([('m', value)]);
        let rows = [
            Row::from([("a", seen(1.0)), ("b", seen(2.0))]),
            Row::from([("a", seen(3.0))]),
            Row::from([("b", seen(4.0))]),
        ];
        assert_eq!(column(&rows, "b", 'm'), [Some(2.0), None, Some(4.0)]);
        assert_eq!(column(&rows, "a", 'n'), [None, None, None]);
        assert_eq!((middle(&rows, "a", 'm'), middle(&rows, "c", 'm')), (Some(2.0), None));
    }
}
