//! Files on their way in and out.

use isol8_protocol::{CHUNK_SIZE, Failure, GuestFrame, StreamId, WINDOW};

use super::Guest;
use crate::files::{Reader, Writer};
use crate::listing::Lister;

/// A file transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) id: StreamId,
    direction: Direction,
}

#[derive(Debug)]
enum Direction {
    In(Box<Writer>),
    /// With the bytes that the host takes now.
    Out(Content, u64),
}

/// Content on its way to the host.
#[derive(Debug)]
enum Content {
    File(Reader),
    Directory(Lister),
}

impl Content {
    fn read(&mut self, limit: u64) -> Result<Vec<u8>, Failure> {
        match self {
            Self::File(reader) => reader.read(limit),
            Self::Directory(lister) => lister.read(usize::try_from(limit).unwrap_or(CHUNK_SIZE)),
        }
    }

    fn is_at_end(&self) -> bool {
        match self {
            Self::File(reader) => reader.is_at_end(),
            Self::Directory(lister) => lister.is_at_end(),
        }
    }
}

/// The outcome of content that the host sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    Beyond,
    Unknown,
}

impl Guest {
    pub(super) fn open_writer(&mut self, id: StreamId, path: &str, mode: u32) {
        match Writer::create(self.launcher.privileges, path, mode) {
            Ok(writer) => self.transfers.push(Transfer {
                id,
                direction: Direction::In(Box::new(writer)),
            }),
            Err(failure) => self.tell_failed(id, failure),
        }
    }

    pub(super) fn open_reader(&mut self, id: StreamId, path: &str) {
        let opened = Reader::open(self.launcher.privileges, path);
        self.begin_reader(id, opened.map(Content::File));
    }

    pub(super) fn open_lister(&mut self, id: StreamId, path: &str, limit: u32) {
        let opened = Lister::open(self.launcher.privileges, path, limit);
        self.begin_reader(id, opened.map(Content::Directory));
    }

    fn begin_reader(&mut self, id: StreamId, opened: Result<Content, Failure>) {
        match opened {
            Ok(content) => self.transfers.push(Transfer {
                id,
                direction: Direction::Out(content, WINDOW.into()),
            }),
            Err(failure) => self.tell_failed(id, failure),
        }
    }

    fn position(&self, id: StreamId) -> Option<usize> {
        self.transfers.iter().position(|transfer| transfer.id == id)
    }

    /// Content goes to the file at once, so the credit for it comes back at once.
    pub(super) fn write_transfer(&mut self, id: StreamId, bytes: &[u8]) -> Taken {
        let Some(position) = self.position(id) else {
            return Taken::Unknown;
        };
        let Direction::In(writer) = &mut self.transfers[position].direction else {
            return Taken::Beyond;
        };
        if bytes.len() > WINDOW as usize {
            return Taken::Beyond;
        }
        match writer.write(bytes) {
            Ok(()) => {
                let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.tell(&GuestFrame::Credit { id, bytes });
            }
            Err(failure) => self.fail_transfer(position, failure),
        }
        Taken::Yes
    }

    pub(super) fn finish_writer(&mut self, id: StreamId) {
        let Some(position) = self.position(id) else {
            return;
        };
        if !matches!(self.transfers[position].direction, Direction::In(_)) {
            return;
        }
        if let Direction::In(writer) = self.transfers.remove(position).direction {
            match writer.finish() {
                Ok(()) => self.tell(&GuestFrame::Done { id }),
                Err(failure) => self.tell_failed(id, failure),
            }
        }
    }

    pub(super) fn grant_reader(&mut self, id: StreamId, add: impl FnOnce(&mut u64)) {
        let transfer = self.transfers.iter_mut().find(|transfer| transfer.id == id);
        if let Some(Direction::Out(_, credit)) = transfer.map(|found| &mut found.direction) {
            add(credit);
        }
    }

    pub(super) fn drop_transfer(&mut self, id: StreamId) {
        self.transfers.retain(|transfer| transfer.id != id);
    }

    pub(super) fn fail_transfer(&mut self, position: usize, failure: Failure) {
        let transfer = self.transfers.remove(position);
        self.tell_failed(transfer.id, failure);
    }

    /// Sends what credit and the connection allow of every file and list.
    pub(super) fn advance_transfers(&mut self) {
        let mut position = 0;
        while position < self.transfers.len() {
            let before = self.transfers.len();
            self.advance_reader(position);
            // A transfer that has ended left its position to the next one.
            if self.transfers.len() == before {
                position += 1;
            }
        }
    }

    fn advance_reader(&mut self, position: usize) {
        loop {
            let room = self.has_room();
            let transfer = &mut self.transfers[position];
            let id = transfer.id;
            let Direction::Out(content, credit) = &mut transfer.direction else {
                return;
            };
            if content.is_at_end() {
                self.transfers.remove(position);
                return self.tell(&GuestFrame::Done { id });
            }
            if *credit == 0 || !room {
                return;
            }
            match content.read((*credit).min(CHUNK_SIZE as u64)) {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    *credit -= bytes.len() as u64;
                    self.tell(&GuestFrame::Data { id, bytes });
                }
                Err(failure) => return self.fail_transfer(position, failure),
            }
        }
    }
}
