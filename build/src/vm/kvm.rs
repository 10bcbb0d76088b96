//! Whether KVM really runs a guest here. A `/dev/kvm` that opens is not enough: some hosts offer one that interprets kernel
//! code instruction by instruction and gives up at the first that it does not know.

#![allow(unsafe_code)]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(1);

/// Guest memory: page tables at 0x1000, 0x2000 and 0x3000, code at 0x4000, data at 0x5000.
const MEMORY: usize = 0x6000;
const CODE: usize = 0x4000;

/// `mov rsi, 0x5000; lock cmpxchg16b [rsi]; hlt`: an instruction that every processor with 64 bits has, and that a kernel uses
/// early, in the highest privilege.
const PROGRAM: &[u8] = &[0x48, 0xc7, 0xc6, 0x00, 0x50, 0x00, 0x00, 0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0xf4];

/// Ok when a guest runs; else why not. Takes at most a second.
pub fn probe() -> Result<(), String> {
    let (sender, receiver) = mpsc::channel();
    // A guest that hangs leaves the thread behind; it ends with the process.
    std::thread::spawn(move || sender.send(run()));
    receiver
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| Err("a guest of three instructions did not end within a second".to_owned()))
}

fn run() -> Result<(), String> {
    let step = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let kvm = Kvm::new().map_err(step("/dev/kvm cannot be opened"))?;
    let vm = kvm.create_vm().map_err(step("a virtual machine cannot be made"))?;
    let length = NonZeroUsize::new(MEMORY).ok_or("no memory")?;
    // SAFETY: a new anonymous mapping, which nothing else knows of.
    let memory = unsafe {
        mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)
    };
    let memory = memory.map_err(|error| format!("no memory for the guest: {error}"))?;
    let put = |at: usize, bytes: &[u8]| {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: within the mapping just made, as the line above checks.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.as_ptr().cast::<u8>().add(at), bytes.len())
        };
    };
    // One gigabyte, mapped as it is: present, writable, and at the last level a large page.
    put(0x1000, &0x2003u64.to_le_bytes());
    put(0x2000, &0x3003u64.to_le_bytes());
    put(0x3000, &0x83u64.to_le_bytes());
    put(CODE, PROGRAM);
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the memory stays mapped until the virtual machine is gone.
    unsafe { vm.set_user_memory_region(region) }.map_err(step("the guest cannot have memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(step("a processor cannot be made"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(step("the processor's features cannot be asked for"))?;
    vcpu.set_cpuid2(&cpuid).map_err(step("the processor's features cannot be set"))?;
    let mut special = vcpu.get_sregs().map_err(step("registers cannot be read"))?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { type_: 3, selector: 16, l: 0, db: 1, ..code };
    special.cs = code;
    (special.ds, special.es, special.ss) = (data, data, data);
    special.cr3 = 0x1000;
    special.cr4 = 0x20; // PAE
    special.cr0 = 0x8000_0011; // paging, protected mode
    special.efer = 0x500; // long mode, enabled and active
    vcpu.set_sregs(&special).map_err(step("registers cannot be set"))?;
    let mut registers = vcpu.get_regs().map_err(step("registers cannot be read"))?;
    registers.rip = CODE as u64;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(step("registers cannot be set"))?;
    let ended = match vcpu.run() {
        Ok(VcpuExit::Hlt) => Ok(()),
        Ok(VcpuExit::InternalError) => {
            Err("it does not run kernel code (it interprets it, and not all of it)".to_owned())
        }
        Ok(exit) => Err(format!("a guest ended unexpectedly: {exit:?}")),
        Err(error) => Err(format!("a guest cannot be run: {error}")),
    };
    drop(vcpu);
    drop(vm);
    // SAFETY: the virtual machine that used the memory is gone.
    let _ = unsafe { munmap(memory, MEMORY) };
    ended
}
