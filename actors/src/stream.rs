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

/// The events of one job. The job starts when an event is first awaited. Dropping the stream ends the job.
pub struct JobStream {
    events: EventReceiver,
    started: watch::Receiver<bool>,
    state: StreamState,
    result: Option<ExecutionResult>,
}

enum StreamState {
    Running(Pin<Box<dyn Future<Output = Outcome> + Send>>),
    /// The job has ended with this exit event, or with an error. Earlier events may still wait to be taken.
    Ended(Result<StreamEvent, ExecuteError>),
    Over,
}

impl JobStream {
    pub(crate) fn new<F>(input: Option<Input>, run: impl FnOnce(Attachment) -> F) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (sender, events) = events::channel();
        let (start, started) = watch::channel(false);
        let attachment = Attachment {
            events: sender,
            started: start,
            input: input.map(|input| Arc::new(Mutex::new(input))),
        };
        Self {
            events,
            started,
            state: StreamState::Running(Box::pin(run(attachment))),
            result: None,
        }
    }

    fn end(&mut self, outcome: Outcome) {
        let exit = outcome.map(|mut result| {
            let exit = exit(&mut result);
            self.result = Some(result);
            exit
        });
        self.state = StreamState::Ended(exit);
    }

    /// Returns the job's result once its program has ended, without the output and files that the events carried.
    #[must_use]
    pub fn result(&self) -> Option<&ExecutionResult> {
        self.result.as_ref()
    }

    /// Waits until the job has its sandbox and is about to run. The future may be dropped and called again.
    ///
    /// # Errors
    /// The reason why the job will not run; no events follow then.
    pub async fn begun(&mut self) -> Result<(), ExecuteError> {
        if let StreamState::Running(outcome) = &mut self.state {
            let ended = tokio::select! {
                biased;
                Ok(_) = self.started.wait_for(|started| *started) => return Ok(()),
                ended = outcome => ended,
            };
            if let Err(error) = &ended
                && !*self.started.borrow()
            {
                let error = error.clone();
                self.state = StreamState::Over;
                return Err(error);
            }
            self.end(ended);
        }
        Ok(())
    }

    /// Returns the next event; the exit is the last event. The future may be dropped and called again.
    ///
    /// # Errors
    /// The reason why there will be no exit. Nothing follows it.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, ExecuteError>> {
        if let StreamState::Running(outcome) = &mut self.state {
            let ended = tokio::select! {
                biased;
                Some(event) = self.events.recv() => return Some(Ok(event)),
                ended = outcome => ended,
            };
            self.end(ended);
        }
        // The run has sent all events before it ended.
        if let Some(event) = self.events.try_recv() {
            return Some(Ok(event));
        }
        match std::mem::replace(&mut self.state, StreamState::Over) {
            StreamState::Ended(Err(error)) => match setup_exit(&error) {
                // The setup script has run and ended as a program does, so there is an exit event.
                Some(exit) => {
                    self.state = StreamState::Ended(Ok(exit));
                    Some(Ok(error.event()))
                }
                None => Some(Err(error)),
            },
            StreamState::Ended(exit) => Some(exit),
            StreamState::Running(_) | StreamState::Over => None,
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

/// Returns the exit event of a job that failed before its program ran.
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
    /// Returns the event that reports this error.
    #[must_use]
    pub fn event(&self) -> StreamEvent {
        let phase = match self {
            Self::SetupFailed(_) | Self::InstallFailed(_) => Phase::Setup,
            _ => Phase::Code,
        };
        StreamEvent::new(EventKind::Error, self.to_string(), phase)
    }

    /// Returns the event that reports this error and is the last one, which carries the error's code.
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
