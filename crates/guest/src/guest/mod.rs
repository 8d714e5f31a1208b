//! The guest itself: everything that it holds, and the loop that serves it.
//!
//! The guest has one thread and one `poll`. The descriptors to wait for are derived from the state before each wait, so
//! that no registration can go stale. Reading order: this file (events), [`frames`] (requests of the host), [`launch`]
//! (how runs start), [`termination`] (how they end), [`prewarm`] (how interpreters are kept ready), [`transfers`], [`network`].

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
use crate::kernel::{Drivers, Kernel};
use crate::names::Names;
use crate::process::Launcher;
use crate::reaper;
use crate::reset::Places;
use crate::run::Run;
use crate::run::late::LateOutput;
use crate::run::output::{drop_output, read_piece};
use crate::tunnel::Tunnel;
use prewarm::Prewarmer;
use transfers::Transfer;
use wait::{Source, Waits};

/// Runs at once, those that wait included. Beyond what a sandbox's process limit makes sense of,
/// and few enough that looking at all of them is cheap.
const MAX_RUNS: usize = 64;

/// Pipes of ended runs that are kept open for what they left behind. Beyond this the oldest is
/// closed, and who still writes to it gets SIGPIPE.
const MAX_ORPHANS: usize = 256;

/// Pieces of late output that are read before a cell begins.
const MAX_LATE_PIECES: usize = 8;

/// Bytes of a failure's text that are sent: a path in it may be as long as a frame.
const MAX_MESSAGE: usize = 4096;

/// The descriptors that the guest listens to beside its connection and its runs.
#[derive(Debug)]
pub(crate) struct Sources {
    /// The socket to which the host connects.
    pub(crate) listener: OwnedFd,
    /// Ends of children.
    pub(crate) signals: SignalFd,
    /// Programs that ask a name server.
    pub(crate) names: Option<Names>,
}

/// The agent's state.
#[derive(Debug)]
pub(crate) struct Guest {
    launcher: Launcher,
    drivers: Drivers,
    places: Places,
    sources: Sources,
    peer: Option<HostConnection>,
    runs: Vec<Run>,
    transfers: Vec<Transfer>,
    /// Those that the host has not closed; and the last one.
    tunnels: Vec<Tunnel>,
    last_tunnel: TunnelId,
    /// The interpreter that waits for its first code, and the means to make it.
    prewarmer: Prewarmer,
    /// The interpreter that cells run in.
    resident: Option<Kernel>,
    /// A resident kernel died, and no run has said so yet.
    unreported_loss: bool,
    /// A connection was lost in the middle of a run.
    interrupted: bool,
    /// Set if leftover processes are to be ended as soon as no run is active.
    sweep_due: bool,
    /// Or then, where nothing is asked for before.
    sweep_at: Option<Instant>,
    /// Output that the resident interpreter has written since its last cell.
    late: LateOutput,
    /// Output of what ended runs left behind.
    orphans: Vec<Rc<OwnedFd>>,
    buffer: Box<[u8; CHUNK_SIZE]>,
}

