//! Handover of the listening socket to the guest of a new container.
//!
//! The server makes the guest's socket in a directory that no container mounts, and sends the descriptor to the guest
//! over a second socket, whose directory the container mounts read-only. So no process in a container can make or
//! change a file on the host, whatever its user is.

use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;

use isol8_backend::instance;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, sendmsg, socket,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

use crate::container::{HANDOVER, SOCKET};
use crate::directory::SandboxDirectory;

/// A guest's socket that has not been handed over yet.
#[derive(Debug)]
pub(crate) struct Handover {
    /// The guest's socket, which is bound but not listening yet: the guest calls listen.
    socket: OwnedFd,
    listener: UnixListener,
    path: PathBuf,
}

impl Handover {
    /// Makes both sockets in a sandbox's directory.
    ///
    /// # Errors
    /// The I/O error of a socket that cannot be made.
    pub(crate) fn prepare(directory: &SandboxDirectory) -> io::Result<Self> {
        let socket = bind_socket(&File::open(directory.path())?)?;
        let control = File::open(directory.control())?;
        let listener = StdUnixListener::bind(instance::socket_in(&control, HANDOVER))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            socket,
            listener: UnixListener::from_std(listener)?,
            path: directory.control().join(HANDOVER),
        })
    }

    /// Waits for the guest to connect, and sends the guest its socket. No other process can connect first: only the
    /// container has a path to the second socket, and the guest is its first process.
    ///
    /// # Errors
    /// The I/O error of the connection.
    pub(crate) async fn complete(self) -> io::Result<()> {
        let (stream, _) = self.listener.accept().await?;
        let send = || send_descriptor(&stream, &self.socket);
        stream.async_io(Interest::WRITABLE, send).await?;
        fs::remove_file(&self.path)
    }
}

fn bind_socket(directory: &File) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let address = UnixAddr::new(&instance::socket_in(directory, SOCKET))?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

fn send_descriptor(stream: &UnixStream, descriptor: &OwnedFd) -> io::Result<()> {
    let descriptors = [descriptor.as_raw_fd()];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(b"s")],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    #[tokio::test]
    async fn the_guest_gets_a_socket_without_having_a_path_to_it() {
        let instance = tempfile::tempdir().unwrap();
        let guest = instance.path().join("guest");
        fs::write(&guest, "").unwrap();
        let directory = SandboxDirectory::new(instance.path(), "one");
        directory.make(&guest, 1, None).unwrap();
        let handover = Handover::prepare(&directory).unwrap();
        let mounted = directory.control().join(HANDOVER);
        let client = std::os::unix::net::UnixStream::connect(&mounted).unwrap();
        handover.complete().await.unwrap();
        assert_eq!(fs::read_dir(directory.control()).unwrap().count(), 0);

        let mut byte = [0];
        let mut parts = [IoSliceMut::new(&mut byte)];
        let mut room = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let flags = MsgFlags::empty();
        let message =
            recvmsg::<()>(client.as_raw_fd(), &mut parts, Some(&mut room), flags).unwrap();
        let received = message.cmsgs().unwrap().next().unwrap();
        assert!(matches!(received, ControlMessageOwned::ScmRights(list) if list.len() == 1));
        assert!(directory.path().join(SOCKET).exists());
    }
}
