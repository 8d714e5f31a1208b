//! Answers to programs that ask a name server, in a sandbox that has none.
//!
//! The host's proxy resolves the names that programs send to it. A program that asks for an address itself would
//! wait for its resolver's timeout, which is ten seconds with some C libraries. Every question is therefore
//! answered at once: no such name, with the reason where the program takes one (RFC 8914). The run's end tells the host
//! which names were asked for, so that its client learns why a program did not find them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

/// The port of name servers.
const PORT: u16 = 53;

/// Longest question that is looked at: RFC 1035 allows no more without an extension, and programs need no more.
const LONGEST: usize = 512;

/// Bytes of a message's header, and of a question behind its name.
const HEADER: usize = 12;
const AFTER_NAME: usize = 4;

/// Codes of answers: the question is malformed, there is no such name, the kind of question is not known.
const FORMAT_ERROR: u8 = 1;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;

/// The option that explains an answer, and its code for what is blocked.
const EXPLANATION: u16 = 15;
const BLOCKED: u16 = 15;

const REASON: &str =
    "isol8: no name server here, programs reach the network through HTTPS_PROXY only";

/// Names that are told at the end of a run.
const MOST_TOLD: usize = 8;

/// The socket to which programs send questions for names.
#[derive(Debug)]
pub(crate) struct Names {
    socket: UdpSocket,
    /// Names that were asked for and not told yet.
    asked: Vec<String>,
}

impl Names {
    /// Takes the port, which needs the right to a low one.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT))?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            asked: Vec::new(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The first few names that were asked for since this was called last.
    pub(crate) fn take_asked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.asked)
    }

    /// Forgets what was asked. Nothing that could ask may run any more.
    pub(crate) fn forget(&mut self) {
        let mut question = [0; LONGEST];
        while self.socket.recv_from(&mut question).is_ok() {}
        self.asked.clear();
    }

    /// Answers the next question, if there is one.
    pub(crate) fn answer(&mut self) {
        let mut message = [0; LONGEST];
        let Ok((size, from)) = self.socket.recv_from(&mut message) else {
            return;
        };
        let message = &message[..size];
        // From a port of loopback: nothing else reaches the socket.
        let is_here = matches!(from, SocketAddr::V4(from) if from.ip().is_loopback());
        if let Some(answer) = answer(message).filter(|_| is_here) {
            // A program that takes no answer has none.
            let _ = self.socket.send_to(&answer, from);
            self.note(message);
        }
    }

    fn note(&mut self, message: &[u8]) {
        let name = message.get(HEADER..).and_then(question).map(readable);
        if let Some(name) = name
            && self.asked.len() < MOST_TOLD
            && !self.asked.contains(&name)
        {
            self.asked.push(name);
        }
    }
}

/// The name of a question, with what belongs into no name escaped.
fn readable(question: &[u8]) -> String {
    let mut name = String::new();
    let mut rest = question;
    while let [length @ 1..=63, labels @ ..] = rest {
        let (label, more) = labels.split_at(usize::from(*length).min(labels.len()));
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.escape_ascii().map(char::from));
        rest = more;
    }
    name
}

/// Returns the answer to a message; `None` if the message is no question.
fn answer(message: &[u8]) -> Option<Vec<u8>> {
    let header = message.get(..HEADER)?;
    let is_answer = header[2] & 0x80 != 0;
    if is_answer {
        return None;
    }
    let is_query = header[2] & 0x78 == 0;
    let one_question = header[4..6] == [0, 1];
    let question = question(&message[HEADER..]).filter(|_| is_query && one_question);
    let code = match question {
        _ if !is_query => NOT_IMPLEMENTED,
        None => FORMAT_ERROR,
        Some(_) => NO_SUCH_NAME,
    };
    // An additional record is the extension that says that the program takes others.
    let is_extended = header[10..12] != [0, 0];
    let explains = question.is_some() && is_extended;
    let mut answer = header[..2].to_vec();
    // An answer, to a query of this kind, as recursive as was asked for.
    answer.extend([0x80 | header[2] & 0x79, 0x80 | code]);
    answer.extend([
        0,
        u8::from(question.is_some()),
        0,
        0,
        0,
        0,
        0,
        u8::from(explains),
    ]);
    answer.extend_from_slice(question.unwrap_or_default());
    if explains {
        explain(&mut answer);
    }
    Some(answer)
}

/// The question that a text begins with.
fn question(text: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match *text.get(at)? {
            0 => return text.get(..at + 1 + AFTER_NAME),
            // A pointer leads nowhere from the first name.
            length if length > 63 => return None,
            length => at += 1 + usize::from(length),
        }
    }
}

/// Adds the record that carries options (RFC 6891), with the reason.
fn explain(answer: &mut Vec<u8>) {
    let text = REASON.as_bytes();
    // Every length is that of a constant.
    let length = 2 + text.len() as u16;
    answer.extend([0, 0, 41]);
    answer.extend((LONGEST as u16).to_be_bytes());
    answer.extend([0; 4]);
    answer.extend((4 + length).to_be_bytes());
    answer.extend(EXPLANATION.to_be_bytes());
    answer.extend(length.to_be_bytes());
    answer.extend(BLOCKED.to_be_bytes());
    answer.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A question for `a.bc`, of a kind and with so many additional records.
    fn asked(flags: u8, additional: u8) -> Vec<u8> {
        let mut message = vec![7, 8, flags, 0, 0, 1, 0, 0, 0, 0, 0, additional];
        message.extend(b"\x01a\x02bc\0\0\x01\0\x01");
        message
    }

    #[test]
    fn a_question_is_repeated_and_answered_with_no_such_name() {
        let mut expected = asked(0x81, 0);
        expected[3] = 0x83;
        assert_eq!(answer(&asked(1, 0)), Some(expected));
    }

    #[test]
    fn a_name_is_readable_and_of_harmless_characters() {
        let name = |message: &[u8]| readable(question(&message[HEADER..]).unwrap());
        assert_eq!(name(&asked(1, 0)), "a.bc");
        let mut hostile = asked(1, 0);
        hostile[HEADER + 1] = b'\n';
        assert_eq!(name(&hostile), "\\n.bc");
    }

    #[test]
    fn a_program_that_takes_a_reason_gets_one() {
        let mut question = asked(1, 1);
        question.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        let answer = answer(&question).unwrap();
        assert_eq!(answer[11], 1);
        assert!(answer.ends_with(REASON.as_bytes()) && answer.len() <= LONGEST);
    }

    #[test]
    fn what_is_no_question_has_an_error_or_nothing() {
        assert_eq!(answer(&asked(0x80, 0)), None, "an answer");
        assert_eq!(answer(b"short"), None);
        let code = |message: &[u8]| answer(message).unwrap()[3] & 15;
        assert_eq!(code(&asked(0x28, 0)), NOT_IMPLEMENTED);
        let mut pointer = asked(1, 0);
        pointer[HEADER] = 0xc0;
        assert_eq!(code(&pointer), FORMAT_ERROR);
        let whole = asked(1, 0);
        assert_eq!(code(&whole[..whole.len() - 1]), FORMAT_ERROR);
    }
}
