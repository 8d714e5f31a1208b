//! The end of runs: by themselves, at their timeout, by the host, with their connection, by a reset.

use std::time::{Duration, Instant};

use isol8_protocol::{ExitStatus, Failure, FailureKind, StreamId};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::launch::ENDED_BY_FORCE;
use super::{Guest, MAX_ORPHANS, log};
use crate::failure::failure;
use crate::interpreter::control_socket::{CellEnd, InterpreterMessage};
use crate::interpreter::{Interpreter, ReleaseReport};
use crate::names::NameServer;
use crate::reaper::{self, Reaped, children_cpu_us, own_cpu_us};
use crate::run::output::drop_output;
use crate::run::{GuestRun, Work};

/// How long an interrupted cell, or a program whose terminal was hung up, may take to end by itself, which saves the
/// interpreter's state. Long enough for `finally` blocks, short enough that the run ends close to its timeout.
const INTERRUPT_TIMEOUT: Duration = Duration::from_millis(250);

/// How long processes that a run left behind may live if the host sends no frame. The next frame, mostly a reset, ends
/// them before. Ending them at once would delay the run's result, because the kernel frees their memory at that moment.
const SWEEP_DELAY: Duration = Duration::from_millis(2);

impl Guest {
    /// Does all work that can be done without waiting.
    pub(super) fn advance(&mut self) {
        self.start_runs();
        // Results are sent before leftover processes are ended.
        self.flush();
        self.sweep();
        while !self.boot_spare() {
            // No event follows the failure, and runs may wait for the spare.
            self.start_runs();
        }
        self.advance_transfers();
        self.flush();
    }

    fn start_runs(&mut self) {
        self.start_programs();
        self.drain_ended();
        while self.start_next_cell() {
            // The cell may have failed at once.
            self.drain_ended();
        }
    }

    fn flush(&mut self) {
        let flushed = self.host.as_mut().map_or(Ok(()), |host| host.flush());
        if let Err(error) = flushed {
            self.lose_connection(&error.to_string());
            self.drain_ended();
        }
    }

