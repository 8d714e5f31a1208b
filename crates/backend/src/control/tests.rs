//! Tests of the control connection, with a guest whose frames are written by each test.

use isol8_protocol::{
    CHUNK_SIZE, Decoder, Exit, ExitStatus, GuestFrame, HostFrame, MAX_GUEST_FRAME, MAX_HOST_FRAME,
    OutputStream, Program, Signal, Stdin, StreamId, VERSION, WINDOW, encode,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;

mod tunnels;

/// The far end of a connection.
struct Guest {
    stream: DuplexStream,
    decoder: Decoder,
}

impl Guest {
    fn new(stream: DuplexStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(MAX_HOST_FRAME),
        }
    }

    async fn send(&mut self, frame: GuestFrame) {
        let mut bytes = Vec::new();
        encode(&frame, MAX_GUEST_FRAME, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn output(&mut self, id: StreamId, bytes: &[u8]) {
        let stream = OutputStream::Stdout;
        let bytes = bytes.to_vec();
        self.send(GuestFrame::Output { id, stream, bytes }).await;
    }

    /// Returns the next frame from the host, or `None` if the host has closed the connection.
    async fn next(&mut self) -> Option<HostFrame> {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return Some(frame);
            }
            let mut piece = vec![0; CHUNK_SIZE];
            match self.stream.read(&mut piece).await {
                Ok(0) | Err(_) => return None,
                Ok(size) => self.decoder.feed(&piece[..size]),
            }
        }
    }

    /// Returns whether the host sends nothing within an hour (of paused time).
    async fn hears_nothing(&mut self) -> bool {
        tokio::time::timeout(Duration::from_secs(3600), self.next())
            .await
            .is_err()
    }

    async fn exec(&mut self) -> StreamId {
        match self.next().await {
            Some(HostFrame::Exec { id, .. }) => id,
            other => panic!("expected Exec, got {other:?}"),
        }
    }
}

async fn connected() -> (Control, Guest) {
    let (host, far_end) = tokio::io::duplex(1 << 20);
    let mut guest = Guest::new(far_end);
    let (control, ()) = tokio::join!(Control::open(host), async {
        let hello = guest.next().await;
        assert_eq!(hello, Some(HostFrame::Hello { version: VERSION }));
        guest
            .send(GuestFrame::Hello {
                version: VERSION,
                interrupted: false,
            })
            .await;
    });
    (control.unwrap(), guest)
}

fn spec() -> RunSpec {
    RunSpec {
        program: Program::Command {
            argv: vec!["true".to_owned()],
        },
        env: Vec::new(),
        cwd: None,
        stdin: Stdin::Empty,
        timeout_ms: None,
        output_limit: None,
        eager: false,
        sweep: true,
        terminal: None,
        network: false,
    }
}

fn exit() -> Exit {
    Exit {
        status: ExitStatus::Code(3),
        timed_out: false,
        state_lost: false,
        stdout_bytes: 2,
        stderr_bytes: 0,
        wall_us: 1,
        cpu_us: None,
        late_variables: 0,
        asked_names: Vec::new(),
    }
}

fn failed(id: StreamId, kind: FailureKind) -> GuestFrame {
    let message = "because".to_owned();
    let failure = Failure { kind, message };
    GuestFrame::Failed { id, failure }
}

fn is_closed_with<T: std::fmt::Debug>(result: Result<T, ControlError>, text: &str) {
    match result {
        Err(ControlError::Closed(reason)) => assert!(reason.contains(text), "{reason}"),
        other => panic!("expected Closed with {text:?}, got {other:?}"),
    }
}

#[tokio::test]
async fn a_guest_of_another_version_is_not_spoken_to() {
    let (host, far_end) = tokio::io::duplex(1024);
    let mut guest = Guest::new(far_end);
    let version = VERSION + 1;
    guest
        .send(GuestFrame::Hello {
            version,
            interrupted: false,
        })
        .await;
    let expected = format!("version {version}, not {VERSION}");
    is_closed_with(Control::open(host).await, &expected);
}