impl Guest {
    pub(crate) fn new(
        launcher: Launcher,
        drivers: Drivers,
        places: Places,
        sources: Sources,
    ) -> Self {
        Self {
            launcher,
            drivers,
            places,
            sources,
            peer: None,
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

    /// Serves until waiting itself fails, which leaves nothing to go on with.
    pub(crate) fn serve(&mut self) -> io::Error {
        loop {
            self.ring_alarms();
            self.settle();
            let mut waits = self.waits();
            if let Err(error) = waits.wait(self.next_alarm()) {
                return error;
            }
            for source in waits.ready() {
                self.attend(source);
            }
        }
    }

    fn has_room(&self) -> bool {
        self.peer.as_ref().is_none_or(HostConnection::has_room)
    }

    /// Everything that could let the guest go on.
    fn waits(&self) -> Waits {
        let mut waits = Waits::default();
        waits.readable(Source::Signals, &self.sources.signals);
        waits.readable(Source::Listener, &self.sources.listener);
        if let Some(names) = &self.sources.names {
            waits.readable(Source::Names, &names.fd());
        }
        if let Some(peer) = &self.peer {
            waits.both(Source::HostConnection, peer, peer.has_outgoing());
        }
        let room = self.has_room();
        let is_read = |run: &&Run| run.is_active() && run.gathers_until.is_none();
        for run in self.runs.iter().filter(is_read) {
            for (index, pump) in run.output.iter().enumerate() {
                if let Some(pipe) = pump.pipe()
                    && pump.may_read(run.credit)
                    && (room || run.detached)
                {
                    waits.readable(Source::Output(run.id, run.detached, index), &pipe);
                }
            }
        }
        for run in &self.runs {
            if let Some(pipe) = run.input.waits_for() {
                waits.writable(Source::Input(run.id, run.detached), &pipe);
            }
        }
        self.prewarmer.add_waits(&mut waits);
        self.add_network_waits(&mut waits);
        for run in self.runs.iter().filter(|run| run.is_active()) {
            if let Some(kernel) = run.released().filter(|kernel| kernel.may_tell_end()) {
                waits.readable(Source::Released(run.id, run.detached), &kernel.line());
            }
        }
        if let Some(kernel) = &self.resident {
            if self.runs.iter().any(Run::is_active_cell) {
                if !kernel.is_silent {
                    waits.readable(Source::Kernel, &kernel.line());
                }
            } else if !self.runs.iter().any(Run::is_cell) {
                for (index, pipe) in kernel.output.iter().enumerate() {
                    waits.readable(Source::KernelOutput(index), pipe);
                }
            }
        }
        for (index, pipe) in self.orphans.iter().enumerate().rev() {
            waits.readable(Source::Orphan(index), pipe);
        }
        waits
    }

    fn attend(&mut self, source: Source) {
        match source {
            Source::Signals => self.attend_signals(),
            Source::Listener => self.accept(),
            Source::Names => self.sources.names.iter_mut().for_each(Names::answer),
            Source::HostConnection => self.attend_peer(),
            Source::Output(id, detached, index) => self.attend_output(id, detached, index),
            Source::Input(id, detached) => self.attend_input(id, detached),
            Source::Kernel => self.attend_kernel(),
            Source::KernelOutput(index) => {
                self.keep_kernel_output(index);
            }
            Source::Released(id, detached) => self.attend_released(id, detached),
            Source::Spare => self.attend_spare(),
            Source::Zygote => self.attend_zygote(false),
            Source::Successor => self.attend_zygote(true),
            Source::Port(id) => self.attend_port(id),
            Source::Tunnel(id) => self.attend_tunnel(id),
            Source::Orphan(index) => self.drop_orphan_output(index),
        }
    }

    fn attend_signals(&mut self) {
        // A signal may stand for many ends; its content is of no use.
        while let Ok(Some(_)) = self.sources.signals.read_signal() {}
        let mut reaped = Vec::new();
        reaper::reap(&mut reaped);
        self.note_reaped(&reaped, true);
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
        if self.peer.is_some() {
            self.lose_peer("replaced by a new connection");
        }
        self.peer = Some(HostConnection::new(socket, self.interrupted));
    }

    fn attend_peer(&mut self) {
        let Some(peer) = &mut self.peer else { return };
        let received = peer.receive(&mut self.buffer[..]);
        match received {
            Ok(false) => {}
            Ok(true) => self.take_frames(),
            Err(error) => self.lose_peer(&error.to_string()),
        }
    }

    fn take_frames(&mut self) {
        while let Some(peer) = &mut self.peer {
            let handled = match peer.next() {
                Ok(None) => return,
                Ok(Some(frame)) => self.handle(frame),
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = handled {
                self.lose_peer(&reason);
            }
        }
    }

    fn run_of(&mut self, id: StreamId, detached: bool) -> Option<&mut Run> {
        let mut runs = self.runs.iter_mut();
        runs.find(|run| run.id == id && run.detached == detached)
    }

    fn attend_output(&mut self, id: StreamId, detached: bool, index: usize) {
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
            && let Some(peer) = &mut self.peer
        {
            peer.send(&GuestFrame::Output {
                id: run.id,
                stream: pump.stream,
                bytes: bytes.to_vec(),
            });
        }
        true
    }

    fn attend_input(&mut self, id: StreamId, detached: bool) {
        let Some(run) = self.run_of(id, detached) else {
            return;
        };
        let bytes = run.input.feed();
        if bytes > 0 && !detached {
            self.tell(&GuestFrame::Credit { id, bytes });
        }
    }

    /// Keeps a piece of what the resident kernel writes while no cell runs. Returns whether there may be more.
    fn keep_kernel_output(&mut self, index: usize) -> bool {
        let Some(kernel) = &self.resident else {
            return false;
        };
        let pipe = std::os::fd::AsFd::as_fd(&kernel.output[index]);
        let Some(piece) = read_piece(pipe, &mut self.buffer[..]) else {
            // The interpreter closed its own streams: without them it can serve no cell.
            kernel.signal(nix::sys::signal::Signal::SIGKILL);
            return false;
        };
        self.late.push(index, piece);
        !piece.is_empty()
    }

    /// Has the run that is about to begin in the resident kernel show first what came before it.
    fn show_late_output(&mut self, position: usize) {
        for index in 0..2 {
            // Programs that earlier cells left may write for ever.
            let mut pieces = 0..MAX_LATE_PIECES;
            while pieces.next().is_some() && self.keep_kernel_output(index) {}
        }
        if let Some(text) = self.late.take() {
            let [_, stderr] = &mut self.runs[position].output;
            stderr.begin_with(text);
        }
    }

    /// Orphans are attended from the last to the first, so that removing one moves none of those
    /// that are still to come.
    fn drop_orphan_output(&mut self, index: usize) {
        let Some(pipe) = self.orphans.get(index) else {
            return;
        };
        if !drop_output(std::os::fd::AsFd::as_fd(pipe), &mut self.buffer[..]) {
            self.orphans.remove(index);
        }
    }

    fn tell(&mut self, frame: &GuestFrame) {
        if let Some(peer) = &mut self.peer {
            peer.send(frame);
        }
    }

    fn tell_failed(&mut self, id: StreamId, mut failure: Failure) {
        if failure.message.len() > MAX_MESSAGE {
            let end = failure.message.floor_char_boundary(MAX_MESSAGE);
            failure.message.truncate(end);
        }
        self.tell(&GuestFrame::Failed { id, failure });
    }

    fn next_alarm(&self) -> Option<Instant> {
        let runs = self.runs.iter().filter_map(Run::alarm);
        runs.chain(self.prewarmer.alarm())
            .chain(self.sweep_at)
            .min()
    }
}

/// Says something to the operator: standard error of PID 1 is the container's log.
fn log(text: &str) {
    eprintln!("isol8-guest: {text}");
}
