use proptest::prelude::*;

use super::*;

/// Decodes `bytes`, cut into pieces of the lengths that `cuts` names in turn.
fn decode(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Capsule>, Malformed> {
    let (mut decoder, mut capsules, mut rest) = (Decoder::default(), Vec::new(), bytes);
    let mut cuts = cuts.iter().copied().chain(std::iter::once(bytes.len())).cycle();
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(cuts.next().unwrap_or(1).clamp(1, rest.len()));
        rest = later;
        decoder.push(piece);
        while let Some(capsule) = decoder.poll()? {
            capsules.push(capsule);
        }
        assert!(decoder.buffer.len() <= 16 + MAX_DATAGRAM as usize, "unbounded");
    }
    Ok(capsules)
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => (0..=MAX_PAYLOAD).prop_map(|length| (0..length).map(|at| at as u8).collect()),
    ]
}

/// A capsule's bytes, and what should be read of them.
fn capsule() -> impl Strategy<Value = (Bytes, Option<Capsule>)> {
    let known = payload().prop_map(|bytes| Capsule::Datagram(bytes.into()));
    let report = proptest::collection::vec(any::<u8>(), 0..=64).prop_map(|bytes| Capsule::Report(bytes.into()));
    let other = (0..=MAX_VARINT).prop_filter("unknown", |kind| ![DATAGRAM, REPORT].contains(kind));
    prop_oneof![
        4 => known.prop_map(|capsule| (capsule.encode(), Some(capsule))),
        1 => report.prop_map(|capsule| (capsule.encode(), Some(capsule))),
        1 => (other, payload()).prop_map(|(kind, bytes)| (encode(kind, None, &[&bytes]), None)),
        // Another context.
        1 => (1..=MAX_VARINT, payload()).prop_map(|(context, bytes)| (encode(DATAGRAM, Some(context), &[&bytes]), None)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_sent_is_read_however_it_is_cut(
        capsules in proptest::collection::vec(capsule(), 0..12),
        cuts in proptest::collection::vec(1_usize..9000, 0..8),
    ) {
        let bytes: Vec<u8> = capsules.iter().flat_map(|(bytes, _)| bytes.to_vec()).collect();
        let expected: Vec<Capsule> = capsules.into_iter().filter_map(|(_, capsule)| capsule).collect();
        prop_assert_eq!(decode(&bytes, &cuts), Ok(expected));
    }

    /// Nothing panics, nothing is held without bound, and the cuts change nothing.
    #[test]
    fn foreign_bytes_do_no_harm(
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0_u8..4], 0..400),
        cuts in proptest::collection::vec(1_usize..9, 0..8),
    ) {
        prop_assert_eq!(decode(&bytes, &cuts), decode(&bytes, &[]));
    }

    #[test]
    fn numbers_survive(value in prop_oneof![0..=MAX_VARINT, 0..70_000_u64]) {
        let mut bytes = BytesMut::new();
        put_varint(&mut bytes, value);
        prop_assert_eq!(bytes.len(), varint_length(value));
        prop_assert_eq!(take_varint(&mut bytes), Some(value));
    }
}

/// The examples of RFC 9000 appendix A.1.
#[test]
fn the_standards_own_numbers() {
    let examples: [(&[u8], u64); 5] = [
        (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
        (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
        (&[0x7b, 0xbd], 15_293),
        (&[0x25], 37),
        (&[0x40, 0x25], 37),
    ];
    for (mut bytes, value) in examples {
        assert_eq!(take_varint(&mut bytes), Some(value));
    }
}

#[test]
fn the_bytes_are_those_of_the_standard() {
    assert_eq!(&datagram(&[b"a", b"bc"])[..], b"\x00\x04\x00abc");
    let longest = datagram(&[&[7; MAX_PAYLOAD]]);
    assert_eq!(&longest[..6], b"\x00\x80\x00\xff\xf8\x00");
    assert_eq!(longest.len(), MAX_PAYLOAD + DATAGRAM_OVERHEAD);
}

#[test]
fn what_is_too_long_or_has_no_context_is_malformed() {
    let longer = datagram(&[&[7; MAX_PAYLOAD + 1]]);
    assert!(matches!(decode(&longer, &[]), Err(Malformed::TooLong { kind: DATAGRAM, .. })));
    assert!(matches!(decode(&encode(REPORT, None, &[&[0; 65]]), &[]), Err(Malformed::TooLong { kind: REPORT, .. })));
    // Told by its header alone.
    assert!(decode(b"\x00\xff\xff\xff\xff\xff\xff\xff\xff", &[]).is_err());
    assert_eq!(decode(&encode(DATAGRAM, None, &[]), &[]), Err(Malformed::NoContext));
    assert_eq!(decode(&encode(DATAGRAM, None, &[&[0x40]]), &[]), Err(Malformed::NoContext));
}

/// Types of this form are sent by others to see whether unknown ones are skipped (RFC 9297 section 5.4).
#[test]
fn the_reports_type_is_no_grease() {
    assert_ne!(REPORT % 0x29, 0x17);
    const { assert!(REPORT > 0x3f) };
}
