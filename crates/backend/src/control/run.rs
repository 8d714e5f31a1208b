//! A run, from the host's side.

use std::sync::Arc;

use isol8_protocol::{
    Exit, GuestFrame, HostFrame, OutputStream, RunSpec, Signal, StreamId, TerminalSize,
};
use tokio::sync::Semaphore;

use super::ControlError;
use super::connection::{Connection, Stream};
use super::tunnel::Tunnels;

/// An event of a run.
#[derive(Debug, PartialEq, Eq)]
pub enum RunEvent {
    /// The program wrote output.
    Output(OutputStream, Vec<u8>),
    /// The run ended; all of its output came before.
    Exited(Exit),
}

/// A run under way. Dropping it before its end ends it.
#[derive(Debug)]
pub struct Run {
    connection: Arc<Connection>,
    stream: Stream,
    tunnels: Option<Tunnels>,
    ended: bool,
}

impl Run {
    pub(super) fn start(connection: &Arc<Connection>, spec: RunSpec) -> Result<Self, ControlError> {
        let (stream, tunnels) = connection.run_stream(spec.network)?;
        let id = stream.id;
        if let Err(error) = connection.send(&HostFrame::Exec { id, spec }) {
            connection.forget(id);
            return Err(error);
        }
        Ok(Self {
            connection: Arc::clone(connection),
            stream,
            tunnels: Some(tunnels),
            ended: false,
        })
    }

    /// Returns the connections that the run's programs make, once. If they are not taken, the programs wait.
    pub fn tunnels(&mut self) -> Option<Tunnels> {
        self.tunnels.take()
    }

    /// The next event. Taking one lets the run write as much again; not taking any makes it wait.
    /// After `Exited` there is none, and this must not be called.
    ///
    /// # Errors
    /// [`ControlError::Closed`] where the sandbox died under the run; [`ControlError::Failed`]
    /// where the program could not be started.
    pub async fn next(&mut self) -> Result<RunEvent, ControlError> {
        loop {
            match self.stream.frames.recv().await {
                Some(GuestFrame::Output { stream, bytes, .. }) => {
                    self.connection.grant(self.stream.id, bytes.len());
                    return Ok(RunEvent::Output(stream, bytes));
                }
                Some(GuestFrame::Exited { exit, .. }) => {
                    self.ended = true;
                    return Ok(RunEvent::Exited(exit));
                }
                Some(GuestFrame::Failed { failure, .. }) => {
                    self.ended = true;
                    return Err(ControlError::Failed(failure));
                }
                // Frames that belong to other kinds of stream say nothing here.
                Some(_) => {}
                None => {
                    self.ended = true;
                    return Err(self.connection.closed_error());
                }
            }
        }
    }

    /// Sends a signal to the run.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn signal(&self, signal: Signal) -> Result<(), ControlError> {
        self.input().signal(signal)
    }

    /// Returns the handle that acts on the run while its events are taken.
    #[must_use]
    pub fn input(&self) -> RunInput {
        RunInput {
            connection: Arc::clone(&self.connection),
            credit: Arc::clone(&self.stream.credit),
            id: self.stream.id,
        }
    }

    /// Writes to the run's standard input, as fast as the run reads.
    ///
    /// # Errors
    /// [`ControlError::Closed`] where the run or the sandbox has ended.
    pub async fn write_stdin(&self, bytes: &[u8]) -> Result<(), ControlError> {
        self.input().write(bytes).await
    }

    /// Ends the run's standard input.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn end_stdin(&self) -> Result<(), ControlError> {
        self.input().end()
    }
}

/// Acts on a run beside taking its events. On a run that has ended it has no effect.
#[derive(Debug)]
pub struct RunInput {
    connection: Arc<Connection>,
    credit: Arc<Semaphore>,
    id: StreamId,
}

impl RunInput {
    /// Writes to the run's standard input, as fast as the run reads.
    ///
    /// # Errors
    /// [`ControlError::Closed`] where the run or the sandbox has ended.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), ControlError> {
        self.connection
            .send_data(self.id, &self.credit, bytes)
            .await
    }

    /// Ends the run's standard input.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn end(&self) -> Result<(), ControlError> {
        self.connection.send(&HostFrame::End { id: self.id })
    }

    /// Sends a signal to the run.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn signal(&self, signal: Signal) -> Result<(), ControlError> {
        let id = self.id;
        self.connection.send(&HostFrame::Signal { id, signal })
    }

    /// Changes the size of the run's terminal, if it has one.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn resize(&self, size: TerminalSize) -> Result<(), ControlError> {
        let id = self.id;
        self.connection.send(&HostFrame::Resize { id, size })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.ended {
            // If the connection is gone, the run is too.
            let _ = self.signal(Signal::Kill);
        }
        self.connection.forget(self.stream.id);
    }
}
