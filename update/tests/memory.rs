//! What applying a patch takes of memory, whatever the roots' size.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator; only sizes are counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(NOW.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The worst there is: segments that do not shrink, and a root that is all stretches.
#[test]
fn applying_a_patch_takes_less_than_12_mib() {
    let mut state = 1u64;
    let mut noise = |len: usize| -> Vec<u8> {
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect()
    };
    let base = noise(3 << 20);
    let mut new = noise(2 << 20);
    let mut pieces: Vec<&[u8]> = base.chunks(40).collect();
    pieces.reverse();
    new.extend(pieces.concat());
    let patch = update::patch::make((&base, [1; 32]), (&new, [2; 32])).unwrap();
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let mut applier = update::patch::Applier::new(&base[..], [1; 32], [2; 32], 8 << 20);
    let mut made = 0;
    for mut piece in patch.chunks(16 << 10) {
        while let Some(segment) = applier.push(&mut piece).unwrap() {
            assert!(segment.content == &new[made..made + segment.content.len()]);
            made += segment.content.len();
        }
    }
    assert!(applier.is_done());
    let took = PEAK.load(Relaxed) - before;
    println!("{took} bytes");
    assert!(took < 12 << 20, "{took} bytes");
}
