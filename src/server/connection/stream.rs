//! A client's socket as actix-http reads and writes it.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf, Take};
use tokio::net::tcp::OwnedReadHalf;

use super::Connection;
use super::flow::ReadBudget;

/// The reading half of a client's socket, and the connection, which holds the writing half.
#[derive(Debug)]
pub(in crate::server) struct ClientStream {
    reader: Take<OwnedReadHalf>,
    connection: Rc<Connection>,
}

impl ClientStream {
    pub(super) fn new(reader: OwnedReadHalf, connection: Rc<Connection>) -> Self {
        let reader = reader.take(0);
        Self { reader, connection }
    }

    pub(in crate::server) fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = Rc::clone(&self.connection);
        let flow = &connection.flow;
        match flow.read_budget() {
            ReadBudget::Bytes(most) => self.reader.set_limit(most as u64),
            ReadBudget::Yield => {
                flow.end_batch();
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ReadBudget::Paused => {
                flow.wait(context.waker());
                return Poll::Pending;
            }
        }
        let before = buffer.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.reader).poll_read(context, buffer) else {
            flow.end_batch();
            return Poll::Pending;
        };
        connection.on_read(buffer.filled().len() - before);
        Poll::Ready(read)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let connection = &self.connection;
        let socket = connection.writer.as_ref();
        loop {
            let Poll::Ready(is_writable) = socket.poll_write_ready(context) else {
                connection.on_blocked();
                return Poll::Pending;
            };
            is_writable?;
            match connection.writer.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    connection.on_written();
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel holds all data that was written, and dropping the writing half closes it.
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.connection.close();
    }
}
