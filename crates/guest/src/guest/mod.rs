//! The guest itself: its state and its event loop.
//!
//! The guest has one thread and one `poll`. The descriptors to wait for are derived from the state before each wait, so
//! that no registration can go stale.
//!
//! Reading order: this file (events), [`frames`] (requests of the host), [`launch`] (the start of runs),
//! [`termination`] (their end), [`prewarm`] (interpreters that are kept ready), [`transfers`], [`network`].

mod frames;
mod launch;
mod network;
mod prewarm;
mod termination;
mod transfers;
mod wait;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use isol8_protocol::{CHUNK_SIZE, Failure, GuestFrame, StreamId, TunnelId};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{SockFlag, accept4};

use crate::host_connection::{self, HostConnection};
use crate::interpreter::{Drivers, Interpreter};
use crate::names::NameServer;
use crate::process::ProgramLauncher;
use crate::reaper;
use crate::reset::Baseline;
use crate::run::GuestRun;
use crate::run::late::LateOutput;
use crate::run::output::{drop_output, read_piece};
use crate::tunnel::GuestTunnel;
use prewarm::Prewarmer;
use transfers::Transfer;
use wait::{PollSet, PollSource};

/// Highest number of runs at once, including those that wait. A sandbox's process limit allows fewer, and so few runs
/// are cheap to iterate over.
const MAX_RUNS: usize = 64;

/// Highest number of pipes of ended runs that are kept open for the processes that the runs left behind. Beyond it the
/// oldest pipe is closed, and a process that still writes to it gets SIGPIPE.
const MAX_ORPHANS: usize = 256;

/// Highest number of pieces of late output that are read before a cell starts.
const MAX_LATE_PIECES: usize = 8;

/// Longest text of a failure that is sent, in bytes. A path in the text may be as long as a frame.
const MAX_MESSAGE: usize = 4096;

/// The descriptors that exist for as long as the guest does.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The socket to which the host connects.
    pub(crate) listener: OwnedFd,
    /// Readable when a child has ended.
    pub(crate) signals: SignalFd,
    /// The name server of programs, if the guest has its port.
    pub(crate) names: Option<NameServer>,
}

/// The agent's state.
#[derive(Debug)]
pub(crate) struct Guest {
    launcher: ProgramLauncher,
    drivers: Drivers,
    baseline: Baseline,
    sources: Sources,
    host: Option<HostConnection>,
    runs: Vec<GuestRun>,
    transfers: Vec<Transfer>,
    /// Tunnels in use, and the id that was given out last.
    tunnels: Vec<GuestTunnel>,
    last_tunnel: TunnelId,
    /// The spare interpreter, which waits for its first code, and the state that is needed to make one.
    prewarmer: Prewarmer,
    /// The interpreter that runs the cells.
    resident: Option<Interpreter>,
    /// Set if a resident interpreter died, until the result of a run reports it.
    unreported_loss: bool,
    /// Set if a connection was lost during a run.
    interrupted: bool,
    /// Set if leftover processes are to be ended as soon as no run is active.
    sweep_due: bool,
    /// When leftover processes are ended, unless a request comes before.
    sweep_at: Option<Instant>,
    /// Output that the resident interpreter has written since its last cell.
    late: LateOutput,
    /// Output pipes that processes of ended runs may still hold.
    orphans: Vec<Rc<OwnedFd>>,
    buffer: Box<[u8; CHUNK_SIZE]>,
}

impl Guest {
    pub(crate) fn new(
        launcher: ProgramLauncher,
        drivers: Drivers,
        baseline: Baseline,
        sources: Sources,
    ) -> Self {
        Self {
            launcher,
            drivers,
            baseline,
            sources,
            host: None,
            runs: Vec::new(),
            transfers: Vec::new(),
            tunnels: Vec::new(),
            last_tunnel: TunnelId(0),
            prewarmer: Prewarmer::default(),
            resident: None,
            unreported_loss: false,
            interrupted: false,
            sweep_due: false,
            sweep_at: None,
            late: LateOutput::default(),
            orphans: Vec::new(),
            buffer: Box::new([0; CHUNK_SIZE]),
        }
    }

