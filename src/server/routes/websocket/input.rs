//! Passes the input that a client sends over its WebSocket to the run.

use isol8_actors::{Input, Job, Signal, TerminalSize};
use isol8_api::SignalName;
use isol8_engine::jobs;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

/// The senders for the input of a run: standard input, signals and terminal sizes. Input that arrives after the run's
/// end is dropped, because the `exit` event is already on its way to the client.
pub(super) struct RunInput {
    stdin: Stdin,
    signals: mpsc::Sender<Signal>,
    /// Sizes of the run's terminal, if it has one. Only the latest counts.
    size: Option<watch::Sender<TerminalSize>>,
}

/// A run's standard input.
enum Stdin {
    Open(mpsc::Sender<Vec<u8>>),
    /// The request held all of standard input.
    Given,
    Ended,
}

impl RunInput {
    /// Makes both ends of the input of this job.
    pub(super) fn new(job: &Job) -> (Self, Input) {
        let (sender, input) = Input::channel(job.terminal);
        let run_input = Self {
            stdin: match &job.stdin {
                Some(_) => Stdin::Given,
                None => Stdin::Open(sender.stdin),
            },
            signals: sender.signals,
            size: sender.size,
        };
        (run_input, input)
    }

    /// Returns the channel of standard input.
    ///
    /// # Errors
    /// If the client may not write to it any more, or never could.
    pub(super) fn stdin(&self) -> Result<&mpsc::Sender<Vec<u8>>, String> {
        match &self.stdin {
            Stdin::Open(sender) => Ok(sender),
            Stdin::Given => Err("request.stdin was all of standard input, leave it out".to_owned()),
            Stdin::Ended => Err("standard input has ended".to_owned()),
        }
    }

    pub(super) fn end_stdin(&mut self) -> Result<(), String> {
        self.stdin()?;
        self.stdin = Stdin::Ended;
        Ok(())
    }

    pub(super) fn signal(&self, signal: SignalName) -> Result<(), String> {
        let signal = match signal {
            SignalName::Interrupt => Signal::Interrupt,
            SignalName::Terminate => Signal::Terminate,
        };
        match self.signals.try_send(signal) {
            Err(TrySendError::Full(_)) => Err(format!("{} signals wait already", Input::SIGNALS)),
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
        }
    }

    pub(super) fn resize(&self, cols: u32, rows: u32) -> Result<(), String> {
        let size = jobs::terminal_size("resize", Some(cols), Some(rows));
        let size = size.map_err(|error| error.to_string())?;
        let Some(sender) = &self.size else {
            let problem = "resize: this run has no terminal, set request.tty to have one";
            return Err(problem.to_owned());
        };
        sender.send_replace(size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isol8_actors::Program;
    use isol8_actors::pool::SandboxDefaults;
    use isol8_api::Runtime;

    fn job() -> Job {
        let sandbox = SandboxDefaults::default().spec(Runtime::Bash);
        Job::new(Program::source("", Runtime::Bash), sandbox).unwrap()
    }

    #[test]
    fn only_the_last_size_counts_and_only_at_a_terminal() {
        let (run_input, _input) = RunInput::new(&job());
        assert!(
            run_input
                .resize(80, 24)
                .unwrap_err()
                .contains("request.tty")
        );
        let mut job = job();
        job.terminal = Some(TerminalSize {
            columns: 80,
            rows: 24,
        });
        let (run_input, input) = RunInput::new(&job);
        for columns in 1..100 {
            run_input.resize(columns, 30).unwrap();
        }
        assert_eq!(
            run_input.resize(1001, 30).unwrap_err(),
            "resize.cols: 1001 is out of range, expected 1 to 1000"
        );
        let mut sizes = input.size.unwrap();
        assert!(sizes.has_changed().unwrap());
        let (columns, rows) = (99, 30);
        assert_eq!(*sizes.borrow_and_update(), TerminalSize { columns, rows });
    }

    #[test]
    fn input_that_has_ended_is_not_taken() {
        let (mut run_input, _input) = RunInput::new(&job());
        assert!(run_input.stdin().is_ok());
        run_input.end_stdin().unwrap();
        assert!(run_input.stdin().unwrap_err().contains("ended"));
        assert!(run_input.end_stdin().is_err());
        let mut job = job();
        job.stdin = Some(Vec::new());
        assert!(RunInput::new(&job).0.end_stdin().is_err());
    }
}
