//! The two tasks of a control connection, and the table of its streams.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isol8_protocol::{
    CHUNK_SIZE, Decoder, GuestFrame, HostFrame, MAX_GUEST_FRAME, MAX_HOST_FRAME, StreamId,
    TunnelFrame, TunnelId, VERSION, WINDOW, encode,
};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::ControlError;
use super::receive_window::ReceiveWindow;
use super::tunnel::{Tunnel, Tunnels};
use super::tunnels::TunnelTable;

/// The user's end of one stream.
#[derive(Debug)]
pub(super) struct Stream {
    /// Frames from the guest for this stream, in order.
    pub(super) frames: mpsc::UnboundedReceiver<GuestFrame>,
    /// Bytes that the host may still send.
    pub(super) credit: Arc<Semaphore>,
    pub(super) id: StreamId,
}

/// The connection's end of one stream.
#[derive(Debug)]
struct StreamEntry {
    frames: mpsc::UnboundedSender<GuestFrame>,
    credit: Arc<Semaphore>,
    window: ReceiveWindow,
    /// Receiver of the network connections that the run's programs make, if the run has a network.
    tunnels: Option<mpsc::UnboundedSender<Tunnel>>,
}

/// The queue of frames to the guest.
#[derive(Clone, Debug)]
pub(super) struct Outgoing(mpsc::UnboundedSender<QueuedFrame>);

/// An encoded frame, and a permit to release once the frame was sent.
#[derive(Debug)]
struct QueuedFrame {
    bytes: Vec<u8>,
    held: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    pub(super) fn send(
        &self,
        frame: &HostFrame,
        held: Option<OwnedSemaphorePermit>,
    ) -> Result<(), ControlError> {
        let bytes = encoded(frame)?;
        let sent = self.0.send(QueuedFrame { bytes, held });
        sent.map_err(|_| ControlError::Closed("connection lost".to_owned()))
    }
}

/// A connection with the tasks that serve it. Dropping it ends the tasks.
#[derive(Debug)]
pub(super) struct Connection {
    outgoing: Outgoing,
    streams: Arc<Streams>,
    next_id: AtomicU32,
    /// Whether the guest reported that an earlier connection was lost during a run.
    pub(super) was_interrupted: bool,
    closed: watch::Receiver<Option<String>>,
    tasks: [AbortHandle; 2],
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // Tunnels may outlive the connection.
        self.streams.close_all();
    }
}

impl Connection {
    pub(super) async fn open<S>(stream: S) -> Result<Arc<Self>, ControlError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let lost = |error: std::io::Error| ControlError::Closed(error.to_string());
        let hello = encoded(&HostFrame::Hello { version: VERSION })?;
        writer.write_all(&hello).await.map_err(lost)?;

        let mut decoder = Decoder::new(MAX_GUEST_FRAME);
        let was_interrupted = match read_frame(&mut reader, &mut decoder).await {
            Ok(GuestFrame::Hello {
                version: VERSION,
                interrupted,
            }) => interrupted,
            Ok(GuestFrame::Hello { version, .. }) => {
                let text = format!("guest speaks version {version}, not {VERSION}");
                return Err(ControlError::Closed(text));
            }
            Ok(_) => return Err(ControlError::Closed("guest did not greet".to_owned())),
            Err(reason) => return Err(ControlError::Closed(reason)),
        };

