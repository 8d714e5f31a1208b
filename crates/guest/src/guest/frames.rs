//! Handles the frames of the host. An error of these functions means that the host broke the protocol, and ends the
//! connection.

use isol8_protocol::{GuestFrame, HostFrame, Signal, StreamId, TerminalSize, WINDOW};
use nix::sys::signal::{Signal as OsSignal, killpg};

use super::Guest;
use super::transfers::TransferWrite;
use crate::run::Work;

type Handled = Result<(), String>;

impl Guest {
    pub(super) fn handle(&mut self, frame: HostFrame) -> Handled {
        if matches!(
            frame,
            HostFrame::Exec { .. }
                | HostFrame::WriteFile { .. }
                | HostFrame::ReadFile { .. }
                | HostFrame::ListDirectory { .. }
        ) {
            self.sweep_now();
        }
        match frame {
            HostFrame::Hello { .. } => return Err("greeted twice".to_owned()),
            HostFrame::Prepare {
                id,
                runtime,
                settings,
            } => {
                self.check_new(id)?;
                self.prepare(id, runtime, settings);
            }
            HostFrame::Exec { id, spec } => {
                self.check_new(id)?;
                self.exec(id, spec);
            }
            HostFrame::Data { id, bytes } => return self.take_data(id, &bytes),
            HostFrame::End { id } => self.end_data(id),
            HostFrame::Signal { id, signal } => self.signal(id, signal),
            HostFrame::Resize { id, size } => self.resize(id, size),
            HostFrame::Credit { id, bytes } => self.grant(id, bytes),
            HostFrame::WriteFile { id, path, mode } => {
                self.check_new(id)?;
                self.open_writer(id, &path, mode);
            }
            HostFrame::ReadFile { id, path } => {
                self.check_new(id)?;
                self.open_reader(id, &path);
            }
            HostFrame::ListDirectory { id, path, limit } => {
                self.check_new(id)?;
                self.open_lister(id, &path, limit);
            }
            HostFrame::Reset { id } => {
                self.check_new(id)?;
                self.reset(id);
            }
            HostFrame::Tunnel { id, frame } => return self.take_tunnel_frame(id, frame),
        }
        Ok(())
    }

    fn check_new(&mut self, id: StreamId) -> Handled {
        let used = self.run_of(id, false).is_some()
            || self.transfers.iter().any(|transfer| transfer.id == id);
        if used {
            return Err(format!("stream {} used twice", id.0));
        }
        Ok(())
    }

    fn take_data(&mut self, id: StreamId, bytes: &[u8]) -> Handled {
        let beyond = || format!("stream {} sent beyond its credit", id.0);
        if let Some(run) = self.run_of(id, false) {
            if run.ended.is_some() {
                return Ok(());
            }
            if !run.input.push(bytes) {
                return Err(beyond());
            }
            self.feed_input(id, false);
            return Ok(());
        }
        match self.write_transfer(id, bytes) {
            TransferWrite::BeyondCredit => Err(beyond()),
            // The stream ended on this side while the frame was on its way.
            TransferWrite::UnknownStream | TransferWrite::Done => Ok(()),
        }
    }

    fn end_data(&mut self, id: StreamId) {
        match self.run_of(id, false) {
            Some(run) => {
                run.input.end();
                self.feed_input(id, false);
            }
            None => self.finish_writer(id),
        }
    }

    fn grant(&mut self, id: StreamId, bytes: u32) {
        // The host grants only bytes that it took, so credit never exceeds a window.
        let add = |credit: &mut u64| *credit = (*credit + u64::from(bytes)).min(WINDOW.into());
        match self.run_of(id, false) {
            Some(run) => add(&mut run.credit),
            None => self.grant_reader(id, add),
        }
    }

    fn signal(&mut self, id: StreamId, signal: Signal) {
        let os = match signal {
            Signal::Interrupt => OsSignal::SIGINT,
            Signal::Terminate => OsSignal::SIGTERM,
            Signal::Kill => return self.kill(id),
        };
        let Some(run) = self.run_of(id, false) else {
            return;
        };
        if run.ended.is_some() {
            return;
        }
        if let Work::Cell(..) = run.work {
            if let Some(interpreter) = &self.resident {
                interpreter.signal(os);
            }
        } else if let (Some(terminal), Some(pid)) = (&run.terminal, run.pid()) {
            terminal.signal(pid, os);
        } else if let Some(pid) = run.pid() {
            // The program leads its own process group. The other processes of the group get the signal too, as from a
            // terminal.
            let _ = killpg(pid, os);
        }
    }

    fn resize(&mut self, id: StreamId, size: TerminalSize) {
        let run = self.run_of(id, false).filter(|run| run.ended.is_none());
        if let Some(terminal) = run.and_then(|run| run.terminal.as_ref()) {
            terminal.resize(size);
        }
    }

    fn kill(&mut self, id: StreamId) {
        match self
            .runs
            .iter()
            .position(|run| run.id == id && !run.detached)
        {
            Some(position) => self.kill_run(position),
            None => self.drop_transfer(id),
        }
    }

    fn reset(&mut self, id: StreamId) {
        match self.try_reset() {
            Ok(()) => self.send(&GuestFrame::Done { id }),
            Err(failure) => self.send_failure(id, failure),
        }
    }
}
