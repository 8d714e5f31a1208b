//! How runs end: by themselves, by their time, by the host, with their connection, by a reset.

use std::time::{Duration, Instant};

use isol8_protocol::{ExitStatus, Failure, FailureKind, StreamId};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::launch::ENDED_BY_FORCE;
use super::{Guest, MAX_ORPHANS, log};
use crate::failure::failure;
use crate::kernel::control_socket::{CellEnd, Message};
use crate::kernel::{Kernel, Release};
use crate::names::Names;
use crate::reaper::{self, Reaped, children_cpu_us, own_cpu_us};
use crate::run::output::drop_output;
use crate::run::{Run, Work};

/// How long an interrupted cell, or a program whose terminal is taken away, may take to end by itself,
/// which saves the kernel's state. Long
/// enough for `finally` blocks, short enough that a timeout still means what it says.
const GRACE: Duration = Duration::from_millis(250);

/// How long processes that a run left behind may live if the host sends no frame; a frame, mostly one that resets the
/// sandbox, ends them first. Ending them at once would hold up the result that is on its way, because the kernel takes
/// their memory apart in that moment.
const LEFT_BEHIND: Duration = Duration::from_millis(2);

impl Guest {
    /// Brings everything forward that needs no waiting.
    pub(super) fn settle(&mut self) {
        self.begin_runs();
        // The results are on their way before what is left of the runs is ended.
        self.flush();
        self.sweep();
        while !self.boot_spare() {
            // No event will tell of it, and there may be runs that wait for the spare.
            self.begin_runs();
        }
        self.advance_transfers();
        self.flush();
    }

    fn begin_runs(&mut self) {
        self.place_programs();
        self.drain_ended();
        while self.start_next_cell() {
            // The run may have failed at once.
            self.drain_ended();
        }
    }

    fn flush(&mut self) {
        let flushed = self.peer.as_mut().map_or(Ok(()), |peer| peer.flush());
        if let Err(error) = flushed {
            self.lose_peer(&error.to_string());
            self.drain_ended();
        }
    }

    /// Ends runs whose time is over.
    pub(super) fn ring_alarms(&mut self) {
        let now = Instant::now();
        self.ring_boot_alarm(now);
        self.sweep_due |= self.sweep_at.take_if(|at| *at <= now).is_some();
        let mut position = 0;
        while let Some(run) = self.runs.get_mut(position) {
            position += 1;
            run.gathers_until.take_if(|end| *end <= now);
            if run.grace.is_some_and(|grace| grace <= now) {
                self.end_everything();
            } else if run.deadline.is_some_and(|deadline| deadline <= now) {
                run.deadline = None;
                // A run that the host gave up before is not late.
                run.timed_out = !run.killed;
                self.cut_short(position - 1);
            }
        }
    }

    /// The host gives a run up.
    pub(super) fn kill_run(&mut self, position: usize) {
        let run = &mut self.runs[position];
        if run.ended.is_some() {
            // Its output has no taker any more.
            return run.discard_output();
        }
        if !run.timed_out {
            run.killed = true;
        }
        if run.is_waiting() {
            return run.end(Ok(ENDED_BY_FORCE), None);
        }
        if run.grace.is_none() {
            self.cut_short(position);
        }
    }

    /// Ends a run whatever it does: a cell, and what runs at a terminal beside a kernel, with the chance
    /// to leave that its state, all else at once.
    fn cut_short(&mut self, position: usize) {
        let run = &mut self.runs[position];
        if run.is_waiting() {
            return run.end(Ok(ENDED_BY_FORCE), None);
        }
        match (&run.work, &self.resident, &run.terminal) {
            (Work::Cell(..), Some(kernel), _) => kernel.signal(Signal::SIGINT),
            (Work::Process(child), Some(_), Some(terminal)) => terminal.hang_up(child.pid),
            _ => {
                self.end_everything();
                return;
            }
        }
        run.deadline = None;
        run.grace = Some(Instant::now() + GRACE);
    }

