//! The end of runs: by themselves, at their timeout, by the host, with their connection, by a reset.

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

/// How long an interrupted cell, or a program whose terminal was hung up, may take to end by itself, which saves the
/// interpreter's state. Long enough for `finally` blocks, short enough that the run ends close to its timeout.
const GRACE: Duration = Duration::from_millis(250);

/// How long processes that a run left behind may live if the host sends no frame. The next frame, mostly a reset, ends
/// them before. Ending them at once would delay the run's result, because the kernel frees their memory at that moment.
const LEFT_BEHIND: Duration = Duration::from_millis(2);

impl Guest {
    /// Does all work that can be done without waiting.
    pub(super) fn settle(&mut self) {
        self.begin_runs();
        // Results are sent before leftover processes are ended.
        self.flush();
        self.sweep();
        while !self.boot_spare() {
            // No event follows the failure, and runs may wait for the spare.
            self.begin_runs();
        }
        self.advance_transfers();
        self.flush();
    }

    fn begin_runs(&mut self) {
        self.place_programs();
        self.drain_ended();
        while self.start_next_cell() {
            // The cell may have failed at once.
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

    /// Handles every timer that has expired.
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
                // A run that the host killed before has not timed out.
                run.timed_out = !run.killed;
                self.cut_short(position - 1);
            }
        }
    }

    /// Handles the host's request to end a run.
    pub(super) fn kill_run(&mut self, position: usize) {
        let run = &mut self.runs[position];
        if run.ended.is_some() {
            // The host takes no more of the run's output.
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

    /// Ends a run. A cell is interrupted and a program at a terminal beside a resident interpreter is hung up first, so
    /// that the interpreter can keep its state; any other run is killed at once.
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

    /// Kills all processes except zygotes, and so ends every run that was started. Returns whether all are gone.
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

    /// Kills the processes that runs left behind, but not the resident interpreter and the spare.
    fn end_others(&mut self) {
        let resident = self.resident.as_ref().and_then(Kernel::pid);
        let spare = self.prewarmer.spare_pid();
        let kept: Vec<Pid> = [resident, spare].into_iter().flatten().collect();
        let mut reaped = Vec::new();
        // If no process is to stay, one signal reaches all of them, however fast they fork.
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

    /// Schedules the end of leftover processes, after a run has ended by itself.
    fn sweep_later(&mut self) {
        self.sweep_at = Instant::now().checked_add(LEFT_BEHIND);
    }

    /// Ends leftover processes now if that is scheduled, before work that they must not interfere with.
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

    /// Handles processes that have ended. With `restart`, a script or cell that was given to an interpreter that died
    /// before it started on it is started again.
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
            // A run that was ended by the guest leaves no process behind.
            self.sweep_due = true;
        } else if run.sweep {
            self.sweep_later();
        }
    }

    fn note_kernel_died(&mut self, reaped: &Reaped, restart: bool) {
        let Some(mut kernel) = self.resident.take() else {
            return;
        };
        // Messages that the interpreter sent before its end still count.
        self.take_answers(&mut kernel);
        // The next interpreter boots before a run needs it.
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

    /// Handles messages of the resident interpreter about its cell.
    pub(super) fn attend_kernel(&mut self) {
        let Some(mut kernel) = self.resident.take() else {
            return;
        };
        let ended = self.take_answers(&mut kernel);
        self.resident = Some(kernel);
        if ended {
            // The processes that the cell started are ended, as with every run that the guest ended.
            self.end_others();
        }
    }

    /// Takes the messages of the resident interpreter. Returns whether a cell has ended that the guest had interrupted.
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
                // An interpreter that has closed its control socket may have executed another program, whose end is the
                // cell's end.
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

    /// Handles messages of an interpreter that runs a script. If it reports the end before its process ends, the script
    /// has written all of its output, and the rest of the process is of no use.
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

    /// Sends the remaining output of ended runs, and reports the runs that have none left.
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

    /// Sends the remaining output of an ended run. Returns whether none is left.
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

    /// Sends a run's last frame and removes the run.
    fn report(&mut self, position: usize) {
        let mut run = self.runs.remove(position);
        // Closes the terminal's last descriptor here, so that the terminal shows as gone.
        run.terminal = None;
        if !matches!(run.work, Work::Cell(..)) {
            for pipe in run.output.iter_mut().filter_map(|pump| pump.detach()) {
                // Processes that the run left behind may still write, and must neither block nor get SIGPIPE.
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

    /// Returns the names that programs asked for. The socket may still hold questions that a program sent before its
    /// end.
    fn take_asked_names(&mut self) -> Vec<String> {
        let Some(names) = &mut self.sources.names else {
            return Vec::new();
        };
        names.answer();
        names.take_asked()
    }

    /// Handles the loss of the connection: ends its runs, and keeps the resident interpreter if possible.
    pub(super) fn lose_peer(&mut self, reason: &str) {
        log(&format!("connection ended: {reason}"));
        self.peer = None;
        // A transfer that was not completed has changed no file.
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

    /// Restores the sandbox to its initial state.
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
        // The guest does not wait for the rest of the output of runs that it ended.
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

/// Returns the processor time of a process and of the children that it waited for, less `before`, in microseconds.
fn cpu_us(pid: Pid, before: u64) -> u64 {
    (own_cpu_us(pid) + children_cpu_us(pid)).saturating_sub(before)
}

fn no_directory(cwd: &str) -> Failure {
    let text = format!("working directory {cwd} cannot be entered");
    failure(FailureKind::NotFound, text)
}
