//! The rate of the processor's time stamp counter, which QEMU without KVM shows to its guests as it is.

#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

const SPAN: Duration = Duration::from_millis(20);
const TRIES: u32 = 3;

/// kHz; measured once for each process, in about 60 ms. The rate is constant on every processor of the last fifteen years, also
/// while its cores change theirs (Intel SDM volume 3, 18.17.1).
pub fn khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let mut rates: Vec<u64> = (0..TRIES).map(|_| measure()).collect();
        rates.sort_unstable();
        // Whoever interrupts us between two readings makes one rate wrong, not the one in the middle.
        rates[rates.len() / 2]
    })
}

fn measure() -> u64 {
    let (begun, first) = (Instant::now(), ticks());
    std::thread::sleep(SPAN);
    let (took, ticks) = (begun.elapsed(), ticks().wrapping_sub(first));
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
    u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(nanos)).unwrap_or(u64::MAX)
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_counts_some_gigahertz() {
        assert!((500_000..10_000_000).contains(&khz()), "{} kHz", khz());
    }
}
