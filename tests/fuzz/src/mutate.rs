//! Makes bad messages out of good ones: most stay close enough to get past the first check.

use crate::random::Random;

/// Words that parsers of JSON, addresses, names and lengths trip over.
const WORDS: [&[u8]; 22] = [
    b"0.0.0.0/0",
    b"::/0",
    b"127.0.0.1/32",
    b"10.96.0.0/33",
    b"::ffff:1.2.3.4/96",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"null",
    b"true",
    b"{}",
    b"[[[[[[[[",
    b"\"\\u0000\"",
    b"\"\\ud800\"",
    b"\"..\"",
    b",",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xbf\xff\xff\xff",
    b"\xc0\x0c",
    b"\x3f",
    b"\x00",
];

/// Longest input, in bytes. Longer ones find little more and take long.
const MAX: usize = 16 << 10;

/// One of `seeds`, changed in a few places. `framed`: it begins with a length of four bytes, which is then mostly made
/// right again.
pub(crate) fn mutated(seeds: &[Vec<u8>], framed: bool, random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        change(&mut bytes, seeds, random);
    }
    bytes.truncate(MAX);
    if framed && bytes.len() >= 4 && random.below(8) > 0 {
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(16)).min(bytes.len());
    match random.below(9) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.byte();
            }
        }
        2 => bytes.insert(at, random.byte()),
        3 => drop(bytes.drain(at..end)),
        4 => {
            let piece = bytes[at..end].to_vec();
            let times = 1 + random.below(64);
            bytes.splice(at..at, piece.repeat(times));
        }
        5 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
        6 => drop(bytes.splice(at..end, WORDS[random.below(WORDS.len())].iter().copied())),
        7 => bytes.truncate(at),
        _ => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_the_same_for_the_same_seed() {
        let seeds = vec![vec![1; 100], vec![]];
        let run = |seed| {
            let mut random = Random::new(seed);
            (0..2000).map(|_| mutated(&seeds, true, &mut random)).collect::<Vec<_>>()
        };
        let first = run(5);
        assert!(first.iter().all(|bytes| bytes.len() <= MAX));
        assert_eq!(first, run(5));
        assert_ne!(first, run(6));
    }
}