    /// Serves until `poll` itself fails, after which the guest cannot go on.
    pub(crate) fn serve(&mut self) -> io::Error {
        loop {
            self.fire_timers();
            self.advance();
            let mut poll_set = self.poll_set();
            if let Err(error) = poll_set.wait(self.next_timer()) {
                return error;
            }
            for source in poll_set.ready() {
                self.on_ready(source);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.host.as_ref().is_none_or(HostConnection::has_room)
    }

    /// Returns the descriptors to wait for.
    fn poll_set(&self) -> PollSet {
        let mut poll_set = PollSet::default();
        poll_set.readable(PollSource::Signals, &self.sources.signals);
        poll_set.readable(PollSource::Listener, &self.sources.listener);
        if let Some(names) = &self.sources.names {
            poll_set.readable(PollSource::NameServer, &names.fd());
        }
        if let Some(host) = &self.host {
            poll_set.both(PollSource::HostConnection, host, host.has_outgoing());
        }
        let room = self.has_room();
        let is_read = |run: &&GuestRun| run.is_active() && run.output_delayed_until.is_none();
        for run in self.runs.iter().filter(is_read) {
            for (index, pump) in run.output.iter().enumerate() {
                if let Some(pipe) = pump.pipe()
                    && pump.may_read(run.credit)
                    && (room || run.detached)
                {
                    poll_set.readable(PollSource::Output(run.id, run.detached, index), &pipe);
                }
            }
        }
        for run in &self.runs {
            if let Some(pipe) = run.input.waits_for() {
                poll_set.writable(PollSource::Input(run.id, run.detached), &pipe);
            }
        }
        self.prewarmer.add_to_poll_set(&mut poll_set);
        self.add_network_to_poll_set(&mut poll_set);
        for run in self.runs.iter().filter(|run| run.is_active()) {
            if let Some(interpreter) = run
                .released()
                .filter(|interpreter| interpreter.may_tell_end())
            {
                poll_set.readable(
                    PollSource::Released(run.id, run.detached),
                    &interpreter.control(),
                );
            }
        }
        if let Some(interpreter) = &self.resident {
            if self.runs.iter().any(GuestRun::is_active_cell) {
                if !interpreter.is_silent {
                    poll_set.readable(PollSource::Resident, &interpreter.control());
                }
            } else if !self.runs.iter().any(GuestRun::is_cell) {
                for (index, pipe) in interpreter.output.iter().enumerate() {
                    poll_set.readable(PollSource::ResidentOutput(index), pipe);
                }
            }
        }
        for (index, pipe) in self.orphans.iter().enumerate().rev() {
            poll_set.readable(PollSource::Orphan(index), pipe);
        }
        poll_set
    }

    fn on_ready(&mut self, source: PollSource) {
        match source {
            PollSource::Signals => self.on_child_signal(),
            PollSource::Listener => self.accept(),
            PollSource::NameServer => self.sources.names.iter_mut().for_each(NameServer::answer),
            PollSource::HostConnection => self.on_host_frames(),
            PollSource::Output(id, detached, index) => self.on_output(id, detached, index),
            PollSource::Input(id, detached) => self.feed_input(id, detached),
            PollSource::Resident => self.on_resident_message(),
            PollSource::ResidentOutput(index) => {
                self.keep_late_output(index);
            }
            PollSource::Released(id, detached) => self.on_released_message(id, detached),
            PollSource::Spare => self.on_spare_message(),
            PollSource::Zygote => self.on_zygote_message(false),
            PollSource::Successor => self.on_zygote_message(true),
            PollSource::Port(id) => self.on_port_connection(id),
            PollSource::Tunnel(id) => self.on_tunnel_ready(id),
            PollSource::Orphan(index) => self.drop_orphan_output(index),
        }
    }

    fn on_child_signal(&mut self) {
        // A signal may stand for several ended children, so its content is not used.
        while let Ok(Some(_)) = self.sources.signals.read_signal() {}
        let mut reaped = Vec::new();
        reaper::reap(&mut reaped);
        self.on_reaped(&reaped, true);
    }

    fn accept(&mut self) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = std::os::fd::AsRawFd::as_raw_fd(&self.sources.listener);
        let Ok(socket) = accept4(listener, flags) else {
            return;
        };
        // SAFETY: the descriptor was just accepted, and has no other owner.
        let socket: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(socket) };
        if !host_connection::is_trusted(&socket, self.launcher.privileges.shared_uid()) {
            return;
        }
        if self.host.is_some() {
            self.lose_connection("replaced by a new connection");
        }
        self.host = Some(HostConnection::new(socket, self.interrupted));
    }

