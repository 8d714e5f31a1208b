//! Tests of tunnels, with a guest whose frames are written by each test.

use isol8_protocol::{MAX_TUNNELS, TunnelFrame, TunnelId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const ID: TunnelId = TunnelId(1);

impl Guest {
    async fn tunnel(&mut self, id: TunnelId, frame: TunnelFrame) {
        self.send(GuestFrame::Tunnel { id, frame }).await;
    }

    async fn data(&mut self, bytes: &[u8]) {
        let bytes = bytes.to_vec();
        self.tunnel(ID, TunnelFrame::Data { bytes }).await;
    }

    /// Returns the next frame, which must belong to the first tunnel.
    async fn hears(&mut self) -> TunnelFrame {
        match self.next().await {
            Some(HostFrame::Tunnel { id: ID, frame }) => frame,
            other => panic!("expected a frame of the tunnel, got {other:?}"),
        }
    }
}

/// A run with network, and the tunnels that its programs open.
struct Networked {
    control: Control,
    guest: Guest,
    run: RunHandle,
    tunnels: Tunnels,
    id: StreamId,
}

impl Networked {
    async fn new() -> Self {
        let (control, mut guest) = connected().await;
        let network = true;
        let spec = RunSpec { network, ..spec() };
        let mut run = control.run(spec).unwrap();
        let id = guest.exec().await;
        Self {
            tunnels: run.tunnels().unwrap(),
            control,
            guest,
            run,
            id,
        }
    }

    async fn open(&mut self, id: TunnelId) {
        let run = self.id;
        self.guest.tunnel(id, TunnelFrame::Open { run }).await;
    }

    async fn opened() -> (Self, Tunnel) {
        let mut networked = Self::new().await;
        networked.open(ID).await;
        let tunnel = networked.tunnels.next().await.unwrap();
        (networked, tunnel)
    }
}

#[tokio::test]
async fn bytes_go_through_in_both_directions_and_each_ends_by_itself() {
    let (mut run, mut tunnel) = Networked::opened().await;
    run.guest.data(b"ques").await;
    run.guest.data(b"tion").await;
    run.guest.tunnel(ID, TunnelFrame::End).await;
    let mut question = String::new();
    tunnel.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");

    tunnel.write_all(b"answer").await.unwrap();
    let bytes = b"answer".to_vec();
    assert_eq!(run.guest.hears().await, TunnelFrame::Data { bytes });
    tunnel.shutdown().await.unwrap();
    assert_eq!(run.guest.hears().await, TunnelFrame::End);
    drop(tunnel);
    assert_eq!(run.guest.hears().await, TunnelFrame::Close);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_sent_than_the_guest_takes() {
    let (mut run, mut tunnel) = Networked::opened().await;
    let content: Vec<u8> = (0..=250).cycle().take(3 * WINDOW as usize).collect();
    let sent = content.clone();
    let writing = tokio::spawn(async move { tunnel.write_all(&sent).await });
    let mut received = Vec::new();
    while received.len() < WINDOW as usize {
        let TunnelFrame::Data { bytes } = run.guest.hears().await else {
            panic!("expected data")
        };
        received.extend(bytes);
    }
    assert!(run.guest.hears_nothing().await, "the credit is spent");
    // Credit beyond one window is ignored.
    let bytes = u32::MAX;
    run.guest.tunnel(ID, TunnelFrame::Credit { bytes }).await;
    while received.len() < 2 * WINDOW as usize {
        let TunnelFrame::Data { bytes } = run.guest.hears().await else {
            panic!("expected data")
        };
        received.extend(bytes);
    }
    assert!(run.guest.hears_nothing().await);
    assert!(content.starts_with(&received));
    assert!(!writing.is_finished());
}

#[tokio::test(start_paused = true)]
async fn data_that_the_guest_does_not_read_does_not_accumulate() {
    let (run, mut tunnel) = Networked::opened().await;
    let mut granting = Guest::new(run.guest.stream);
    let writing = tokio::spawn(async move {
        let mut written = 0;
        loop {
            let bytes = tunnel.write(&[7; CHUNK_SIZE]);
            match tokio::time::timeout(Duration::from_secs(3600), bytes).await {
                Ok(size) => written += size.unwrap(),
                Err(_) => return written,
            }
        }
    });
    // The guest grants credit again and again, and reads nothing.
    for _ in 0..1000 {
        let bytes = WINDOW;
        granting.tunnel(ID, TunnelFrame::Credit { bytes }).await;
        tokio::task::yield_now().await;
    }
    // The test's connection itself holds a megabyte.
    let written = writing.await.unwrap();
    assert!(written <= 3 << 20, "{written} bytes");
    run.run.signal(Signal::Kill).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_guest_is_granted_only_bytes_that_were_read() {
    let (mut run, mut tunnel) = Networked::opened().await;
    for _ in 0..WINDOW as usize / CHUNK_SIZE {
        run.guest.data(&[7; CHUNK_SIZE]).await;
    }
    assert!(run.guest.hears_nothing().await);
    let mut piece = vec![0; CHUNK_SIZE];
    tunnel.read_exact(&mut piece).await.unwrap();
    let bytes = u32::try_from(CHUNK_SIZE).unwrap();
    assert_eq!(run.guest.hears().await, TunnelFrame::Credit { bytes });
    run.guest.data(&piece).await;
    run.guest.data(b"x").await;
    let reason = run.control.closed().await;
    assert_eq!(reason, "guest sent more than its credit");
}

#[tokio::test]
async fn a_connection_that_the_program_resets_fails_after_what_it_sent() {
    let (mut run, mut tunnel) = Networked::opened().await;
    run.guest.data(b"begin").await;
    run.guest.tunnel(ID, TunnelFrame::Close).await;
    let mut read = Vec::new();
    let error = tunnel.read_to_end(&mut read).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(read, b"begin");
    let error = tunnel.write_all(b"x").await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn tunnels_fail_with_their_connection() {
    let (run, mut tunnel) = Networked::opened().await;
    let reading = tokio::spawn(async move { tunnel.read_u8().await });
    drop(run.guest);
    assert!(reading.await.unwrap().is_err());

    let (run, mut tunnel) = Networked::opened().await;
    let Networked { control, run, .. } = run;
    drop((control, run));
    assert!(tunnel.read_u8().await.is_err());
    assert!(tunnel.write_u8(1).await.is_err());
}

#[tokio::test]
async fn a_run_that_ended_has_no_further_connections() {
    let (mut run, tunnel) = Networked::opened().await;
    let id = run.id;
    run.guest
        .send(GuestFrame::Exited { id, exit: exit() })
        .await;
    assert_eq!(run.run.next().await, Ok(RunEvent::Exited(exit())));
    assert!(run.tunnels.next().await.is_none());
    drop(tunnel);
    assert_eq!(run.guest.hears().await, TunnelFrame::Close);
    // A tunnel that was opened in the meantime belongs to no run, and is closed.
    let id = TunnelId(2);
    run.open(id).await;
    let frame = TunnelFrame::Close;
    assert_eq!(
        run.guest.next().await,
        Some(HostFrame::Tunnel { id, frame })
    );
    assert!(!run.control.is_closed());
}

#[tokio::test]
async fn a_slot_is_free_again_once_the_guest_was_told() {
    let mut run = Networked::new().await;
    let mut open = Vec::new();
    for number in 1..=MAX_TUNNELS as u64 {
        run.open(TunnelId(number)).await;
        open.push(run.tunnels.next().await.unwrap());
    }
    drop(open.pop());
    let frame = TunnelFrame::Close;
    let id = TunnelId(MAX_TUNNELS as u64);
    assert_eq!(
        run.guest.next().await,
        Some(HostFrame::Tunnel { id, frame })
    );
    run.open(TunnelId(1000)).await;
    open.push(run.tunnels.next().await.unwrap());
    run.open(TunnelId(1001)).await;
    let reason = run.control.closed().await;
    assert!(reason.contains("more than 128 tunnels"), "{reason}");
}

#[tokio::test]
async fn a_guest_that_breaks_the_rules_of_tunnels_loses_the_connection() {
    let bytes = || TunnelFrame::Data { bytes: vec![1] };
    let close = TunnelFrame::Close;
    for (frames, text) in [
        (vec![(TunnelId(9), bytes())], "had not opened"),
        (vec![(ID, TunnelFrame::Open { run: StreamId(1) })], "twice"),
        (vec![(ID, close), (ID, bytes())], "had closed"),
        (vec![(ID, TunnelFrame::End), (ID, bytes())], "after the end"),
        (
            vec![(ID, TunnelFrame::Data { bytes: vec![] })],
            "empty data",
        ),
    ] {
        let (mut run, _tunnel) = Networked::opened().await;
        for (id, frame) in frames {
            run.guest.tunnel(id, frame).await;
        }
        let reason = run.control.closed().await;
        assert!(reason.contains(text), "{reason}");
    }
    let (control, mut guest) = connected().await;
    let _run = control.run(spec()).unwrap();
    let run = guest.exec().await;
    guest.tunnel(ID, TunnelFrame::Open { run }).await;
    let reason = control.closed().await;
    assert!(reason.contains("without network"), "{reason}");
}
