//! Bytes that wait for a socket.
//!
//! Small frames are packed together, so that a thousand of them cost what their bytes cost.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

#[derive(Debug, Default)]
pub(super) struct Queue {
    chunks: VecDeque<Bytes>,
    /// Packed small frames, behind `chunks`.
    tail: BytesMut,
}

impl Queue {
    /// Frames up to this length are packed when they have to wait.
    const SMALL: usize = 4 << 10;
    /// Packed frames start a new chunk at this length.
    const PACK: usize = 64 << 10;
    /// Chunks that go into one system call.
    const SLICES: usize = 16;

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if data.len() > Self::SMALL || self.is_empty() {
            self.close_tail();
            self.chunks.push_back(data);
            return;
        }
        if self.tail.len() + data.len() > Self::PACK {
            self.close_tail();
        }
        self.tail.extend_from_slice(&data);
    }

    /// What to write next, at least one slice unless empty.
    pub(super) fn slices(&mut self) -> Vec<IoSlice<'_>> {
        if self.chunks.len() < Self::SLICES {
            self.close_tail();
        }
        self.chunks.iter().take(Self::SLICES).map(|chunk| IoSlice::new(chunk)).collect()
    }

    /// Forgets `written` bytes from the front.
    pub(super) fn advance(&mut self, mut written: usize) {
        while let Some(chunk) = self.chunks.front_mut() {
            if written < chunk.len() {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
        debug_assert_eq!(written, 0, "more was written than was queued");
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is pushed comes out, in order, however it is written.
        #[test]
        fn order_is_kept(steps in proptest::collection::vec((0_usize..20_000, 0_usize..100), 1..60)) {
            let (mut queue, mut pushed, mut written) = (Queue::default(), Vec::new(), Vec::new());
            for (number, (length, percent)) in steps.into_iter().enumerate() {
                let data: Vec<u8> = (0..length).map(|at| (at * 7 + number) as u8).collect();
                pushed.extend_from_slice(&data);
                queue.push(data.into());
                let flat: Vec<u8> = queue.slices().iter().flat_map(|slice| slice.to_vec()).collect();
                let amount = flat.len() * percent / 100;
                written.extend_from_slice(&flat[..amount]);
                queue.advance(amount);
            }
            while !queue.is_empty() {
                let flat: Vec<u8> = queue.slices().iter().flat_map(|slice| slice.to_vec()).collect();
                prop_assert!(!flat.is_empty());
                written.extend_from_slice(&flat);
                queue.advance(flat.len());
            }
            prop_assert_eq!(pushed, written);
        }
    }

    #[test]
    fn tiny_frames_are_packed() {
        let mut queue = Queue::default();
        for _ in 0..100_000 {
            queue.push(Bytes::from_static(b"x"));
        }
        assert!(queue.chunks.len() <= 4, "{}", queue.chunks.len());
    }
}
