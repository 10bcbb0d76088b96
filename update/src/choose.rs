//! Which way a new root comes.

/// A way to the new root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As a patch of the running root.
    Patch,
    /// By the blocks that the running root does not have.
    Blocks,
    /// As it is.
    Full,
}

/// What each way would still bring over the network, in bytes, as the signed manifest says. None: there is no such way from the root that
/// runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub patch: Option<u64>,
    /// Without the hashes of the leaves and the index of the chunks: they are there by the time this is known.
    pub blocks: Option<u64>,
    pub full: u64,
}

impl Sizes {
    /// The way that brings least; of equal ones that with the fewest steps.
    pub fn choose(&self) -> (Way, u64) {
        let ways = [(Way::Full, Some(self.full)), (Way::Patch, self.patch), (Way::Blocks, self.blocks)];
        let there = ways.into_iter().filter_map(|(way, size)| Some((way, size?)));
        there.min_by_key(|(_, size)| *size).unwrap_or((Way::Full, self.full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_way_is_taken() {
        for (patch, blocks, full, way) in [
            (None, None, 100, (Way::Full, 100)),
            (Some(10), Some(20), 100, (Way::Patch, 10)),
            (Some(30), Some(20), 100, (Way::Blocks, 20)),
            (Some(300), Some(200), 100, (Way::Full, 100)),
            (Some(100), Some(100), 100, (Way::Full, 100)),
            (Some(20), Some(20), 100, (Way::Patch, 20)),
            (None, Some(99), 100, (Way::Blocks, 99)),
        ] {
            assert_eq!(Sizes { patch, blocks, full }.choose(), way);
        }
    }
}