    /// Kills all processes, and with them every run that was started. Returns whether all are gone.
    pub(super) fn end_everything(&mut self) -> bool {
        let was_active: Vec<bool> = self.runs.iter().map(Run::is_active).collect();
        let had_resident = self.resident.is_some();
        let had_spare = self.prewarmer.forget_spare();
        let mut reaped = Vec::new();
        let gone = if self.prewarmer.has_zygote() {
            reaper::kill_user_code(self.launcher.privileges, &mut reaped)
        } else {
            reaper::kill_all(&mut reaped)
        };
        if !gone {
            log("processes do not end after SIGKILL");
        }
        self.note_reaped(&reaped, false);
        for (run, was_active) in self.runs.iter_mut().zip(was_active) {
            if was_active {
                run.end(Ok(ENDED_BY_FORCE), None);
                run.state_lost |= had_resident;
                self.unreported_loss = false;
            }
        }
        self.resident = None;
        self.orphans.clear();
        self.sweep_due = false;
        self.sweep_at = None;
        if had_resident || had_spare {
            self.prewarmer.renew();
        }
        gone
    }

    /// Ends what runs left behind, but not the kernels.
    fn end_others(&mut self) {
        let resident = self.resident.as_ref().and_then(Kernel::pid);
        let spare = self.prewarmer.spare_pid();
        let kept: Vec<Pid> = [resident, spare].into_iter().flatten().collect();
        let mut reaped = Vec::new();
        // If no process is to stay, one signal reaches all, however fast they fork.
        let gone = if kept.is_empty() && !self.prewarmer.has_zygote() {
            reaper::kill_all(&mut reaped)
        } else {
            reaper::kill_others(self.launcher.privileges, &kept, &mut reaped)
        };
        self.note_reaped(&reaped, false);
        if !gone {
            self.end_everything();
        }
    }

    /// A run has ended by itself.
    fn sweep_later(&mut self) {
        self.sweep_at = Instant::now().checked_add(LEFT_BEHIND);
    }

    /// Before anything is begun that must not meet what was left behind.
    pub(super) fn sweep_now(&mut self) {
        self.sweep_due |= self.sweep_at.take().is_some();
        self.sweep();
    }

    /// Ends leftover processes if that is due. While another run is active, its processes cannot be told from those
    /// that were left behind, so the last run to end sweeps for all.
    fn sweep(&mut self) {
        if self.sweep_due && !self.runs.iter().any(Run::is_active) {
            self.sweep_due = false;
            self.end_others();
        }
    }

    /// Gives every ended process to whom it belonged. With `restart`, what was given to a kernel
    /// that died before it began gets another chance.
    pub(super) fn note_reaped(&mut self, reaped: &[Reaped], restart: bool) {
        for one in reaped {
            if let Some(position) = self
                .runs
                .iter()
                .position(|run| run.ended.is_none() && run.pid() == Some(one.pid))
            {
                self.note_run_reaped(position, one, restart);
            } else if self.resident.as_ref().and_then(Kernel::pid) == Some(one.pid) {
                self.note_kernel_died(one, restart);
            } else if self.prewarmer.spare_pid() == Some(one.pid) {
                self.note_spare_died();
            } else if self.prewarmer.zygote_pids().any(|pid| pid == one.pid) {
                self.note_zygote_died(one.pid);
            }
        }
    }

    fn note_run_reaped(&mut self, position: usize, reaped: &Reaped, restart: bool) {
        let run = &mut self.runs[position];
        let failed = match &mut run.work {
            Work::Process(child) => child.start_failure(),
            Work::Released(kernel, start) => match kernel.release_report() {
                Release::Started => None,
                Release::NoDirectory => Some(no_directory(&start.cwd)),
                Release::Never if restart => return self.start_again(position),
                Release::Never => None,
            },
            Work::Waiting(_) | Work::Cell(..) | Work::Pending(_) => None,
        };
        let cpu_us = reaped.cpu_us.saturating_sub(run.boot_cpu_us);
        run.end(failed.map_or(Ok(reaped.status), Err), Some(cpu_us));
        if run.timed_out || run.killed {
            // A run that was ended from outside leaves no process behind.
            self.sweep_due = true;
        } else if run.sweep {
            self.sweep_later();
        }
    }