#[tokio::test]
async fn a_guest_that_does_not_greet_first_is_refused() {
    let (host, far_end) = tokio::io::duplex(1024);
    let mut guest = Guest::new(far_end);
    guest.send(GuestFrame::Done { id: StreamId(1) }).await;
    is_closed_with(Control::open(host).await, "did not greet");
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_ends_the_handshake_in_time() {
    let (host, _guest) = tokio::io::duplex(1024);
    assert_eq!(
        Control::open(host).await.unwrap_err(),
        ControlError::TimedOut(HANDSHAKE_TIMEOUT)
    );
}

#[tokio::test]
async fn the_events_of_a_run_come_in_their_order() {
    let (control, mut guest) = connected().await;
    let mut run = control.run(spec()).unwrap();
    let id = guest.exec().await;
    guest.output(id, b"1").await;
    let stderr = GuestFrame::Output {
        id,
        stream: OutputStream::Stderr,
        bytes: b"2".to_vec(),
    };
    guest.send(stderr).await;
    guest.send(GuestFrame::Exited { id, exit: exit() }).await;

    let stdout = RunEvent::Output(OutputStream::Stdout, b"1".to_vec());
    assert_eq!(run.next().await, Ok(stdout));
    let stderr = RunEvent::Output(OutputStream::Stderr, b"2".to_vec());
    assert_eq!(run.next().await, Ok(stderr));
    assert_eq!(run.next().await, Ok(RunEvent::Exited(exit())));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_has_ended_is_not_killed_when_it_is_dropped() {
    let (control, mut guest) = connected().await;
    let mut run = control.run(spec()).unwrap();
    let id = guest.exec().await;
    guest.send(failed(id, FailureKind::NotFound)).await;
    let error = run.next().await.unwrap_err();
    assert_eq!(error.failure_kind(), Some(FailureKind::NotFound));
    drop(run);
    assert!(guest.hears_nothing().await);
}

#[tokio::test]
async fn dropping_a_run_kills_it() {
    let (control, mut guest) = connected().await;
    let run = control.run(spec()).unwrap();
    let id = guest.exec().await;
    drop(run);
    let signal = Signal::Kill;
    assert_eq!(guest.next().await, Some(HostFrame::Signal { id, signal }));
    // Frames that are still in transit belong to no stream and are ignored.
    guest.output(id, b"late").await;
    guest.send(GuestFrame::Exited { id, exit: exit() }).await;
    let _next = control.run(spec()).unwrap();
    assert_ne!(guest.exec().await, id);
}

#[tokio::test(start_paused = true)]
async fn credit_is_granted_for_what_was_taken_only() {
    let (control, mut guest) = connected().await;
    let mut run = control.run(spec()).unwrap();
    let id = guest.exec().await;
    for _ in 0..WINDOW as usize / CHUNK_SIZE {
        guest.output(id, &[0; CHUNK_SIZE]).await;
    }
    assert!(guest.hears_nothing().await, "nothing was taken yet");

    run.next().await.unwrap();
    let credit = HostFrame::Credit {
        id,
        bytes: u32::try_from(CHUNK_SIZE).unwrap(),
    };
    assert_eq!(guest.next().await, Some(credit));
    guest.output(id, &[0; CHUNK_SIZE]).await;
    assert!(!control.is_closed(), "within its credit");
}

#[tokio::test(start_paused = true)]
async fn small_output_does_not_cost_a_frame_of_credit_each() {
    let (control, mut guest) = connected().await;
    let mut run = control.run(spec()).unwrap();
    let id = guest.exec().await;
    for _ in 0..100 {
        guest.output(id, b"x").await;
        run.next().await.unwrap();
    }
    assert!(guest.hears_nothing().await);
}

#[tokio::test]
async fn a_guest_that_overruns_its_credit_loses_the_connection() {
    let (control, mut guest) = connected().await;
    let mut run = control.run(spec()).unwrap();
    let id = guest.exec().await;
    for _ in 0..WINDOW as usize / CHUNK_SIZE {
        guest.output(id, &[0; CHUNK_SIZE]).await;
    }
    guest.output(id, b"x").await;
    assert_eq!(control.closed().await, "guest sent more than its credit");
    for _ in 0..WINDOW as usize / CHUNK_SIZE {
        run.next().await.unwrap();
    }
    is_closed_with(run.next().await, "more than its credit");
    drop((run, control));
    assert!(guest.next().await.is_none(), "the stream is closed");
}

#[tokio::test]
async fn empty_output_is_no_event() {
    let (control, mut guest) = connected().await;
    let mut run = control.run(spec()).unwrap();
    let id = guest.exec().await;
    guest.output(id, b"").await;
    guest.send(GuestFrame::Exited { id, exit: exit() }).await;
    assert_eq!(run.next().await, Ok(RunEvent::Exited(exit())));
}

#[tokio::test(start_paused = true)]
async fn a_file_is_written_no_faster_than_the_guest_takes_it() {
    let (control, mut guest) = connected().await;
    let content = vec![7; WINDOW as usize + 10];
    let (sent, whole) = (content.clone(), content.len());
    let writing = tokio::spawn(async move { control.write_file("/sandbox/x", 0o644, &sent).await });

    let Some(HostFrame::WriteFile { id, path, mode }) = guest.next().await else {
        panic!("expected WriteFile");
    };
    assert_eq!((path.as_str(), mode), ("/sandbox/x", 0o644));
    let mut received = Vec::new();
    while received.len() < WINDOW as usize {
        match guest.next().await {
            Some(HostFrame::Data { bytes, .. }) => received.extend(bytes),
            other => panic!("expected Data, got {other:?}"),
        }
    }
    assert_eq!(received.len(), WINDOW as usize);
    assert!(guest.hears_nothing().await, "the credit is spent");

    guest.send(GuestFrame::Credit { id, bytes: 10 }).await;
    while let Some(HostFrame::Data { bytes, .. }) = guest.next().await {
        received.extend(bytes);
        if received.len() == whole {
            break;
        }
    }
    assert_eq!(guest.next().await, Some(HostFrame::End { id }));
    assert_eq!(received, content);
    guest.send(GuestFrame::Done { id }).await;
    assert_eq!(writing.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_write_that_fails_early_does_not_wait_for_credit() {
    let (control, mut guest) = connected().await;
    let content = vec![7; 4 * WINDOW as usize];
    let (written, ()) = tokio::join!(control.write_file("/tmp/x", 0o600, &content), async {
        let Some(HostFrame::WriteFile { id, .. }) = guest.next().await else {
            panic!("expected WriteFile");
        };
        guest.send(failed(id, FailureKind::NoSpace)).await;
    });
    let kind = written.unwrap_err().failure_kind();
    assert_eq!(kind, Some(FailureKind::NoSpace));
}

#[tokio::test(start_paused = true)]
async fn credit_beyond_the_window_is_not_believed() {
    let (control, mut guest) = connected().await;
    let content = vec![7; 4 * WINDOW as usize];
    let _writing = tokio::spawn(async move { control.write_file("/tmp/x", 0o644, &content).await });
    let Some(HostFrame::WriteFile { id, .. }) = guest.next().await else {
        panic!("expected WriteFile");
    };
    let mut received = 0;
    while received < WINDOW as usize {
        if let Some(HostFrame::Data { bytes, .. }) = guest.next().await {
            received += bytes.len();
        }
    }
    let bytes = u32::MAX;
    guest.send(GuestFrame::Credit { id, bytes }).await;
    while received < 2 * WINDOW as usize {
        if let Some(HostFrame::Data { bytes, .. }) = guest.next().await {
            received += bytes.len();
        }
    }
    assert!(guest.hears_nothing().await, "one window at a time");
}

#[tokio::test]
async fn a_file_larger_than_the_limit_is_not_read() {
    let (control, mut guest) = connected().await;
    let (read, frame) = tokio::join!(control.read_file("/tmp/x", 5), async {
        let Some(HostFrame::ReadFile { id, .. }) = guest.next().await else {
            panic!("expected ReadFile");
        };
        let bytes = vec![0; 6];
        guest.send(GuestFrame::Data { id, bytes }).await;
        let signal = Signal::Kill;
        (guest.next().await, HostFrame::Signal { id, signal })
    });
    let text = "/tmp/x is larger than 5 bytes".to_owned();
    assert_eq!(read, Err(ControlError::TooLarge(text)));
    assert_eq!(frame.0, Some(frame.1), "the guest is told to stop");
}

#[tokio::test]
async fn a_file_is_read_in_its_pieces() {
    let (control, mut guest) = connected().await;
    let (read, ()) = tokio::join!(control.read_file("/tmp/x", 5), async {
        let Some(HostFrame::ReadFile { id, .. }) = guest.next().await else {
            panic!("expected ReadFile");
        };
        for bytes in [b"abc".to_vec(), b"de".to_vec()] {
            guest.send(GuestFrame::Data { id, bytes }).await;
        }
        guest.send(GuestFrame::Done { id }).await;
    });
    assert_eq!(read.unwrap(), b"abcde");
}

#[tokio::test]
async fn a_spec_beyond_one_frame_is_refused_and_the_connection_stays() {
    let (control, mut guest) = connected().await;
    let mut large = spec();
    large.stdin = Stdin::Bytes(vec![0; MAX_HOST_FRAME]);
    let refused = control.run(large);
    assert!(matches!(refused, Err(ControlError::TooLarge(_))));
    let _run = control.run(spec()).unwrap();
    guest.exec().await;
}

#[tokio::test]
async fn an_oversized_frame_closes_the_connection() {
    let (control, mut guest) = connected().await;
    let size = u32::try_from(MAX_GUEST_FRAME + 1).unwrap();
    guest.stream.write_all(&size.to_be_bytes()).await.unwrap();
    let reason = control.closed().await;
    assert!(reason.contains("exceeds the limit"), "{reason}");
    assert!(control.is_closed());
}

#[tokio::test]
async fn a_malformed_frame_ends_everything_that_waits_with_its_reason() {
    let (control, mut guest) = connected().await;
    let mut run = control.run(spec()).unwrap();
    let large = vec![0; 2 * WINDOW as usize];
    let break_it = async {
        for _ in 0..3 {
            guest.next().await.unwrap();
        }
        guest.stream.write_all(&[0, 0, 0, 1, 255]).await.unwrap();
    };
    let (event, written, read, reset, ()) = tokio::join!(
        run.next(),
        control.write_file("/tmp/x", 0o644, &large),
        control.read_file("/tmp/y", 1),
        control.reset(),
        break_it,
    );
    is_closed_with(event, "malformed frame");
    is_closed_with(written, "malformed frame");
    is_closed_with(read, "malformed frame");
    is_closed_with(reset, "malformed frame");
    is_closed_with(run.write_stdin(b"x").await, "malformed frame");
    is_closed_with(control.run(spec()), "malformed frame");
}

#[tokio::test]
async fn a_guest_that_goes_away_is_noticed_at_once() {
    let (control, guest) = connected().await;
    drop(guest);
    let reason = control.closed().await;
    assert!(reason.contains("closed by the guest"), "{reason}");
}

#[tokio::test]
async fn a_guest_that_no_longer_reads_is_as_good_as_gone() {
    let (reader, writing_end) = tokio::io::duplex(1024);
    let (writer, far_end) = tokio::io::duplex(1024);
    let mut guest = Guest::new(writing_end);
    guest
        .send(GuestFrame::Hello {
            version: VERSION,
            interrupted: false,
        })
        .await;
    let control = Control::open(tokio::io::join(reader, writer))
        .await
        .unwrap();
    drop(far_end);
    control.prepare_in_background(Runtime::Python, PrewarmSettings::default());
    let reason = control.closed().await;
    assert!(reason.contains("no longer read"), "{reason}");
}

#[tokio::test]
async fn greeting_twice_closes_the_connection() {
    let (control, mut guest) = connected().await;
    guest
        .send(GuestFrame::Hello {
            version: VERSION,
            interrupted: false,
        })
        .await;
    assert_eq!(control.closed().await, "guest greeted twice");
}

#[tokio::test(start_paused = true)]
async fn an_interpreter_is_there_again_some_time_after_a_reset() {
    let (control, mut guest) = connected().await;
    assert!(control.is_prepared(), "there is none to wait for");
    control.prepare_in_background(Runtime::Node, PrewarmSettings::default());
    for _ in 0..2 {
        let Some(HostFrame::Prepare { id, .. }) = guest.next().await else {
            panic!("no interpreter was asked for")
        };
        assert!(!control.is_prepared());
        guest.send(GuestFrame::Done { id }).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(control.is_prepared());
        let resetting = control.clone();
        let reset = tokio::spawn(async move { resetting.reset().await });
        let Some(HostFrame::Reset { id }) = guest.next().await else {
            panic!("no reset was asked for")
        };
        guest.send(GuestFrame::Done { id }).await;
        reset.await.unwrap().unwrap();
        assert!(!control.is_prepared());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_without_an_answer_ends_in_time() {
    let (control, _guest) = connected().await;
    assert_eq!(
        control.reset().await,
        Err(ControlError::TimedOut(RESET_TIMEOUT))
    );
}
