//! Waiting for descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Instant;

use isol8_protocol::{StreamId, TunnelId};

/// The owner of a descriptor. A detached run of an earlier connection may have the id of a current one, so both are
/// named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Signals,
    Listener,
    /// Programs that ask a name server.
    Names,
    HostConnection,
    Output(StreamId, bool, usize),
    Input(StreamId, bool),
    Kernel,
    KernelOutput(usize),
    /// The line of a run's kernel.
    Released(StreamId, bool),
    Spare,
    Zygote,
    Successor,
    /// The port to which the programs of a run connect.
    Port(StreamId),
    Tunnel(TunnelId),
    Orphan(usize),
}

/// The descriptors of one wait.
#[derive(Debug, Default)]
pub(super) struct Waits {
    entries: Vec<libc::pollfd>,
    sources: Vec<Source>,
}

impl Waits {
    pub(super) fn readable(&mut self, source: Source, file: &impl AsFd) {
        self.add(source, file, libc::POLLIN);
    }

    pub(super) fn writable(&mut self, source: Source, file: &impl AsFd) {
        self.add(source, file, libc::POLLOUT);
    }

    pub(super) fn both(&mut self, source: Source, file: &impl AsFd, writable: bool) {
        let events = libc::POLLIN | if writable { libc::POLLOUT } else { 0 };
        self.add(source, file, events);
    }

    /// For reading, for writing, or for both.
    pub(super) fn either(
        &mut self,
        source: Source,
        file: &impl AsFd,
        readable: bool,
        writable: bool,
    ) {
        let reading = if readable { libc::POLLIN } else { 0 };
        let writing = if writable { libc::POLLOUT } else { 0 };
        if readable || writable {
            self.add(source, file, reading | writing);
        }
    }

    fn add(&mut self, source: Source, file: &impl AsFd, events: i16) {
        self.entries.push(libc::pollfd {
            fd: file.as_fd().as_raw_fd(),
            events,
            revents: 0,
        });
        self.sources.push(source);
    }

    /// Waits until one of them is ready, or for the alarm.
    pub(super) fn wait(&mut self, alarm: Option<Instant>) -> io::Result<()> {
        let timeout = alarm.map(|alarm| {
            let left = alarm.saturating_duration_since(Instant::now());
            libc::timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        let count = self.entries.len() as libc::nfds_t;
        // SAFETY: the entries are valid for their count, the time through the call; the signal
        // mask stays as it is.
        let result =
            unsafe { libc::ppoll(self.entries.as_mut_ptr(), count, timeout, std::ptr::null()) };
        if result >= 0 {
            return Ok(());
        }
        // The results are not written then: nothing is ready.
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        }
    }

    /// Those that are ready, in the order in which they were added.
    pub(super) fn ready(&self) -> impl Iterator<Item = Source> {
        let entries = self.entries.iter().zip(&self.sources);
        entries.filter_map(|(entry, source)| (entry.revents != 0).then_some(*source))
    }
}