    fn note_kernel_died(&mut self, reaped: &Reaped, restart: bool) {
        let Some(mut kernel) = self.resident.take() else {
            return;
        };
        // Answers that it sent before its end still count.
        self.take_answers(&mut kernel);
        // The next interpreter boots while no run waits for it.
        self.prewarmer.renew();
        let Some(run) = self.runs.iter_mut().find(|run| run.is_active_cell()) else {
            self.unreported_loss = true;
            return;
        };
        let Work::Cell(number, _) = run.work else {
            return;
        };
        if restart && !kernel.took_cell(number) && run.wait_again() {
            run.state_lost |= kernel.has_state();
            return;
        }
        let cpu_us = reaped.cpu_us.saturating_sub(run.boot_cpu_us);
        run.end(Ok(reaped.status), Some(cpu_us));
        run.state_lost = true;
        self.sweep_due |= run.sweep;
    }

    /// The kernel may have begun or ended its cell.
    pub(super) fn attend_kernel(&mut self) {
        let Some(mut kernel) = self.resident.take() else {
            return;
        };
        let ended = self.take_answers(&mut kernel);
        self.resident = Some(kernel);
        if ended {
            // Processes that the cell started are ended, as with every run that was ended from outside.
            self.end_others();
        }
    }

    /// Returns whether a cell has ended that was cut short.
    fn take_answers(&mut self, kernel: &mut Kernel) -> bool {
        let Some(run) = self.runs.iter_mut().find(|run| run.is_active_cell()) else {
            return false;
        };
        let Work::Cell(number, request) = &mut run.work else {
            return false;
        };
        let outcome = loop {
            match kernel.next() {
                Ok(Some(Message::Begun(begun))) if begun == *number => request.stdin = None,
                Ok(Some(Message::Cell(of, end))) if of == *number => break end,
                Ok(Some(_)) => {}
                // Without a line it may have executed another program: that one's end is the cell's.
                Ok(None) | Err(_) => return false,
            }
        };
        let cut_short = run.timed_out || run.killed;
        run.end(
            match outcome {
                CellEnd::Ended(status) => Ok(status),
                CellEnd::NoDirectory => Err(no_directory("of the cell")),
            },
            kernel.pid().map(|pid| cpu_us(pid, run.boot_cpu_us)),
        );
        self.sweep_due |= run.sweep;
        cut_short
    }