        let (outgoing, frames) = mpsc::unbounded_channel();
        let outgoing = Outgoing(outgoing);
        let (close, closed) = watch::channel(None);
        let streams = Arc::new(Streams::new(outgoing.clone()));
        let writing = tokio::spawn(write_frames(writer, frames));
        let abort_writing = writing.abort_handle();
        let reading = tokio::spawn(serve(reader, decoder, Arc::clone(&streams), writing, close));
        Ok(Arc::new(Self {
            outgoing,
            streams,
            next_id: AtomicU32::new(1),
            was_interrupted,
            closed,
            tasks: [abort_writing, reading.abort_handle()],
        }))
    }

    /// Queues a frame.
    pub(super) fn send(&self, frame: &HostFrame) -> Result<(), ControlError> {
        match self.outgoing.send(frame, None) {
            Err(ControlError::Closed(_)) => Err(self.closed_error()),
            sent => sent,
        }
    }

    /// Opens a new stream, which must be closed with [`Self::forget`].
    pub(super) fn stream(&self) -> Result<Stream, ControlError> {
        self.open_stream(None)
    }

    /// Opens a new stream for a run, and returns the network connections of its programs too.
    pub(super) fn run_stream(&self, network: bool) -> Result<(Stream, Tunnels), ControlError> {
        let (sender, tunnels) = mpsc::unbounded_channel();
        let stream = self.open_stream(network.then_some(sender))?;
        Ok((stream, Tunnels(tunnels)))
    }

    fn open_stream(
        &self,
        tunnels: Option<mpsc::UnboundedSender<Tunnel>>,
    ) -> Result<Stream, ControlError> {
        let id = StreamId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let (sender, frames) = mpsc::unbounded_channel();
        let credit = Arc::new(Semaphore::new(WINDOW as usize));
        let entry = StreamEntry {
            frames: sender,
            credit: Arc::clone(&credit),
            window: ReceiveWindow::default(),
            tunnels,
        };
        self.streams.lock().insert(id, entry);
        if self.closed().is_some() {
            self.forget(id);
            return Err(self.closed_error());
        }
        Ok(Stream { frames, credit, id })
    }

    pub(super) fn forget(&self, id: StreamId) {
        self.streams.lock().remove(&id);
    }

    /// Counts bytes of a stream as consumed, and grants the guest credit for more when due.
    pub(super) fn grant(&self, id: StreamId, bytes: usize) {
        let granted = match self.streams.lock().get_mut(&id) {
            Some(entry) => entry.window.consume(bytes),
            None => return,
        };
        if let Some(bytes) = granted {
            // Ignore a closed connection: the guest no longer waits for credit.
            let _ = self.send(&HostFrame::Credit { id, bytes });
        }
    }

    /// Sends the bytes of one stream in pieces, each as soon as the guest has granted credit for it.
    pub(super) async fn send_data(
        &self,
        id: StreamId,
        credit: &Semaphore,
        bytes: &[u8],
    ) -> Result<(), ControlError> {
        for chunk in bytes.chunks(CHUNK_SIZE) {
            let permits = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            let permit = credit.acquire_many(permits).await;
            permit.map_err(|_| self.closed_error())?.forget();
            self.send(&HostFrame::Data {
                id,
                bytes: chunk.to_vec(),
            })?;
        }
        Ok(())
    }

    /// Returns the reason why the connection is closed, or `None` if it is open.
    pub(super) fn closed(&self) -> Option<String> {
        self.closed.borrow().clone()
    }

    pub(super) fn closed_error(&self) -> ControlError {
        ControlError::Closed(
            self.closed()
                .unwrap_or_else(|| "connection lost".to_owned()),
        )
    }

    pub(super) async fn wait_closed(&self) -> String {
        let mut closed = self.closed.clone();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "connection lost".to_owned(),
        }
    }
}

/// The open streams and tunnels. The lock is never held across an await, so it is a blocking one.
#[derive(Debug)]
struct Streams {
    entries: Mutex<HashMap<StreamId, StreamEntry>>,
    tunnels: Arc<TunnelTable>,
    outgoing: Outgoing,
}

