//! Streams whose bytes are counted and whose idle time is measured.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// The bytes that a run has received and sent, and their limit.
#[derive(Debug)]
pub(crate) struct ByteUsage {
    received: AtomicU64,
    sent: AtomicU64,
    limit: u64,
}

impl ByteUsage {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            limit,
        }
    }

    /// Returns the numbers of bytes received and sent.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.received), load(&self.sent))
    }

    pub(crate) fn receive(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn is_spent(&self) -> bool {
        let (received, sent) = self.bytes();
        received.saturating_add(sent) >= self.limit
    }
}

/// The time of the last traffic on either side of a connection.
#[derive(Debug)]
pub(crate) struct Activity {
    started: Instant,
    /// Nanoseconds from `started` to the last traffic.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            last: AtomicU64::new(0),
        })
    }

    pub(crate) fn touch(&self) {
        // A u64 of nanoseconds is enough for 584 years.
        let since = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// Completes once there has been no traffic for so long.
    pub(crate) async fn idle_for(&self, quiet: Duration) {
        loop {
            let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
            let until = self.started + last + quiet;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// A stream that records its activity, and counts its bytes if it has a [`ByteUsage`]. Once the limit of the usage is
/// reached, reading and writing fail.
#[derive(Debug)]
pub(crate) struct MeteredStream<S> {
    stream: S,
    activity: Arc<Activity>,
    usage: Option<Arc<ByteUsage>>,
}

impl<S> MeteredStream<S> {
    pub(crate) fn new(stream: S, activity: &Arc<Activity>) -> Self {
        Self {
            stream,
            activity: Arc::clone(activity),
            usage: None,
        }
    }

    pub(crate) fn counted(self, usage: &Arc<ByteUsage>) -> Self {
        Self {
            usage: Some(Arc::clone(usage)),
            ..self
        }
    }

    fn check(&self) -> io::Result<()> {
        match &self.usage {
            Some(usage) if usage.is_spent() => Err(io::ErrorKind::QuotaExceeded.into()),
            _ => Ok(()),
        }
    }

    fn note(&self, bytes: usize, count: impl FnOnce(&ByteUsage) -> &AtomicU64) {
        if bytes == 0 {
            return;
        }
        self.activity.touch();
        if let Some(usage) = &self.usage {
            count(usage).fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeteredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.note(buffer.filled().len() - before, |usage| &usage.received);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MeteredStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.note(written, |usage| &usage.sent);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, pieces))?;
        self.note(written, |usage| &usage.sent);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