    /// An interpreter that runs a script reports its progress. If it reports the end before its process ends, the
    /// script has said and written everything; the rest of the process is of no use.
    pub(super) fn attend_released(&mut self, id: StreamId, detached: bool) {
        let Some(run) = self.run_of(id, detached) else {
            return;
        };
        let Work::Released(kernel, _) = &mut run.work else {
            return;
        };
        let code = loop {
            match kernel.next() {
                Ok(Some(Message::Ended(code))) => break code,
                Ok(Some(Message::EndedIfQuiet(code))) if run.output[1].is_silent() => break code,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        };
        let pid = kernel.pid();
        let cpu_us = pid.map(|pid| cpu_us(pid, run.boot_cpu_us));
        if run.sweep {
            kernel.stop();
        } else {
            kernel.end();
        }
        run.end(Ok(ExitStatus::Code(code)), cpu_us);
        if run.sweep {
            self.sweep_later();
        }
    }

    /// Moves the rest of ended runs' output, and reports those of which nothing is left.
    fn drain_ended(&mut self) {
        let mut position = 0;
        while position < self.runs.len() {
            if self.runs[position].ended.is_some() {
                self.end_network(position);
            }
            if self.runs[position].ended.is_some() && self.drain(position) {
                self.report(position);
            } else {
                position += 1;
            }
        }
    }

    /// Returns whether all output of an ended run was taken.
    fn drain(&mut self, position: usize) -> bool {
        for index in 0..2 {
            self.runs[position].output[index].mark_end();
            loop {
                let room = self.has_room();
                let run = &mut self.runs[position];
                let pump = &mut run.output[index];
                if pump.is_drained() {
                    break;
                }
                if (run.killed || run.detached) && !pump.may_read(run.credit) {
                    // The host that cancelled the run grants no further credit.
                    pump.discard();
                }
                if !pump.may_read(run.credit) || !(room || run.detached) {
                    return false;
                }
                if !self.pump(position, index) {
                    break;
                }
            }
        }
        true
    }

    /// Sends a run's last frame and lets go of it.
    fn report(&mut self, position: usize) {
        let mut run = self.runs.remove(position);
        // Closes the terminal's last descriptor here, so that the terminal shows as gone.
        run.terminal = None;
        if !matches!(run.work, Work::Cell(..)) {
            for pipe in run.output.iter_mut().filter_map(|pump| pump.detach()) {
                // Processes that the run left behind may still write: their pipe must neither block nor break.
                if drop_output(std::os::fd::AsFd::as_fd(&pipe), &mut self.buffer[..]) {
                    self.orphans.push(pipe);
                }
            }
            let surplus = self.orphans.len().saturating_sub(MAX_ORPHANS);
            self.orphans.drain(..surplus);
        }
        if run.detached {
            return;
        }
        run.asked_names = self.take_asked_names();
        match run.last_frame() {
            Some(isol8_protocol::GuestFrame::Failed { id, failure }) => {
                self.tell_failed(id, failure);
            }
            Some(frame) => self.tell(&frame),
            None => {}
        }
    }

    /// Returns the names that programs asked for. Questions that a program sent before its end are still in the socket.
    fn take_asked_names(&mut self) -> Vec<String> {
        let Some(names) = &mut self.sources.names else {
            return Vec::new();
        };
        names.answer();
        names.take_asked()
    }

    /// The connection is gone: its runs end, the resident kernel stays if it can.
    pub(super) fn lose_peer(&mut self, reason: &str) {
        log(&format!("connection ended: {reason}"));
        self.peer = None;
        // A transfer that is not complete has changed no file.
        self.interrupted |= self.runs.iter().any(|run| !run.detached);
        self.transfers.clear();
        self.tunnels.clear();
        let mut interrupted = None;
        for (position, run) in self.runs.iter_mut().enumerate() {
            run.detached = true;
            run.port = None;
            run.killed = true;
            run.discard_output();
            if run.is_waiting() {
                run.end(Ok(ENDED_BY_FORCE), None);
            } else if run.is_active_cell() && run.grace.is_none() {
                interrupted = Some(position);
            }
        }
        if let Some(position) = interrupted {
            self.cut_short(position);
        }
        let processes = self
            .runs
            .iter()
            .any(|run| run.is_active() && !run.is_active_cell());
        if processes {
            self.end_others();
        }
    }

    /// Makes the sandbox as new.
    pub(super) fn try_reset(&mut self) -> Result<(), Failure> {
        self.interrupted = false;
        while !self.transfers.is_empty() {
            let text = "sandbox was reset";
            self.fail_transfer(0, failure(FailureKind::Internal, text));
        }
        for run in &mut self.runs {
            run.killed = true;
            run.grace = None;
            if run.is_waiting() {
                run.end(Ok(ENDED_BY_FORCE), None);
            }
        }
        let gone = self.end_everything();
        // Active runs end first, and the rest of their output is not waited for.
        self.runs.iter_mut().for_each(Run::discard_output);
        self.drain_ended();
        self.orphans.clear();
        self.late.clear();
        self.unreported_loss = false;
        if !gone {
            let text = "processes of the sandbox cannot be ended";
            return Err(failure(FailureKind::Internal, text));
        }
        self.places.clear(self.launcher.privileges)?;
        self.sources.names.iter_mut().for_each(Names::forget);
        self.prewarmer.start_over();
        Ok(())
    }
}

/// Processor time of a process and the children that it waited for, beyond what it had taken `before`.
fn cpu_us(pid: Pid, before: u64) -> u64 {
    (own_cpu_us(pid) + children_cpu_us(pid)).saturating_sub(before)
}

fn no_directory(cwd: &str) -> Failure {
    let text = format!("working directory {cwd} cannot be entered");
    failure(FailureKind::NotFound, text)
}
