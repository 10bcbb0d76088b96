//! Tells libFuzzer what is compared with what. It learns that from the code it instruments where numbers are compared; where
//! strings are, from the sanitizers' `memcmp`, which stable Rust does not have. So the linker puts these in front of the
//! C library's (`--wrap`, in build/src/fuzz.rs). Without them a word such as `settings` is found by luck alone.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn __real_memcmp(left: *const c_void, right: *const c_void, length: usize) -> c_int;
    fn __sanitizer_weak_hook_memcmp(
        caller: *const c_void,
        left: *const c_void,
        right: *const c_void,
        length: usize,
        result: c_int,
    );
}

/// # Safety
/// As `memcmp`'s.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_memcmp(left: *const c_void, right: *const c_void, length: usize) -> c_int {
    // SAFETY: the caller gave what memcmp wants, which reads as much as the hook does; the hook keeps copies only.
    unsafe {
        let result = __real_memcmp(left, right, length);
        // Where two contents differ is what counts: who compares is not known here.
        __sanitizer_weak_hook_memcmp(std::ptr::null(), left, right, length, result);
        result
    }
}

/// # Safety
/// As `bcmp`'s.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_bcmp(left: *const c_void, right: *const c_void, length: usize) -> c_int {
    // SAFETY: bcmp is memcmp that tells less.
    unsafe { __wrap_memcmp(left, right, length) }
}
