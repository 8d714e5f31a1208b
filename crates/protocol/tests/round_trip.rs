//! Property tests: every frame survives encoding, splitting at any place, and decoding.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

use isol8_protocol::{
    Decoder, Exit, ExitStatus, Failure, FailureKind, GuestFrame, HostFrame, OutputStream,
    PrewarmSettings, Program, RunSpec, Runtime, Signal, Stdin, StreamId, TerminalSize, TunnelFrame,
    TunnelId, encode,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample;

fn id() -> impl Strategy<Value = StreamId> {
    any::<u32>().prop_map(StreamId)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..300)
}

fn runtime() -> impl Strategy<Value = Runtime> {
    sample::select(&Runtime::ALL[..])
}

fn settings() -> impl Strategy<Value = PrewarmSettings> {
    (vec(any::<String>(), 0..3), any::<u32>(), any::<u64>()).prop_map(
        |(preload, max_runs, max_age_ms)| PrewarmSettings {
            preload,
            max_runs,
            max_age_ms,
        },
    )
}

fn program() -> impl Strategy<Value = Program> {
    prop_oneof![
        vec(any::<String>(), 1..4).prop_map(|argv| Program::Command { argv }),
        (runtime(), any::<String>(), bytes()).prop_map(|(runtime, path, source)| Program::Script {
            runtime,
            path,
            source
        }),
        (runtime(), bytes()).prop_map(|(runtime, source)| Program::Cell { runtime, source }),
    ]
}

fn size() -> impl Strategy<Value = TerminalSize> {
    any::<(u16, u16)>().prop_map(|(columns, rows)| TerminalSize { columns, rows })
}

fn run_spec() -> impl Strategy<Value = RunSpec> {
    let stdin = prop_oneof![
        Just(Stdin::Empty),
        Just(Stdin::Piped),
        bytes().prop_map(Stdin::Bytes)
    ];
    (
        program(),
        vec(any::<(String, String)>(), 0..3),
        option::of(any::<String>()),
        stdin,
        any::<Option<u64>>(),
        any::<Option<u64>>(),
        any::<(bool, bool, bool)>(),
        option::of(size()),
    )
        .prop_map(
            |(
                program,
                env,
                cwd,
                stdin,
                timeout_ms,
                output_limit,
                (eager, sweep, network),
                terminal,
            )| {
                RunSpec {
                    program,
                    env,
                    cwd,
                    stdin,
                    timeout_ms,
                    output_limit,
                    eager,
                    sweep,
                    terminal,
                    network,
                }
            },
        )
}

fn tunnel() -> impl Strategy<Value = (TunnelId, TunnelFrame)> {
    let frame = prop_oneof![
        id().prop_map(|run| TunnelFrame::Open { run }),
        bytes().prop_map(|bytes| TunnelFrame::Data { bytes }),
        Just(TunnelFrame::End),
        any::<u32>().prop_map(|bytes| TunnelFrame::Credit { bytes }),
        Just(TunnelFrame::Close),
    ];
    (any::<u64>().prop_map(TunnelId), frame)
}

fn host_frame() -> impl Strategy<Value = HostFrame> {
    let signal = prop_oneof![
        Just(Signal::Interrupt),
        Just(Signal::Terminate),
        Just(Signal::Kill)
    ];
    prop_oneof![
        any::<u16>().prop_map(|version| HostFrame::Hello { version }),
        (id(), runtime(), settings()).prop_map(|(id, runtime, settings)| HostFrame::Prepare {
            id,
            runtime,
            settings
        }),
        (id(), run_spec()).prop_map(|(id, spec)| HostFrame::Exec { id, spec }),
        (id(), bytes()).prop_map(|(id, bytes)| HostFrame::Data { id, bytes }),
        id().prop_map(|id| HostFrame::End { id }),
        (id(), signal).prop_map(|(id, signal)| HostFrame::Signal { id, signal }),
        (id(), any::<u32>()).prop_map(|(id, bytes)| HostFrame::Credit { id, bytes }),
        (id(), any::<String>(), any::<u32>()).prop_map(|(id, path, mode)| HostFrame::WriteFile {
            id,
            path,
            mode
        }),
        (id(), any::<String>()).prop_map(|(id, path)| HostFrame::ReadFile { id, path }),
        id().prop_map(|id| HostFrame::Reset { id }),
        (id(), any::<String>(), any::<u32>())
            .prop_map(|(id, path, limit)| HostFrame::ListDirectory { id, path, limit }),
        (id(), size()).prop_map(|(id, size)| HostFrame::Resize { id, size }),
        tunnel().prop_map(|(id, frame)| HostFrame::Tunnel { id, frame }),
    ]
}