    /// Handles every timer that has expired.
    pub(super) fn fire_timers(&mut self) {
        let now = Instant::now();
        self.fire_boot_timers(now);
        self.sweep_due |= self.sweep_at.take_if(|at| *at <= now).is_some();
        let mut position = 0;
        while let Some(run) = self.runs.get_mut(position) {
            position += 1;
            run.output_delayed_until.take_if(|end| *end <= now);
            if run.kill_at.is_some_and(|kill_at| kill_at <= now) {
                self.kill_everything();
            } else if run.deadline.is_some_and(|deadline| deadline <= now) {
                run.deadline = None;
                // A run that the host killed before has not timed out.
                run.timed_out = !run.killed;
                self.interrupt_or_kill(position - 1);
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
        if run.is_queued() {
            return run.end(Ok(ENDED_BY_FORCE), None);
        }
        if run.kill_at.is_none() {
            self.interrupt_or_kill(position);
        }
    }

    /// Ends a run. A cell is interrupted and a program at a terminal beside a resident interpreter is hung up first, so
    /// that the interpreter can keep its state; any other run is killed at once.
    fn interrupt_or_kill(&mut self, position: usize) {
        let run = &mut self.runs[position];
        if run.is_queued() {
            return run.end(Ok(ENDED_BY_FORCE), None);
        }
        match (&run.work, &self.resident, &run.terminal) {
            (Work::Cell(..), Some(interpreter), _) => interpreter.signal(Signal::SIGINT),
            (Work::Process(child), Some(_), Some(terminal)) => terminal.hang_up(child.pid),
            _ => {
                self.kill_everything();
                return;
            }
        }
        run.deadline = None;
        run.kill_at = Some(Instant::now() + INTERRUPT_TIMEOUT);
    }

    /// Kills all processes except zygotes, and so ends every run that was started. Returns whether all are gone.
    pub(super) fn kill_everything(&mut self) -> bool {
        let was_active: Vec<bool> = self.runs.iter().map(GuestRun::is_active).collect();
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
        self.on_reaped(&reaped, false);
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
    fn kill_leftovers(&mut self) {
        let resident = self.resident.as_ref().and_then(Interpreter::pid);
        let spare = self.prewarmer.spare_pid();
        let kept: Vec<Pid> = [resident, spare].into_iter().flatten().collect();
        let mut reaped = Vec::new();
        // If no process is to stay, one signal reaches all of them, however fast they fork.
        let gone = if kept.is_empty() && !self.prewarmer.has_zygote() {
            reaper::kill_all(&mut reaped)
        } else {
            reaper::kill_others(self.launcher.privileges, &kept, &mut reaped)
        };
        self.on_reaped(&reaped, false);
        if !gone {
            self.kill_everything();
        }
    }

    /// Schedules the end of leftover processes, after a run has ended by itself.
    fn schedule_sweep(&mut self) {
        self.sweep_at = Instant::now().checked_add(SWEEP_DELAY);
    }

    /// Ends leftover processes now if that is scheduled, before work that they must not interfere with.
    pub(super) fn sweep_now(&mut self) {
        self.sweep_due |= self.sweep_at.take().is_some();
        self.sweep();
    }

    /// Ends leftover processes if that is due. While another run is active, its processes cannot be told from those
    /// that were left behind, so the last run to end sweeps for all.
    fn sweep(&mut self) {
        if self.sweep_due && !self.runs.iter().any(GuestRun::is_active) {
            self.sweep_due = false;
            self.kill_leftovers();
        }
    }

    /// Handles processes that have ended. With `restart`, a script or cell that was given to an interpreter that died
    /// before it started on it is started again.
    pub(super) fn on_reaped(&mut self, reaped: &[Reaped], restart: bool) {
        for one in reaped {
            if let Some(position) = self
                .runs
                .iter()
                .position(|run| run.ended.is_none() && run.pid() == Some(one.pid))
            {
                self.on_run_reaped(position, one, restart);
            } else if self.resident.as_ref().and_then(Interpreter::pid) == Some(one.pid) {
                self.on_resident_died(one, restart);
            } else if self.prewarmer.spare_pid() == Some(one.pid) {
                self.on_spare_died();
            } else if self.prewarmer.zygote_pids().any(|pid| pid == one.pid) {
                self.on_zygote_died(one.pid);
            }
        }
    }

    fn on_run_reaped(&mut self, position: usize, reaped: &Reaped, restart: bool) {
        let run = &mut self.runs[position];
        let failed = match &mut run.work {
            Work::Process(child) => child.start_failure(),
            Work::Released(interpreter, start) => match interpreter.release_report() {
                ReleaseReport::Started => None,
                ReleaseReport::NoDirectory => Some(no_directory(&start.cwd)),
                ReleaseReport::Never if restart => return self.restart_program(position),
                ReleaseReport::Never => None,
            },
            Work::QueuedCell(_) | Work::Cell(..) | Work::QueuedProgram(_) => None,
        };
        let cpu_us = reaped.cpu_us.saturating_sub(run.boot_cpu_us);
        run.end(failed.map_or(Ok(reaped.status), Err), Some(cpu_us));
        if run.timed_out || run.killed {
            // A run that was ended by the guest leaves no process behind.
            self.sweep_due = true;
        } else if run.sweep {
            self.schedule_sweep();
        }
    }

    fn on_resident_died(&mut self, reaped: &Reaped, restart: bool) {
        let Some(mut interpreter) = self.resident.take() else {
            return;
        };
        // Messages that the interpreter sent before its end still count.
        self.take_answers(&mut interpreter);
        // The next interpreter boots before a run needs it.
        self.prewarmer.renew();
        let Some(run) = self.runs.iter_mut().find(|run| run.is_active_cell()) else {
            self.unreported_loss = true;
            return;
        };
        let Work::Cell(number, _) = run.work else {
            return;
        };
        if restart && !interpreter.has_started_cell(number) && run.requeue() {
            run.state_lost |= interpreter.has_state();
            return;
        }
        let cpu_us = reaped.cpu_us.saturating_sub(run.boot_cpu_us);
        run.end(Ok(reaped.status), Some(cpu_us));
        run.state_lost = true;
        self.sweep_due |= run.sweep;
    }

    /// Handles messages of the resident interpreter about its cell.
    pub(super) fn on_resident_message(&mut self) {
        let Some(mut interpreter) = self.resident.take() else {
            return;
        };
        let ended = self.take_answers(&mut interpreter);
        self.resident = Some(interpreter);
        if ended {
            // The processes that the cell started are ended, as with every run that the guest ended.
            self.kill_leftovers();
        }
    }

    /// Takes the messages of the resident interpreter. Returns whether a cell has ended that the guest had interrupted.
    fn take_answers(&mut self, interpreter: &mut Interpreter) -> bool {
        let Some(run) = self.runs.iter_mut().find(|run| run.is_active_cell()) else {
            return false;
        };
        let Work::Cell(number, request) = &mut run.work else {
            return false;
        };
        let outcome = loop {
            match interpreter.next() {
                Ok(Some(InterpreterMessage::CellStarted(begun))) if begun == *number => {
                    request.stdin = None
                }
                Ok(Some(InterpreterMessage::CellEnded(of, end))) if of == *number => break end,
                Ok(Some(_)) => {}
                // An interpreter that has closed its control socket may have executed another program, whose end is the
                // cell's end.
                Ok(None) | Err(_) => return false,
            }
        };
        let ended_by_guest = run.timed_out || run.killed;
        run.end(
            match outcome {
                CellEnd::Ended(status) => Ok(status),
                CellEnd::NoDirectory => Err(no_directory("of the cell")),
            },
            interpreter.pid().map(|pid| cpu_us(pid, run.boot_cpu_us)),
        );
        self.sweep_due |= run.sweep;
        ended_by_guest
    }

    /// Handles messages of an interpreter that runs a script. If it reports the end before its process ends, the script
    /// has written all of its output, and the rest of the process is of no use.
    pub(super) fn on_released_message(&mut self, id: StreamId, detached: bool) {
        let Some(run) = self.run_of(id, detached) else {
            return;
        };
        let Work::Released(interpreter, _) = &mut run.work else {
            return;
        };
        let code = loop {
            match interpreter.next() {
                Ok(Some(InterpreterMessage::ScriptEnded(code))) => break code,
                Ok(Some(InterpreterMessage::ScriptEndedIfQuiet(code)))
                    if run.output[1].is_silent() =>
                {
                    break code;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        };
        let pid = interpreter.pid();
        let cpu_us = pid.map(|pid| cpu_us(pid, run.boot_cpu_us));
        if run.sweep {
            interpreter.suspend();
        } else {
            interpreter.kill();
        }
        run.end(Ok(ExitStatus::Code(code)), cpu_us);
        if run.sweep {
            self.schedule_sweep();
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
                self.send_failure(id, failure);
            }
            Some(frame) => self.send(&frame),
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
    pub(super) fn lose_connection(&mut self, reason: &str) {
        log(&format!("connection ended: {reason}"));
        self.host = None;
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
            if run.is_queued() {
                run.end(Ok(ENDED_BY_FORCE), None);
            } else if run.is_active_cell() && run.kill_at.is_none() {
                interrupted = Some(position);
            }
        }
        if let Some(position) = interrupted {
            self.interrupt_or_kill(position);
        }
        let processes = self
            .runs
            .iter()
            .any(|run| run.is_active() && !run.is_active_cell());
        if processes {
            self.kill_leftovers();
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
            run.kill_at = None;
            if run.is_queued() {
                run.end(Ok(ENDED_BY_FORCE), None);
            }
        }
        let gone = self.kill_everything();
        // The guest does not wait for the rest of the output of runs that it ended.
        self.runs.iter_mut().for_each(GuestRun::discard_output);
        self.drain_ended();
        self.orphans.clear();
        self.late.clear();
        self.unreported_loss = false;
        if !gone {
            let text = "processes of the sandbox cannot be ended";
            return Err(failure(FailureKind::Internal, text));
        }
        self.baseline.clear(self.launcher.privileges)?;
        self.sources.names.iter_mut().for_each(NameServer::forget);
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
