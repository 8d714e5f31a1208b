//! A Python extension for the children that are forked from the zygote: `confine` makes the calling
//! process as powerless as user code is, and `leave` ends it.
//!
//! CPython cannot ask the kernel for either by itself. The extension is built into the guest and needs
//! nothing but what the interpreter has loaded already: the interpreter's own functions and those
//! of its C library, whichever that is.

#![no_std]

use core::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

const PR_SET_DUMPABLE: c_int = 4;
const PR_CAP_AMBIENT: c_int = 47;
const PR_CAP_AMBIENT_CLEAR_ALL: c_ulong = 4;
/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[cfg(target_arch = "x86_64")]
const SYS_CAPSET: c_long = 126;
#[cfg(target_arch = "x86_64")]
const SYS_CLOCK_NANOSLEEP: c_long = 230;
#[cfg(target_arch = "x86_64")]
const SYS_EXIT: c_long = 60;
#[cfg(target_arch = "aarch64")]
const SYS_CAPSET: c_long = 91;
#[cfg(target_arch = "aarch64")]
const SYS_CLOCK_NANOSLEEP: c_long = 115;
#[cfg(target_arch = "aarch64")]
const SYS_EXIT: c_long = 93;

const CLOCK_MONOTONIC: c_long = 1;
const CLONE_VM: c_int = 0x100;
const CLONE_FS: c_int = 0x200;
const CLONE_FILES: c_int = 0x400;

/// How long a memory outlives its process, in nanoseconds: longer than that takes to be reaped.
const STAY: c_long = 10_000_000;

/// `METH_O` of `methodobject.h`: one argument, as it is.
const METH_O: c_int = 0x0008;
/// `PYTHON_API_VERSION` of `modsupport.h`, the same for every Python 3.
const API_VERSION: c_int = 1013;

unsafe extern "C" {
    fn setgroups(size: usize, list: *const c_uint) -> c_int;
    fn setresgid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    fn setresuid(real: c_uint, effective: c_uint, saved: c_uint) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn clone(
        function: extern "C" fn(*mut c_void) -> c_int,
        stack: *mut c_void,
        flags: c_int,
        argument: *mut c_void,
        ...
    ) -> c_int;
    fn _exit(code: c_int) -> !;
    fn PyLong_AsLong(object: *mut c_void) -> c_long;
    fn PyLong_FromLong(value: c_long) -> *mut c_void;
    fn PyModule_Create2(definition: *mut Definition, version: c_int) -> *mut c_void;
}

#[repr(C)]
struct Method {
    name: *const c_char,
    function: Option<unsafe extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void>,
    flags: c_int,
    doc: *const c_char,
}

/// `PyModuleDef` of `moduleobject.h`.
#[repr(C)]
struct Definition {
    references: isize,
    kind: *mut c_void,
    init: *mut c_void,
    index: isize,
    copy: *mut c_void,
    name: *const c_char,
    doc: *const c_char,
    size: isize,
    methods: *mut Method,
    slots: *mut c_void,
    traverse: *mut c_void,
    clear: *mut c_void,
    free: *mut c_void,
}

const fn null() -> *mut c_void {
    core::ptr::null_mut()
}

static mut METHODS: [Method; 3] = [
    Method {
        name: c"confine".as_ptr(),
        function: Some(confine),
        flags: METH_O,
        doc: core::ptr::null(),
    },
    Method {
        name: c"leave".as_ptr(),
        function: Some(leave),
        flags: METH_O,
        doc: core::ptr::null(),
    },
    Method {
        name: core::ptr::null(),
        function: None,
        flags: 0,
        doc: core::ptr::null(),
    },
];

static mut DEFINITION: Definition = Definition {
    references: 1,
    kind: null(),
    init: null(),
    index: 0,
    copy: null(),
    name: c"confine".as_ptr(),
    doc: core::ptr::null(),
    size: -1,
    methods: (&raw mut METHODS).cast(),
    slots: null(),
    traverse: null(),
    clear: null(),
    free: null(),
};

/// The function that the interpreter calls to make the module.
///
/// # Safety
/// To be called by the interpreter, with its lock held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PyInit_confine() -> *mut c_void {
    // SAFETY: the definition lives as long as the process, and only the interpreter changes it.
    unsafe { PyModule_Create2(&raw mut DEFINITION, API_VERSION) }
}

/// `confine(id)`: takes on the user and group id, and gives up every capability. Returns 0, or the
/// number of the step that failed, after which the process must end.
unsafe extern "C" fn confine(_module: *mut c_void, id: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter holds its lock and passes an object.
    unsafe {
        match c_uint::try_from(PyLong_AsLong(id)) {
            // To the calls below the highest number means "as it is".
            Ok(id) if id != c_uint::MAX => PyLong_FromLong(failed_step(id)),
            _ => PyLong_FromLong(-1),
        }
    }
}

/// # Safety
/// To be called while the process has a single thread.
unsafe fn failed_step(id: c_uint) -> c_long {
    let header = [CAPABILITY_VERSION, 0];
    let none = [0_u32; 6];
    // SAFETY: plain system calls; the two structures of capset are as long as version 3 reads.
    unsafe {
        if setgroups(0, core::ptr::null()) != 0 {
            return 1;
        }
        if setresgid(id, id, id) != 0 {
            return 2;
        }
        if setresuid(id, id, id) != 0 {
            return 3;
        }
        if prctl(
            PR_CAP_AMBIENT,
            PR_CAP_AMBIENT_CLEAR_ALL,
            0_u64,
            0_u64,
            0_u64,
        ) != 0
        {
            return 4;
        }
        if syscall(SYS_CAPSET, header.as_ptr(), none.as_ptr()) != 0 {
            return 5;
        }
        // As after an exec: without this the process could not use its own files in /proc.
        if prctl(PR_SET_DUMPABLE, 1_u64, 0_u64, 0_u64, 0_u64) != 0 {
            return 6;
        }
    }
    0
}

/// Stack on which [`stay`] runs; aligned as stacks are.
static mut STACK: [u128; 512] = [0; 512];

/// `leave(code)`: ends the process. A process is reaped after its memory was taken apart, which takes
/// a multiple of the rest; but not where another one has the same memory. So one is left behind that
/// sleeps a moment, and takes it apart then.
unsafe extern "C" fn leave(_module: *mut c_void, code: *mut c_void) -> *mut c_void {
    // SAFETY: the interpreter holds its lock and passes an object. Nothing but the other process uses
    // the stack, whose end is its beginning; that it cannot be made costs time only.
    unsafe {
        let code = PyLong_AsLong(code) as c_int;
        let stack = (&raw mut STACK).add(1).cast();
        clone(stay, stack, CLONE_VM | CLONE_FS | CLONE_FILES, null());
        _exit(code)
    }
}

extern "C" fn stay(_: *mut c_void) -> c_int {
    let time = [0, STAY];
    // SAFETY: plain system calls, which need nothing of the memory that another process leaves.
    unsafe {
        syscall(
            SYS_CLOCK_NANOSLEEP,
            CLOCK_MONOTONIC,
            0,
            time.as_ptr(),
            null(),
        );
        syscall(SYS_EXIT, 0);
    }
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