fn exit() -> impl Strategy<Value = Exit> {
    let status = prop_oneof![
        any::<i32>().prop_map(ExitStatus::Code),
        any::<i32>().prop_map(ExitStatus::Signal)
    ];
    let rest = any::<(bool, bool, [u64; 4], Option<u64>, Vec<String>)>();
    (status, rest).prop_map(
        |(status, (timed_out, state_lost, counts, cpu_us, asked_names))| Exit {
            status,
            timed_out,
            state_lost,
            stdout_bytes: counts[0],
            stderr_bytes: counts[1],
            wall_us: counts[2],
            cpu_us,
            late_variables: counts[3],
            asked_names,
        },
    )
}

fn guest_frame() -> impl Strategy<Value = GuestFrame> {
    let stream = prop_oneof![Just(OutputStream::Stdout), Just(OutputStream::Stderr)];
    let kind = prop_oneof![
        Just(FailureKind::NotFound),
        Just(FailureKind::Refused),
        Just(FailureKind::NoSpace),
        Just(FailureKind::Exhausted),
        Just(FailureKind::Internal)
    ];
    let failure = (kind, any::<String>()).prop_map(|(kind, message)| Failure { kind, message });
    prop_oneof![
        (any::<u16>(), any::<bool>()).prop_map(|(version, interrupted)| GuestFrame::Hello {
            version,
            interrupted
        }),
        (id(), stream, bytes()).prop_map(|(id, stream, bytes)| GuestFrame::Output {
            id,
            stream,
            bytes
        }),
        (id(), exit()).prop_map(|(id, exit)| GuestFrame::Exited { id, exit }),
        (id(), bytes()).prop_map(|(id, bytes)| GuestFrame::Data { id, bytes }),
        id().prop_map(|id| GuestFrame::Done { id }),
        (id(), failure).prop_map(|(id, failure)| GuestFrame::Failed { id, failure }),
        (id(), any::<u32>()).prop_map(|(id, bytes)| GuestFrame::Credit { id, bytes }),
        tunnel().prop_map(|(id, frame)| GuestFrame::Tunnel { id, frame }),
    ]
}

/// Encodes `frames` into one sequence of bytes and decodes it in pieces of `piece` bytes.
fn round_trip<F>(frames: &[F], piece: usize) -> Vec<F>
where
    F: serde::Serialize + serde::de::DeserializeOwned,
{
    const LIMIT: usize = 1 << 20;
    let mut wire = Vec::new();
    for frame in frames {
        encode(frame, LIMIT, &mut wire).unwrap();
    }
    let mut decoder = Decoder::new(LIMIT);
    let mut decoded = Vec::new();
    for piece in wire.chunks(piece) {
        decoder.feed(piece);
        while let Some(frame) = decoder.next().unwrap() {
            decoded.push(frame);
        }
    }
    decoded
}

proptest! {
    #[test]
    fn host_frames_survive(frames in vec(host_frame(), 1..5), piece in 1..200_usize) {
        prop_assert_eq!(round_trip(&frames, piece), frames);
    }

    #[test]
    fn guest_frames_survive(frames in vec(guest_frame(), 1..5), piece in 1..200_usize) {
        prop_assert_eq!(round_trip(&frames, piece), frames);
    }

    #[test]
    fn arbitrary_bytes_never_panic_the_decoder(wire in vec(any::<u8>(), 0..2000)) {
        let mut decoder = Decoder::new(4096);
        decoder.feed(&wire);
        while let Ok(Some(_)) = decoder.next::<GuestFrame>() {}
    }
}