    fn on_host_frames(&mut self) {
        let Some(host) = &mut self.host else { return };
        let received = host.receive(&mut self.buffer[..]);
        match received {
            Ok(false) => {}
            Ok(true) => self.take_frames(),
            Err(error) => self.lose_connection(&error.to_string()),
        }
    }

    fn take_frames(&mut self) {
        while let Some(host) = &mut self.host {
            let handled = match host.next() {
                Ok(None) => return,
                Ok(Some(frame)) => self.handle(frame),
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = handled {
                self.lose_connection(&reason);
            }
        }
    }

    fn run_of(&mut self, id: StreamId, detached: bool) -> Option<&mut GuestRun> {
        let mut runs = self.runs.iter_mut();
        runs.find(|run| run.id == id && run.detached == detached)
    }

    fn on_output(&mut self, id: StreamId, detached: bool, index: usize) {
        let position = self
            .runs
            .iter()
            .position(|run| run.id == id && run.detached == detached);
        if let Some(position) = position {
            self.pump(position, index);
        }
    }

    /// Moves a piece of a run's output. Returns whether there may be more.
    fn pump(&mut self, position: usize, index: usize) -> bool {
        let run = &mut self.runs[position];
        let pump = &mut run.output[index];
        let Some(bytes) = pump.read(&mut run.credit, &mut self.buffer[..]) else {
            return false;
        };
        if !bytes.is_empty()
            && !run.detached
            && let Some(host) = &mut self.host
        {
            host.send(&GuestFrame::Output {
                id: run.id,
                stream: pump.stream,
                bytes: bytes.to_vec(),
            });
        }
        true
    }

    fn feed_input(&mut self, id: StreamId, detached: bool) {
        let Some(run) = self.run_of(id, detached) else {
            return;
        };
        let bytes = run.input.feed();
        if bytes > 0 && !detached {
            self.send(&GuestFrame::Credit { id, bytes });
        }
    }

    /// Keeps a piece of the output that the resident interpreter writes while no cell runs. Returns whether there may
    /// be more.
    fn keep_late_output(&mut self, index: usize) -> bool {
        let Some(interpreter) = &self.resident else {
            return false;
        };
        let pipe = std::os::fd::AsFd::as_fd(&interpreter.output[index]);
        let Some(piece) = read_piece(pipe, &mut self.buffer[..]) else {
            // The interpreter has closed its streams, without which it can run no cell.
            interpreter.signal(nix::sys::signal::Signal::SIGKILL);
            return false;
        };
        self.late.push(index, piece);
        !piece.is_empty()
    }

    /// Puts the late output of earlier cells in front of the standard error of the cell that is about to start.
    fn show_late_output(&mut self, position: usize) {
        for index in 0..2 {
            // Programs that earlier cells left behind may write forever.
            let mut pieces = 0..MAX_LATE_PIECES;
            while pieces.next().is_some() && self.keep_late_output(index) {}
        }
        if let Some(text) = self.late.take() {
            let [_, stderr] = &mut self.runs[position].output;
            stderr.begin_with(text);
        }
    }

    /// Discards the output of an orphaned pipe. Orphans are handled from the last to the first, so that removing one
    /// does not change the index of those that follow.
    fn drop_orphan_output(&mut self, index: usize) {
        let Some(pipe) = self.orphans.get(index) else {
            return;
        };
        if !drop_output(std::os::fd::AsFd::as_fd(pipe), &mut self.buffer[..]) {
            self.orphans.remove(index);
        }
    }

    fn send(&mut self, frame: &GuestFrame) {
        if let Some(host) = &mut self.host {
            host.send(frame);
        }
    }

    fn send_failure(&mut self, id: StreamId, mut failure: Failure) {
        if failure.message.len() > MAX_MESSAGE {
            let end = failure.message.floor_char_boundary(MAX_MESSAGE);
            failure.message.truncate(end);
        }
        self.send(&GuestFrame::Failed { id, failure });
    }

    fn next_timer(&self) -> Option<Instant> {
        let runs = self.runs.iter().filter_map(GuestRun::next_timer);
        runs.chain(self.prewarmer.next_timer())
            .chain(self.sweep_at)
            .min()
    }
}

/// Writes a line for the operator: the standard error of PID 1 is the container's log.
fn log(text: &str) {
    eprintln!("isol8-guest: {text}");
}
