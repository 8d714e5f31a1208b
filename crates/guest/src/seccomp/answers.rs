//! System calls that the filter answers itself, without executing them.
//!
//! Some calls have no effect in a sandbox, where every writable file is in memory, but affect the host: these succeed
//! without being executed. Others are counted for the whole machine, and programs can do without them: these fail as on
//! a kernel that lacks them.

use libc::{c_int, c_long};
use seccompiler::{BpfProgram, sock_filter};

/// The error number that makes a call succeed.
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

/// A call, conditions on its arguments, and the error number that it returns.
struct Answer {
    number: c_long,
    when: &'static [Check],
    errno: c_int,
}

/// A condition on an argument, given by its index. Only the lower half of the argument is compared, because the kernel
/// ignores the upper half of arguments of type `int`.
#[derive(Clone, Copy)]
enum Check {
    /// The argument has this value.
    Is(u32, u32),
    /// The argument has a bit of this mask.
    HasAny(u32, u32),
    /// The argument is a pointer that is not null. Both halves are compared.
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

/// Answers a call for a socket option as a kernel without the option does.
const fn option_missing(when: &'static [Check]) -> Answer {
    Answer {
        number: libc::SYS_setsockopt,
        when,
        errno: libc::ENOPROTOOPT,
    }
}

/// Answers a call for huge pages as a host without any does: the host has a fixed number of them.
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
    // Pages that are sent without a copy are counted per user of the host.
    option_missing(&[
        Check::Is(1, libc::SOL_SOCKET as u32),
        Check::Is(2, libc::SO_ZEROCOPY as u32),
    ]),
    // The flags of `clone3` are in memory, which a filter cannot read. glibc falls back to `clone`.
    always(libc::SYS_clone3, libc::ENOSYS),
    // Events of asynchronous I/O are counted for the whole machine (`fs.aio-max-nr`).
    always(libc::SYS_io_setup, libc::ENOSYS),
    always(libc::SYS_io_destroy, libc::ENOSYS),
    always(libc::SYS_io_submit, libc::ENOSYS),
    always(libc::SYS_io_cancel, libc::ENOSYS),
    always(libc::SYS_io_getevents, libc::ENOSYS),
    always(IO_PGETEVENTS, libc::ENOSYS),
    // Before Linux 6.13, `cachestat` shows which parts of shared files other programs have read.
    always(CACHESTAT, libc::ENOSYS),
    // `sync` and `syncfs` write back every file system of the host. The others reach the host's disk through a file of
    // a shared directory: the cache of the disk is flushed even if there is nothing to write.
    always(libc::SYS_sync, DONE),
    always(libc::SYS_syncfs, DONE),
    always(libc::SYS_fsync, DONE),
    always(libc::SYS_fdatasync, DONE),
    always(SYNC_FILE_RANGE, DONE),
    done_when(libc::SYS_msync, &[Check::HasAny(2, libc::MS_SYNC as u32)]),
    // The advice removes pages of shared files from the host's cache.
    done_when(
        libc::SYS_fadvise64,
        &[Check::Is(3, libc::POSIX_FADV_DONTNEED as u32)],
    ),
    // The limit of 1 that the guest sets keeps a crash from starting the host's `core_pattern` program. Every process
    // may lower its limits, and with 0 the program would be started.
    done_when(
        libc::SYS_prlimit64,
        &[Check::Is(1, libc::RLIMIT_CORE), Check::IsNotNull(2)],
    ),
    done_when(SETRLIMIT, &[Check::Is(0, libc::RLIMIT_CORE)]),
];

/// Returns the instructions that answer these calls. For any other call, they continue with the instructions that
/// follow.
pub(super) fn program() -> BpfProgram {
    ANSWERS.iter().flat_map(Answer::compile).collect()
}

impl Answer {
    /// Returns instructions that compare the number and the arguments, and jump behind the answer if one differs.
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
    /// Returns instructions that continue with the next one if the condition holds, and else skip `behind`
    /// instructions.
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

/// Returns the number of instructions; an answer has a dozen at most.
fn length(program: &BpfProgram) -> u8 {
    program.len() as u8
}

/// Returns the offset of the lower half of an argument in `seccomp_data`, on little-endian machines.
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

    /// Runs the filter on a call. Returns its answer, or `None` if it continues.
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
