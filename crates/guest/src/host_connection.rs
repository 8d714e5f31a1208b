//! The connection to the host.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use isol8_protocol::{
    CHUNK_SIZE, Decoder, GuestFrame, HostFrame, MAX_GUEST_FRAME, MAX_HOST_FRAME, VERSION, encode,
};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, sockopt::PeerCredentials};

/// Bytes that may wait for the host to read them, before the guest stops making more.
const OUTGOING: usize = 256 * 1024;

/// Whether the peer may speak to the guest: the host (a process that this PID namespace has no number for) or root of
/// this sandbox. User code is neither. If it shares the guest's user id, only the host is left.
pub(crate) fn is_trusted(socket: &OwnedFd, shared_uid: bool) -> bool {
    let Ok(credentials) = getsockopt(socket, PeerCredentials) else {
        return false;
    };
    credentials.pid() == 0 || (credentials.uid() == 0 && !shared_uid)
}

/// The host's end of a connection, seen from here.
#[derive(Debug)]
pub(crate) struct HostConnection {
    socket: OwnedFd,
    decoder: Decoder,
    greeted: bool,
    outgoing: Vec<u8>,
    sent: usize,
}

impl HostConnection {
    /// Begins a connection: both sides greet. `interrupted` is what became of one before.
    pub(crate) fn new(socket: OwnedFd, interrupted: bool) -> Self {
        let mut peer = Self {
            socket,
            decoder: Decoder::new(MAX_HOST_FRAME),
            greeted: false,
            outgoing: Vec::new(),
            sent: 0,
        };
        peer.send(&GuestFrame::Hello {
            version: VERSION,
            interrupted,
        });
        peer
    }

    /// Queues a frame.
    pub(crate) fn send(&mut self, frame: &GuestFrame) {
        // Output and content come in chunks that fit; the one text that is not the guest's own
        // wording, a path or program name in a failure, is cut by `failed`.
        let fits = encode(frame, MAX_GUEST_FRAME, &mut self.outgoing);
        debug_assert!(fits.is_ok(), "frame beyond the limit");
    }

    pub(crate) fn has_room(&self) -> bool {
        self.outgoing.len() - self.sent < OUTGOING
    }

    pub(crate) fn has_outgoing(&self) -> bool {
        self.sent < self.outgoing.len()
    }

    /// Sends what the socket takes now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.has_outgoing() {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match send(self.socket.as_raw_fd(), &self.outgoing[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !self.has_outgoing() {
            self.sent = 0;
            self.outgoing.clear();
            self.outgoing.shrink_to(CHUNK_SIZE);
        } else if self.sent > OUTGOING {
            self.outgoing.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// Reads once; returns whether there was something. An error ends the connection.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.decoder.feed(&buffer[..count]);
                Ok(true)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next frame that was received whole. An error ends the connection.
    pub(crate) fn next(&mut self) -> io::Result<Option<HostFrame>> {
        loop {
            let frame = self.decoder.next().map_err(io::Error::other)?;
            match frame {
                Some(HostFrame::Hello { version: VERSION }) if !self.greeted => {
                    self.greeted = true;
                }
                Some(HostFrame::Hello { version }) => {
                    let text = format!("greeting for version {version} where none is right");
                    return Err(io::Error::other(text));
                }
                Some(_) if !self.greeted => return Err(io::Error::other("frame before greeting")),
                other => return Ok(other),
            }
        }
    }
}

impl AsFd for HostConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
