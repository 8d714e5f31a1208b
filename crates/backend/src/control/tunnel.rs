//! The host's side of one network connection that a program in a sandbox makes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use isol8_protocol::{CHUNK_SIZE, HostFrame, TunnelFrame, TunnelId, WINDOW};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::PollSemaphore;

use super::connection::Outgoing;
use super::receive_window::ReceiveWindow;
use super::tunnels::TunnelTable;

/// A network connection that a program of a run has made. Reading returns the bytes that the program wrote;
/// the program reads the bytes that are written here. Each direction runs at the speed of its slower side. Reading
/// returns the end of the stream once the program has closed its side, and fails once the program, its run, or the
/// sandbox is gone. Dropping the tunnel closes the connection; bytes that were written before still reach the
/// program.
#[derive(Debug)]
pub struct Tunnel {
    id: TunnelId,
    state: Arc<TunnelState>,
    table: Arc<TunnelTable>,
    outgoing: Outgoing,
    /// Permits for the queue of outgoing frames.
    room: PollSemaphore,
    /// Slot of this tunnel. Travels with the `Close` frame; the guest may open another tunnel once that was sent.
    slot: Option<OwnedSemaphorePermit>,
    is_shut: bool,
}

impl Tunnel {
    pub(super) fn new(
        id: TunnelId,
        table: &Arc<TunnelTable>,
        outgoing: &Outgoing,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            id,
            state: table.insert(id),
            table: Arc::clone(table),
            outgoing: outgoing.clone(),
            room: table.room(),
            slot: Some(slot),
            is_shut: false,
        }
    }

    fn send(&self, frame: TunnelFrame, held: Option<OwnedSemaphorePermit>) -> io::Result<()> {
        let id = self.id;
        let sent = self.outgoing.send(&HostFrame::Tunnel { id, frame }, held);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.table.remove(self.id);
        // Ignore a closed connection: the tunnel has ended with it.
        let slot = self.slot.take();
        let _ = self.send(TunnelFrame::Close, slot);
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let granted = {
            let mut state = self.state.lock();
            match state.take(buffer) {
                Some(granted) => granted,
                None if state.is_ended => return Poll::Ready(Ok(())),
                None if state.is_closed => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                None => {
                    state.reader = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
        };
        if granted > 0 {
            // Ignore a closed connection: the guest no longer waits for credit.
            let _ = self.send(TunnelFrame::Credit { bytes: granted }, None);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let broken = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        if self.is_shut {
            return broken();
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // Credit is acquired first: a writer that waits for credit must not hold a permit of the queue.
        ready!(self.state.lock().poll_credit(context));
        let Some(held) = ready!(self.room.poll_acquire(context)) else {
            return broken();
        };
        let Some(size) = self.state.lock().spend(bytes.len().min(CHUNK_SIZE)) else {
            return broken();
        };
        let bytes = bytes[..size].to_vec();
        self.send(TunnelFrame::Data { bytes }, Some(held))?;
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_shut, true) {
            // Ignore a closed connection: the guest is gone.
            let _ = self.send(TunnelFrame::End, None);
        }
        Poll::Ready(Ok(()))
    }
}

/// The state of a tunnel that its user shares with the reading task of the connection.
#[derive(Debug, Default)]
pub(super) struct TunnelState(Mutex<Flow>);

impl TunnelState {
    fn lock(&self) -> MutexGuard<'_, Flow> {
        // A panic cannot interrupt a change: no operation under the lock panics before its change is complete.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Handles a frame from the guest; an error closes the connection.
    pub(super) fn put(&self, frame: TunnelFrame) -> Result<(), String> {
        let mut flow = self.lock();
        if flow.is_closed {
            return Err("guest sent on a tunnel that it had closed".to_owned());
        }
        match frame {
            TunnelFrame::Open { .. } => return Err("guest opened a tunnel twice".to_owned()),
            TunnelFrame::Data { bytes } => flow.push(bytes)?,
            TunnelFrame::End => flow.is_ended = true,
            TunnelFrame::Credit { bytes } => {
                flow.credit = flow.credit.saturating_add(bytes).min(WINDOW)
            }
            TunnelFrame::Close => flow.is_closed = true,
        }
        flow.wake();
        Ok(())
    }

    /// Closes the tunnel because the guest is gone.
    pub(super) fn close(&self) {
        let mut flow = self.lock();
        flow.is_closed = true;
        flow.wake();
    }
}

/// Buffered bytes and credit of one tunnel, and the tasks that wait for them.
#[derive(Debug)]
struct Flow {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that were read.
    taken: usize,
    window: ReceiveWindow,
    /// Bytes that the guest accepts now.
    credit: u32,
    /// The guest sends no more bytes.
    is_ended: bool,
    /// The guest neither sends nor accepts more bytes.
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            pieces: VecDeque::new(),
            taken: 0,
            window: ReceiveWindow::default(),
            credit: WINDOW,
            is_ended: false,
            is_closed: false,
            reader: None,
            writer: None,
        }
    }
}

