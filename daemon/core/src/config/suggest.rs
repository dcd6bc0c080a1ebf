//! "Did you mean": the nearest of some words.

/// The word that is nearest to `typed`, if any is near enough to be what was meant.
#[must_use]
pub fn nearest<'a>(typed: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let enough = (typed.chars().count() / 3).clamp(1, 4);
    let distance = |word: &str| match (typed.to_lowercase(), word.to_lowercase()) {
        // A word that goes on, or ends early, is near whatever the number of its letters.
        (a, b) if a.len().min(b.len()) >= 3 && (a.starts_with(&b) || b.starts_with(&a)) => 1,
        (a, b) => distance(&a, &b),
    };
    words.into_iter().map(|word| (distance(word), word)).filter(|(far, _)| *far <= enough).min().map(|(_, word)| word)
}

/// Edits that make one word of the other: insertions, deletions, replacements, and swaps of neighbours (the restricted
/// Damerau-Levenshtein distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_count_edits() {
        for (a, b, edits) in [("", "", 0), ("", "abc", 3), ("abc", "abd", 1), ("ab", "ba", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }

    #[test]
    fn only_near_words_are_suggested() {
        let words = ["virtualSubnet", "vnat", "neverProxySubnets"];
        assert_eq!(nearest("virtualSubnets", words), Some("virtualSubnet"));
        assert_eq!(nearest("VirtualSubNet", words), Some("virtualSubnet"));
        assert_eq!(nearest("neverProxySubnet", words), Some("neverProxySubnets"));
        assert_eq!(nearest("vant", words), Some("vnat"));
        assert_eq!(nearest("neverProxy", words), Some("neverProxySubnets"));
        assert_eq!(nearest("timeouts", words), None);
        assert_eq!(nearest("", words), None);
    }
}
