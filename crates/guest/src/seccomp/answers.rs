//! Calls that the filter answers in the kernel's place.
//!
//! Some calls have no effect in a sandbox, where every file that can be written is in memory, and one
//! on the host: these succeed without being made. Others are counted for the whole machine, and
//! programs know how to do without them: these fail as on a kernel that lacks them.

use libc::{c_int, c_long};
use seccompiler::{BpfProgram, sock_filter};

/// The error number of a call that succeeds.
const DONE: c_int = 0;

#[cfg(target_arch = "x86_64")]
const SYNC_FILE_RANGE: c_long = libc::SYS_sync_file_range;
#[cfg(target_arch = "aarch64")]
const SYNC_FILE_RANGE: c_long = 84;

#[cfg(target_arch = "x86_64")]
const SETRLIMIT: c_long = libc::SYS_setrlimit;
#[cfg(target_arch = "aarch64")]
const SETRLIMIT: c_long = 164;

/// `io_pgetevents` and `cachestat`, which the `libc` crate does not name on both architectures.
#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: c_long = 333;
#[cfg(target_arch = "aarch64")]
const IO_PGETEVENTS: c_long = 292;
const CACHESTAT: c_long = 451;

/// A call, the arguments that it must have, and the error number that it gets.
struct Answer {
    number: c_long,
    when: &'static [Check],
    errno: c_int,
}

/// A condition on an argument. Only the lower half is compared, which is all that the kernel
/// looks at for arguments of the type `int`.
#[derive(Clone, Copy)]
enum Check {
    Is(u32, u32),
    /// A bit of the mask is set.
    HasAny(u32, u32),
    /// A pointer, of which both halves count.
    IsNotNull(u32),
}

const fn always(number: c_long, errno: c_int) -> Answer {
    Answer {
        number,
        when: &[],
        errno,
    }
}

const fn done_when(number: c_long, when: &'static [Check]) -> Answer {
    Answer {
        number,
        when,
        errno: DONE,
    }
}

/// A socket option that this kernel has not.
const fn option_missing(when: &'static [Check]) -> Answer {
    Answer {
        number: libc::SYS_setsockopt,
        when,
        errno: libc::ENOPROTOOPT,
    }
}

/// Calls that ask for huge pages, of which the host has a fixed number, get what a host without any says.
const fn huge(number: c_long, when: &'static [Check], errno: c_int) -> Answer {
    Answer {
        number,
        when,
        errno,
    }
}

const ANSWERS: [Answer; 23] = [
    huge(
        libc::SYS_mmap,
        &[Check::HasAny(3, libc::MAP_HUGETLB as u32)],
        libc::ENOMEM,
    ),
    huge(
        libc::SYS_memfd_create,
        &[Check::HasAny(1, libc::MFD_HUGETLB)],
        libc::EINVAL,
    ),
    huge(
        libc::SYS_shmget,
        &[Check::HasAny(2, libc::SHM_HUGETLB as u32)],
        libc::EPERM,
    ),
    // Compiled filters are counted for the whole machine (`net.core.bpf_jit_limit`).
    option_missing(&[
        Check::Is(1, libc::SOL_SOCKET as u32),
        Check::Is(2, libc::SO_ATTACH_FILTER as u32),
    ]),
    option_missing(&[
        Check::Is(1, libc::SOL_SOCKET as u32),
        Check::Is(2, libc::SO_ATTACH_REUSEPORT_CBPF as u32),
    ]),
    // Pages that are sent without a copy count for the user of the host.
    option_missing(&[
        Check::Is(1, libc::SOL_SOCKET as u32),
        Check::Is(2, libc::SO_ZEROCOPY as u32),
    ]),
    // Its flags lie in memory that a filter cannot read; glibc falls back to `clone`.
    always(libc::SYS_clone3, libc::ENOSYS),
    // Events of asynchronous I/O are counted for the whole machine (`fs.aio-max-nr`).
    always(libc::SYS_io_setup, libc::ENOSYS),
    always(libc::SYS_io_destroy, libc::ENOSYS),
    always(libc::SYS_io_submit, libc::ENOSYS),
    always(libc::SYS_io_cancel, libc::ENOSYS),
    always(libc::SYS_io_getevents, libc::ENOSYS),
    always(IO_PGETEVENTS, libc::ENOSYS),
    // Before Linux 6.13 it tells which parts of shared files other programs have read.
    always(CACHESTAT, libc::ENOSYS),
    // The first two write back every file system of the host. The others reach the host's disk too,
    // by a file of a shared directory: even where nothing is to be written, its cache is flushed.
    always(libc::SYS_sync, DONE),
    always(libc::SYS_syncfs, DONE),
    always(libc::SYS_fsync, DONE),
    always(libc::SYS_fdatasync, DONE),
    always(SYNC_FILE_RANGE, DONE),
    done_when(libc::SYS_msync, &[Check::HasAny(2, libc::MS_SYNC as u32)]),
    // Takes pages of shared files out of the host's cache.
    done_when(
        libc::SYS_fadvise64,
        &[Check::Is(3, libc::POSIX_FADV_DONTNEED as u32)],
    ),
    // The limit that the guest begins with keeps a crash from starting the host's `core_pattern`
    // program. A lower one, which any process may choose, would not.
    done_when(
        libc::SYS_prlimit64,
        &[Check::Is(1, libc::RLIMIT_CORE), Check::IsNotNull(2)],
    ),
    done_when(SETRLIMIT, &[Check::Is(0, libc::RLIMIT_CORE)]),
];

/// Instructions that answer these calls, and let all others go on to what follows.
pub(super) fn program() -> BpfProgram {
    ANSWERS.iter().flat_map(Answer::compile).collect()
}