impl Streams {
    fn new(outgoing: Outgoing) -> Self {
        Self {
            entries: Mutex::default(),
            tunnels: Arc::default(),
            outgoing,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<StreamId, StreamEntry>> {
        // Every change under the lock is a single map operation: a panic cannot leave it half done.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes a new tunnel to its run. If the user has dropped the run, drops the tunnel.
    fn open_tunnel(&self, id: TunnelId, run: StreamId) -> Result<(), String> {
        let slot = self.tunnels.admit(id)?;
        let receiver = match self.lock().get(&run) {
            Some(StreamEntry { tunnels: None, .. }) => {
                return Err("guest opened a tunnel for a stream without network".to_owned());
            }
            Some(entry) => entry.tunnels.clone(),
            None => None,
        };
        let tunnel = Tunnel::new(id, &self.tunnels, &self.outgoing, slot);
        if let Some(receiver) = receiver {
            let _ = receiver.send(tunnel);
        }
        Ok(())
    }

    /// Passes a frame to its stream; an error closes the connection.
    fn dispatch(&self, frame: GuestFrame) -> Result<(), String> {
        match frame {
            GuestFrame::Hello { .. } => Err("guest greeted twice".to_owned()),
            GuestFrame::Tunnel {
                id,
                frame: TunnelFrame::Open { run },
            } => self.open_tunnel(id, run),
            GuestFrame::Tunnel { id, frame } => self.tunnels.dispatch(id, frame),
            frame => self.dispatch_to_stream(frame),
        }
    }

    fn dispatch_to_stream(&self, frame: GuestFrame) -> Result<(), String> {
        let mut streams = self.lock();
        let id = match &frame {
            GuestFrame::Hello { .. } | GuestFrame::Tunnel { .. } => return Ok(()),
            GuestFrame::Output { id, .. }
            | GuestFrame::Exited { id, .. }
            | GuestFrame::Data { id, .. }
            | GuestFrame::Done { id }
            | GuestFrame::Failed { id, .. }
            | GuestFrame::Credit { id, .. } => *id,
        };
        // A missing stream was dropped by its user while the frame was in transit.
        let Some(entry) = streams.get_mut(&id) else {
            return Ok(());
        };
        match &frame {
            GuestFrame::Output { bytes, .. } | GuestFrame::Data { bytes, .. } => {
                if bytes.is_empty() {
                    // An empty frame costs no credit, so it must not be queued and use memory.
                    return Ok(());
                }
                entry.window.receive(bytes.len())?;
            }
            GuestFrame::Credit { bytes, .. } => {
                let room = (WINDOW as usize).saturating_sub(entry.credit.available_permits());
                entry.credit.add_permits((*bytes as usize).min(room));
                return Ok(());
            }
            GuestFrame::Exited { .. } | GuestFrame::Done { .. } | GuestFrame::Failed { .. } => {
                if let Some(entry) = streams.remove(&id) {
                    entry.credit.close();
                    let _ = entry.frames.send(frame);
                }
                return Ok(());
            }
            GuestFrame::Hello { .. } | GuestFrame::Tunnel { .. } => {}
        }
        let _ = entry.frames.send(frame);
        Ok(())
    }

    fn close_all(&self) {
        for (_, entry) in self.lock().drain() {
            entry.credit.close();
        }
        self.tunnels.close_all();
    }
}

/// Handles the frames of the guest until the guest breaks a rule or either direction ends. Both directions
/// end together: if the guest no longer reads, its runs would otherwise wait forever.
async fn serve<S: AsyncRead>(
    mut reader: ReadHalf<S>,
    mut decoder: Decoder,
    streams: Arc<Streams>,
    mut writing: JoinHandle<()>,
    close: watch::Sender<Option<String>>,
) {
    let reason = tokio::select! {
        // Frames that the guest sent before it closed the connection are handled first.
        biased;
        reason = read_all(&mut reader, &mut decoder, &streams) => reason,
        _ = &mut writing => "connection no longer read by the guest".to_owned(),
    };
    writing.abort();
    // The reason is set first: the user of a stream asks for it when the stream ends.
    close.send_replace(Some(reason));
    streams.close_all();
}

async fn read_all<S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    decoder: &mut Decoder,
    streams: &Streams,
) -> String {
    loop {
        let dispatched = match read_frame(reader, decoder).await {
            Ok(frame) => streams.dispatch(frame),
            Err(reason) => Err(reason),
        };
        if let Err(reason) = dispatched {
            return reason;
        }
    }
}

async fn read_frame<S: AsyncRead>(
    reader: &mut ReadHalf<S>,
    decoder: &mut Decoder,
) -> Result<GuestFrame, String> {
    loop {
        match decoder.next() {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        let mut piece = Vec::with_capacity(CHUNK_SIZE);
        match reader.read_buf(&mut piece).await {
            Ok(0) => return Err("connection closed by the guest".to_owned()),
            Ok(_) => decoder.feed(&piece),
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn write_frames<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    mut frames: mpsc::UnboundedReceiver<QueuedFrame>,
) {
    while let Some(QueuedFrame {
        bytes: mut batch,
        held,
    }) = frames.recv().await
    {
        let mut held: Vec<_> = held.into_iter().collect();
        // A single system call writes all queued frames: the first frames of a run leave together.
        while batch.len() < CHUNK_SIZE
            && let Ok(frame) = frames.try_recv()
        {
            batch.extend_from_slice(&frame.bytes);
            held.extend(frame.held);
        }
        // The reading task notices the end of this task.
        if writer.write_all(&batch).await.is_err() {
            return;
        }
        drop(held);
    }
}

fn encoded(frame: &HostFrame) -> Result<Vec<u8>, ControlError> {
    let mut bytes = Vec::new();
    encode(frame, MAX_HOST_FRAME, &mut bytes)
        .map_err(|error| ControlError::TooLarge(error.to_string()))?;
    Ok(bytes)
}