impl Flow {
    fn push(&mut self, bytes: Vec<u8>) -> Result<(), String> {
        self.window.receive(bytes.len())?;
        if self.is_ended || bytes.is_empty() {
            return Err("guest sent empty data, or data after the end of a tunnel".to_owned());
        }
        match self.pieces.back_mut() {
            // Bytes that arrive one by one must not need a piece each.
            Some(last) if last.len() + bytes.len() <= CHUNK_SIZE => last.extend_from_slice(&bytes),
            _ => self.pieces.push_back(bytes),
        }
        Ok(())
    }

    /// Moves buffered bytes into `buffer`. Returns the bytes to grant, or `None` if no bytes are buffered.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) -> Option<u32> {
        self.pieces.front()?;
        let before = buffer.remaining();
        while let Some(piece) = self.pieces.front()
            && buffer.remaining() > 0
        {
            let rest = &piece[self.taken..];
            let size = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..size]);
            self.taken += size;
            if self.taken == piece.len() {
                self.pieces.pop_front();
                self.taken = 0;
            }
        }
        let granted = self.window.consume(before - buffer.remaining());
        Some(granted.filter(|_| !self.is_closed).unwrap_or(0))
    }

    /// Ready if credit is available, or if the tunnel is closed and credit will never come.
    fn poll_credit(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.credit > 0 || self.is_closed {
            return Poll::Ready(());
        }
        self.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Takes credit for at most `size` bytes. Returns `None` if the tunnel is closed or has no credit.
    fn spend(&mut self, size: usize) -> Option<usize> {
        let spent = u32::try_from(size).unwrap_or(u32::MAX).min(self.credit);
        if self.is_closed || spent == 0 {
            return None;
        }
        self.credit -= spent;
        Some(spent as usize)
    }

    fn wake(&mut self) {
        let waiting = [self.reader.take(), self.writer.take()];
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

/// The network connections of one run, in the order in which its programs make them.
#[derive(Debug)]
pub struct Tunnels(pub(super) mpsc::UnboundedReceiver<Tunnel>);

impl Tunnels {
    /// Returns the next connection; `None` once the run has ended, and at once if the run has no network.
    pub async fn next(&mut self) -> Option<Tunnel> {
        self.0.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_do_not_cost_a_piece_each() {
        let mut flow = Flow::default();
        for byte in 0..200 {
            flow.push(vec![byte]).unwrap();
        }
        assert_eq!(flow.pieces.len(), 1);
        let mut space = [0; 300];
        let mut buffer = ReadBuf::new(&mut space);
        assert_eq!(flow.take(&mut buffer), Some(0));
        assert_eq!(buffer.filled(), (0..200).collect::<Vec<u8>>());
        assert_eq!(flow.take(&mut buffer), None);
    }
}