impl Answer {
    /// Compares the number and the arguments; where one differs, jumps behind the answer.
    fn compile(&self) -> BpfProgram {
        let answer = (libc::BPF_RET | libc::BPF_K) as u16;
        let errno = libc::SECCOMP_RET_ERRNO | self.errno as u32;
        let mut program = vec![step(answer, 0, 0, errno)];
        for check in self.when.iter().rev() {
            let behind = length(&program);
            program.splice(0..0, check.compile(behind));
        }
        // The number is the first field of `seccomp_data`.
        let behind = length(&program);
        program.splice(
            0..0,
            [load(0), jump(libc::BPF_JEQ, self.number as u32, 0, behind)],
        );
        program
    }
}

impl Check {
    /// Goes on with what follows, or `behind` instructions later.
    fn compile(self, behind: u8) -> BpfProgram {
        match self {
            Self::Is(argument, value) => {
                vec![load(low(argument)), jump(libc::BPF_JEQ, value, 0, behind)]
            }
            Self::HasAny(argument, bits) => {
                vec![load(low(argument)), jump(libc::BPF_JSET, bits, 0, behind)]
            }
            Self::IsNotNull(argument) => vec![
                load(low(argument)),
                jump(libc::BPF_JEQ, 0, 0, 2),
                load(low(argument) + 4),
                jump(libc::BPF_JEQ, 0, behind, 0),
            ],
        }
    }
}

/// An answer has a dozen instructions at most.
fn length(program: &BpfProgram) -> u8 {
    program.len() as u8
}

/// The offset of the lower half of an argument in `seccomp_data`, on little-endian machines.
fn low(argument: u32) -> u32 {
    16 + 8 * argument
}

fn load(offset: u32) -> sock_filter {
    let code = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    step(code, 0, 0, offset)
}

fn jump(operator: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    step((libc::BPF_JMP | operator | libc::BPF_K) as u16, jt, jf, k)
}

fn step(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filter on a call. Returns its answer, or `None` where the filter goes on.
    fn run(number: c_long, arguments: [u64; 6]) -> Option<u32> {
        let mut data = vec![number as u32, 0, 0, 0];
        for argument in arguments {
            data.extend([argument as u32, (argument >> 32) as u32]);
        }
        let program = program();
        let (mut next, mut held) = (0, 0);
        while let Some(step) = program.get(next) {
            next += 1;
            let class = u32::from(step.code) & 0x07;
            if class == libc::BPF_LD {
                held = data[step.k as usize / 4];
            } else if class == libc::BPF_RET {
                return Some(step.k);
            } else {
                let holds = match u32::from(step.code) & 0xf0 {
                    libc::BPF_JEQ => held == step.k,
                    _ => held & step.k != 0,
                };
                next += usize::from(if holds { step.jt } else { step.jf });
            }
        }
        None
    }

    #[test]
    fn calls_get_the_answer_of_the_table_and_others_none() {
        let error = |errno: c_int| Some(libc::SECCOMP_RET_ERRNO | errno as u32);
        let (core, files) = (libc::RLIMIT_CORE as u64, libc::RLIMIT_NOFILE as u64);
        let pointer = 0x7fff_0000_0000;
        for (number, arguments, answer) in [
            (libc::SYS_clone3, [0; 6], error(libc::ENOSYS)),
            (libc::SYS_io_setup, [1, 0, 0, 0, 0, 0], error(libc::ENOSYS)),
            (libc::SYS_sync, [0; 6], error(DONE)),
            (libc::SYS_fsync, [7, 0, 0, 0, 0, 0], error(DONE)),
            (libc::SYS_msync, [0, 0, 5, 0, 0, 0], error(DONE)),
            (libc::SYS_msync, [0, 0, 1, 0, 0, 0], None),
            (libc::SYS_fadvise64, [3, 0, 0, 4, 0, 0], error(DONE)),
            (libc::SYS_fadvise64, [3, 0, 0, 3, 0, 0], None),
            (
                libc::SYS_prlimit64,
                [0, core, pointer, 0, 0, 0],
                error(DONE),
            ),
            (libc::SYS_prlimit64, [0, core, 8, 0, 0, 0], error(DONE)),
            (libc::SYS_prlimit64, [0, core, 0, pointer, 0, 0], None),
            (libc::SYS_prlimit64, [0, files, pointer, 0, 0, 0], None),
            (SETRLIMIT, [core, pointer, 0, 0, 0, 0], error(DONE)),
            (SETRLIMIT, [files, pointer, 0, 0, 0, 0], None),
            (libc::SYS_read, [core; 6], None),
            (
                libc::SYS_mmap,
                [0, 4096, 3, 0x40022, 0, 0],
                error(libc::ENOMEM),
            ),
            (libc::SYS_mmap, [0, 4096, 3, 0x22, 0, 0], None),
            (
                libc::SYS_memfd_create,
                [9, 5, 0, 0, 0, 0],
                error(libc::EINVAL),
            ),
            (libc::SYS_memfd_create, [9, 1, 0, 0, 0, 0], None),
            (
                libc::SYS_shmget,
                [1, 1, 0o4600, 0, 0, 0],
                error(libc::EPERM),
            ),
            (libc::SYS_shmget, [1, 1, 0o1600, 0, 0, 0], None),
            (
                libc::SYS_setsockopt,
                [3, 1, 26, 9, 8, 0],
                error(libc::ENOPROTOOPT),
            ),
            (libc::SYS_setsockopt, [3, 6, 26, 9, 8, 0], None),
            (libc::SYS_setsockopt, [3, 1, 2, 9, 8, 0], None),
        ] {
            assert_eq!(run(number, arguments), answer, "{number} {arguments:?}");
        }
    }
}
