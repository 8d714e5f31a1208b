//! The processes of the sandbox: reaping all of them, and ending them.
//!
//! Every process whose parent is gone becomes a child of PID 1, so the guest can wait until none
//! is left, however often a program forked or changed its session.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use isol8_protocol::ExitStatus;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::time::TimeValLike as _;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::lockdown::Privileges;

/// How long the killed may take to be gone. A process that frees gigabytes needs part of a second.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// How often the process table is read for stragglers. A pass finds the processes that existed when it began, and only
/// a fork bomb outruns a few passes.
const SWEEP_PASSES: u32 = 50;

/// A process that ended and is no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reaped {
    pub(crate) pid: Pid,
    pub(crate) status: ExitStatus,
    /// Processor time of it and of the children that it waited for.
    pub(crate) cpu_us: u64,
}

/// Takes every process that has ended; returns whether there are others.
pub(crate) fn reap(reaped: &mut Vec<Reaped>) -> bool {
    loop {
        let mut status = 0;
        // SAFETY: `rusage` is plain data, for which zero is a value.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid through the call.
        let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) };
        match pid {
            0 => return true,
            1.. => reaped.push(Reaped {
                pid: Pid::from_raw(pid),
                status: exit_status(status),
                cpu_us: micros(usage.ru_utime) + micros(usage.ru_stime),
            }),
            _ if Errno::last() == Errno::EINTR => {}
            _ => return false,
        }
    }
}

fn exit_status(status: i32) -> ExitStatus {
    if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    }
}

/// Processor time that a process has taken so far, in microseconds; 0 if the process has ended.
pub(crate) fn own_cpu_us(pid: Pid) -> u64 {
    let taken = clock_getcpuclockid(pid).and_then(clock_gettime);
    taken.map_or(0, |time| {
        u64::try_from(time.num_microseconds()).unwrap_or(0)
    })
}

/// Processor time of the children that a process has waited for so far, in microseconds but counted in the
/// kernel's ticks of 10 ms; 0 where the process has ended.
pub(crate) fn children_cpu_us(pid: Pid) -> u64 {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    children_ticks(&stat).unwrap_or(0) * 10_000
}

/// The fields `cutime` and `cstime` of a `stat` file (proc_pid_stat(5)), the 16th and 17th.
fn children_ticks(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let text = std::str::from_utf8(&stat[end..]).ok()?;
    let mut fields = text.split(' ').skip(14);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

fn micros(time: libc::timeval) -> u64 {
    let micros = i128::from(time.tv_sec) * 1_000_000 + i128::from(time.tv_usec);
    u64::try_from(micros).unwrap_or_default()
}

/// Ends every process but the guest, and returns whether all of them are gone.
///
/// Signalling all is atomic in the kernel with respect to forks: a process either exists and gets
/// the signal, or its fork fails.
pub(crate) fn kill_all(reaped: &mut Vec<Reaped>) -> bool {
    let deadline = Instant::now() + KILL_PATIENCE;
    // Processes that entered from outside have no parent here, but are found by this too.
    while kill(Pid::from_raw(-1), Signal::SIGKILL) != Err(Errno::ESRCH) {
        if Instant::now() >= deadline {
            reap(reaped);
            return false;
        }
        reap(reaped);
        wait_for_child(Duration::from_millis(2));
    }
    reap(reaped);
    true
}

/// Ends every process of user code, and returns whether all of them are gone. Zygotes stay: the
/// signal goes out as from the user of that code, who may not send it to them.
pub(crate) fn kill_user_code(privileges: Privileges, reaped: &mut Vec<Reaped>) -> bool {
    let deadline = Instant::now() + KILL_PATIENCE;
    while Instant::now() < deadline {
        let all = Pid::from_raw(-1);
        if privileges
            .as_effective_user(|| kill(all, Signal::SIGKILL))
            .is_err()
        {
            return false;
        }
        reap(reaped);
        if living(privileges).next().is_none() {
            return true;
        }
        wait_for_child(Duration::from_millis(2));
    }
    false
}

/// Ends every process but the guest, zygotes and those of `kept`, and returns whether all are gone.
pub(crate) fn kill_others(privileges: Privileges, kept: &[Pid], reaped: &mut Vec<Reaped>) -> bool {
    for _ in 0..SWEEP_PASSES {
        reap(reaped);
        let others: Vec<Pid> = living(privileges)
            .filter(|pid| !kept.contains(pid))
            .collect();
        if others.is_empty() {
            return true;
        }
        for pid in others {
            // The process may have ended by now. Its id cannot be another's yet: ids are reused slowly.
            let _ = kill(pid, Signal::SIGKILL);
        }
        wait_for_child(Duration::from_millis(5));
    }
    false
}

/// Sleeps until a child changes its state, or for `patience`.
fn wait_for_child(patience: Duration) {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    let timeout = libc::timespec {
        tv_sec: 0,
        tv_nsec: patience.subsec_nanos().into(),
    };
    // SAFETY: the set and the time are valid through the call. SIGCHLD is blocked, so it can be taken here; the caller
    // reaps afterwards, so nothing is missed.
    unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const timeout) };
}

/// Every process that has not ended, but for the guest's and the zygotes'.
fn living(privileges: Privileges) -> impl Iterator<Item = Pid> {
    let zygote = privileges.zygote();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(move |number| *number != 1 && !belongs_to(*number, zygote) && !is_zombie(*number))
        .map(Pid::from_raw)
}

/// Whether a process has this user id; with the zygote's, it is a zygote or what one is about to fork.
fn belongs_to(pid: i32, uid: u32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == uid)
}

fn is_zombie(pid: i32) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else {
        return true;
    };
    matches!(state(&stat), Some(b'Z' | b'X') | None)
}

/// The state letter. The name before it is the program's choice and may hold anything, so the
/// last parenthesis counts.
fn state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(end + 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_children_is_found_behind_any_name() {
        let stat = b"12 (x) 1 (y) R 1 2 3 4 5 6 7 8 9 10 11 12 30 4 20 0";
        assert_eq!(children_ticks(stat), Some(34));
        assert_eq!(children_ticks(b"12 (x) R 1"), None);
        assert_eq!(children_ticks(b""), None);
    }

    #[test]
    fn a_name_that_looks_like_a_state_does_not_hide_a_process() {
        assert_eq!(state(b"12 (x) Z 1) R 1 12"), Some(b'R'));
        assert_eq!(state(b"12 (sh) Z 1"), Some(b'Z'));
        assert_eq!(state(b"12"), None);
    }

    #[test]
    fn wait_statuses_become_codes_and_signals() {
        assert_eq!(exit_status(3 << 8), ExitStatus::Code(3));
        assert_eq!(exit_status(libc::SIGKILL), ExitStatus::Signal(9));
        assert_eq!(exit_status(libc::SIGSEGV | 0x80), ExitStatus::Signal(11));
    }
}
