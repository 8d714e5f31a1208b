//! The host's side of one run.

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
    /// The run wrote output.
    Output(OutputStream, Vec<u8>),
    /// The run ended. All of its output comes before this event.
    Exited(Exit),
}

/// A run in progress. Dropping the handle kills a run that has not ended.
#[derive(Debug)]
pub struct RunHandle {
    connection: Arc<Connection>,
    stream: Stream,
    tunnels: Option<Tunnels>,
    ended: bool,
}

impl RunHandle {
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

    /// Returns the network connections that the run's programs make; `None` after the first call. Programs wait
    /// until the caller accepts their connections.
    pub fn tunnels(&mut self) -> Option<Tunnels> {
        self.tunnels.take()
    }

    /// Returns the next event. Taking an event lets the run write as many bytes again; without that the run waits.
    /// Must not be called after `Exited`, which is the last event.
    ///
    /// # Errors
    /// [`ControlError::Closed`] if the sandbox died during the run; [`ControlError::Failed`]
    /// if the program could not be started.
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
                // Ignore frames that belong to other kinds of stream.
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

    /// Returns a handle for input and signals, which can be used while another task takes the events.
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
    /// [`ControlError::Closed`] if the run or the sandbox has ended.
    pub async fn write_stdin(&self, bytes: &[u8]) -> Result<(), ControlError> {
        self.input().write(bytes).await
    }

    /// Closes the run's standard input.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn end_stdin(&self) -> Result<(), ControlError> {
        self.input().end()
    }
}

/// Sends input and signals to a run. Has no effect on a run that has ended.
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
    /// [`ControlError::Closed`] if the run or the sandbox has ended.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), ControlError> {
        self.connection
            .send_data(self.id, &self.credit, bytes)
            .await
    }

    /// Closes the run's standard input.
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

    /// Changes the size of the run's terminal, if the run has one.
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub fn resize(&self, size: TerminalSize) -> Result<(), ControlError> {
        let id = self.id;
        self.connection.send(&HostFrame::Resize { id, size })
    }
}

impl Drop for RunHandle {
    fn drop(&mut self) {
        if !self.ended {
            // Ignore a closed connection: the run has ended with it.
            let _ = self.signal(Signal::Kill);
        }
        self.connection.forget(self.stream.id);
    }
}
