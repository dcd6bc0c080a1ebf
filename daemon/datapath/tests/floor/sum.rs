//! A checksum that notices bytes that are wrong, missing or out of order, and is fast without optimisation.

/// Sum over a stream of bytes, however it is cut.
#[derive(Default)]
pub(crate) struct Sum {
    state: u64,
    rest: Vec<u8>,
}

impl Sum {
    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        if !self.rest.is_empty() {
            let missing = (8 - self.rest.len()).min(bytes.len());
            self.rest.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if self.rest.len() < 8 {
                return;
            }
            let word = std::mem::take(&mut self.rest);
            self.add(&word);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(word);
        }
        self.rest = rest.to_vec();
    }

    pub(crate) fn finish(mut self) -> [u8; 8] {
        let mut last = std::mem::take(&mut self.rest);
        let length = last.len() as u8;
        last.resize(8, length);
        self.add(&last);
        self.state.to_be_bytes()
    }

    fn add(&mut self, word: &[u8]) {
        let word = word.first_chunk().map_or(0, |w| u64::from_ne_bytes(*w));
        // FNV-1a's prime, over words; the rotation keeps high bits from getting lost.
        self.state = (self.state ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
}
