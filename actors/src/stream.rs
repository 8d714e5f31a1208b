//! A job that a client follows while it runs.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use isol8_api::{Ending, EventKind, ExecutionResult, Phase, StreamEvent};
use tokio::sync::{Mutex, watch};

use crate::error::{ExecuteError, FailureCause};
use crate::run::events::{self, EventReceiver};
use crate::run::{Attachment, Input};

type Outcome = Result<ExecutionResult, ExecuteError>;

/// The events of one job. Nothing happens unless they are asked for, and dropping it ends the job.
pub struct JobStream {
    events: EventReceiver,
    begun: watch::Receiver<bool>,
    state: State,
    result: Option<ExecutionResult>,
}

enum State {
    Running(Pin<Box<dyn Future<Output = Outcome> + Send>>),
    /// With this exit, or without one. Events may be left that came before.
    Ended(Result<StreamEvent, ExecuteError>),
    Over,
}

impl JobStream {
    pub(crate) fn new<F>(input: Option<Input>, run: impl FnOnce(Attachment) -> F) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (sender, events) = events::channel();
        let (begin, begun) = watch::channel(false);
        let live = Attachment {
            events: sender,
            begun: begin,
            input: input.map(|input| Arc::new(Mutex::new(input))),
        };
        Self {
            events,
            begun,
            state: State::Running(Box::pin(run(live))),
            result: None,
        }
    }

    fn end(&mut self, outcome: Outcome) {
        let exit = outcome.map(|mut result| {
            let exit = exit(&mut result);
            self.result = Some(result);
            exit
        });
        self.state = State::Ended(exit);
    }

    /// Returns the job's result once its program has ended, without the output and files that the events carried.
    #[must_use]
    pub fn result(&self) -> Option<&ExecutionResult> {
        self.result.as_ref()
    }

    /// Waits until the job has its sandbox and is about to run. May be given up and asked again.
    ///
    /// # Errors
    /// Why it never will; there are no events then.
    pub async fn begun(&mut self) -> Result<(), ExecuteError> {
        if let State::Running(outcome) = &mut self.state {
            let ended = tokio::select! {
                biased;
                Ok(_) = self.begun.wait_for(|begun| *begun) => return Ok(()),
                ended = outcome => ended,
            };
            if let Err(error) = &ended
                && !*self.begun.borrow()
            {
                let error = error.clone();
                self.state = State::Over;
                return Err(error);
            }
            self.end(ended);
        }
        Ok(())
    }

    /// The next event; the exit is the last one. May be given up and asked again.
    ///
    /// # Errors
    /// Why there will be no exit. Nothing comes after it.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, ExecuteError>> {
        if let State::Running(outcome) = &mut self.state {
            let ended = tokio::select! {
                biased;
                Some(event) = self.events.recv() => return Some(Ok(event)),
                ended = outcome => ended,
            };
            self.end(ended);
        }
        // The run has sent all of them before it ended.
        if let Some(event) = self.events.try_recv() {
            return Some(Ok(event));
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Ended(Err(error)) => match setup_exit(&error) {
                // Its setup script has run and ended, as a program does.
                Some(exit) => {
                    self.state = State::Ended(Ok(exit));
                    Some(Ok(error.event()))
                }
                None => Some(Err(error)),
            },
            State::Ended(exit) => Some(exit),
            State::Running(_) | State::Over => None,
        }
    }
}

fn exit(result: &mut ExecutionResult) -> StreamEvent {
    let code = result.exit_code.to_string();
    StreamEvent {
        ending: Ending {
            truncated: result.truncated,
            timed_out: result.timed_out,
            oom_killed: result.oom_killed,
            state_lost: result.state_lost,
            files: result.files.take(),
            warnings: result.warnings.clone(),
            code: None,
        },
        ..StreamEvent::new(EventKind::Exit, code, Phase::Code)
    }
}

/// The exit of a job that failed before its program ran.
fn setup_exit(error: &ExecuteError) -> Option<StreamEvent> {
    let (ExecuteError::SetupFailed(failed) | ExecuteError::InstallFailed(failed)) = error else {
        return None;
    };
    let code = failed.exit_code.to_string();
    let mut exit = StreamEvent::new(EventKind::Exit, code, Phase::Setup);
    exit.ending.timed_out = matches!(failed.cause, FailureCause::TimedOut { .. });
    exit.ending.oom_killed = matches!(failed.cause, FailureCause::OutOfMemory(_));
    Some(exit)
}

impl ExecuteError {
    /// The event that tells of it.
    #[must_use]
    pub fn event(&self) -> StreamEvent {
        let phase = match self {
            Self::SetupFailed(_) | Self::InstallFailed(_) => Phase::Setup,
            _ => Phase::Code,
        };
        StreamEvent::new(EventKind::Error, self.to_string(), phase)
    }

    /// The event that tells of it where nothing comes after it.
    #[must_use]
    pub fn last_event(&self) -> StreamEvent {
        let mut event = self.event();
        event.ending.code = Some(self.code());
        event
    }
}

impl fmt::Debug for JobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JobStream")
    }
}
