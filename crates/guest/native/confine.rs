//! A Python extension of one function: it makes the calling process, a child that was forked from
//! the zygote, as powerless as user code is.
//!
//! CPython cannot ask the kernel for this by itself. The extension is built into the guest and needs
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
#[cfg(target_arch = "aarch64")]
const SYS_CAPSET: c_long = 91;

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

static mut METHODS: [Method; 2] = [
    Method {
        name: c"confine".as_ptr(),
        function: Some(confine),
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

/// What the interpreter calls to make the module.
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

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
