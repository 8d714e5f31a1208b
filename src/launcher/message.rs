//! Messages between the launcher and the server, over a socket that preserves message boundaries and carries
//! descriptors.
//!
//! The launcher reads nothing from the server except the first byte of a message and its descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use isol8_backend::Owner;
use isol8_config::BackendChoice;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

/// Requests an instance of the native backend. The answer is its name, with the descriptor of its lock.
pub(super) const INSTANCE_REQUEST: u8 = b'I';

/// Requests a spawner, and carries its end of a socket. The answer is empty, with a descriptor of the process.
pub(super) const SPAWNER_REQUEST: u8 = b'S';

/// Largest message, in bytes; the paths make the first one long.
const MAX_MESSAGE: usize = 64 * 1024;

/// Largest number of descriptors in one message; no host name is expected to have more addresses.
pub(super) const MAX_DESCRIPTORS: usize = 16;

/// The first message from the launcher: all facts that the server needs and root has determined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Handover {
    /// The user to change to.
    pub(super) owner: Owner,
    /// The user's supplementary groups.
    pub(super) groups: Vec<u32>,
    /// The backend, if the configuration leaves the choice to the program.
    pub(super) backend: BackendChoice,
    /// The reason for choosing the backend.
    pub(super) backend_reason: String,
    /// The state directory.
    pub(super) state: PathBuf,
    /// The files of the configuration, which the server reads again when they change.
    pub(super) sources: Vec<PathBuf>,
}

/// An answer of the launcher. An error is a text for the operator.
pub(super) type Answer = Result<String, String>;

/// An end of the socket.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Returns two connected ends.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    pub(super) fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    pub(super) fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// Sends one message.
    pub(super) fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let is_fit = descriptors.len() <= MAX_DESCRIPTORS;
        if !is_fit
            || (!descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors)))
        {
            return Err(io::Error::other("too many descriptors"));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(message)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Sends a value as JSON.
    pub(super) fn send_json(
        &self,
        value: &impl Serialize,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send(&serde_json::to_vec(value)?, descriptors)
    }

    /// Waits for a message. An empty message means that the other end is closed.
    pub(super) fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut message = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let parts = &mut [IoSliceMut::new(&mut message)];
            match recvmsg(&self.0, parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received?,
            }
        };
        message.truncate(received.bytes);
        let rights = control.drain().filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        Ok((message, rights.flatten().collect()))
    }

    /// Waits for a value as JSON.
    pub(super) fn receive_json<T: for<'a> Deserialize<'a>>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let (message, descriptors) = self.receive()?;
        if message.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((serde_json::from_slice(&message)?, descriptors))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn messages_stay_apart_and_carry_descriptors() {
        let (here, there) = Channel::pair().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        here.send(&[SPAWNER_REQUEST], &[file.as_fd(), file.as_fd()])
            .unwrap();
        here.send_json(&Answer::Ok("name".to_owned()), &[]).unwrap();

        let (message, mut descriptors) = there.receive().unwrap();
        assert_eq!(
            (message.as_slice(), descriptors.len()),
            (&[SPAWNER_REQUEST][..], 2)
        );
        let mut text = String::new();
        File::from(descriptors.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "content");
        let (answer, descriptors) = there.receive_json::<Answer>().unwrap();
        assert_eq!(answer.unwrap(), "name");
        assert!(descriptors.is_empty());

        drop(here);
        assert!(there.receive().unwrap().0.is_empty());
        there.receive_json::<Answer>().unwrap_err();
    }

    #[test]
    fn more_descriptors_than_fit_are_refused() {
        let (here, _there) = Channel::pair().unwrap();
        let many = vec![here.as_fd(); MAX_DESCRIPTORS + 1];
        here.send(b"x", &many).unwrap_err();
    }
}
