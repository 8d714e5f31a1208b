//! How an interpreter is kept ready: the spare that waits for its first code, and the zygote that it
//! is forked from.
//!
//! Nothing here may be lost on a zygote: where one dies, hangs or cannot be had, kernels are booted
//! one by one, and where that fails too, scripts are started as programs.

use std::time::{Duration, Instant};

use isol8_protocol::{Failure, FailureKind, GuestFrame, KernelKind, PrewarmSettings, StreamId};
use nix::unistd::Pid;

use super::wait::{Source, Waits};
use super::{Guest, log};
use crate::failure::failure;
use crate::kernel::control_socket::Message;
use crate::kernel::interpreters::{Interpreter, may_load_user_code};
use crate::kernel::zygote::{Word, Zygote};
use crate::kernel::{Kernel, Variables};
use crate::run::Run;
use crate::run::output::drop_output;

/// How long an interpreter may take to boot. A large module that is imported ahead takes seconds on a
/// slow machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(30);

/// How long a zygote that is booted may take to fork.
const FORK_PATIENCE: Duration = Duration::from_secs(2);

/// How long no interpreter is booted in a new sandbox. A sandbox that was made for a request gets the request at once,
/// and an interpreter that boots beside the program only takes its processor.
const GRACE: Duration = Duration::from_millis(3);

/// Failures in a row after which zygotes, and then kernels, are given up until the next reset.
const MAX_FAILURES: u32 = 3;

/// The interpreter that is available to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// A kernel that waits.
    Ready,
    /// An interpreter that will soon be ready.
    Booting,
    /// None.
    Nothing,
}

/// Whether the first interpreter is held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum BootDelay {
    #[default]
    No,
    /// A program may come.
    Until(Instant),
    /// A run has come.
    WhileBusy,
}

/// The interpreters that the host asked to be kept ready.
#[derive(Debug)]
struct Wanted {
    kind: KernelKind,
    settings: PrewarmSettings,
}

/// The kept interpreters.
#[derive(Debug, Default)]
pub(super) struct Prewarmer {
    wanted: Option<Wanted>,
    /// Runs that wait for the first spare interpreter.
    asked: Vec<StreamId>,
    spare: Option<Kernel>,
    /// When the spare, or the zygote that it comes from, is given up.
    patience: Option<Instant>,
    /// A spare of this kind should be made.
    due: Option<KernelKind>,
    /// Variables of a session's first cell that the spare is to start with.
    due_with: Variables,
    hold: BootDelay,
    zygote: Option<Zygote>,
    /// The zygote that takes this one's place once it is booted.
    successor: Option<Zygote>,
    /// Failures in a row, of zygotes and of kernels.
    zygote_failures: u32,
    failures: u32,
    last_failure: Option<Failure>,
}

impl Prewarmer {
    /// Returns the interpreter that is available to a script of this kind.
    pub(super) fn offer(&self, kind: Option<KernelKind>) -> Offer {
        let Some(kind) = kind else {
            return Offer::Nothing;
        };
        match &self.spare {
            Some(spare) if spare.kind != kind || !spare.started_with.is_empty() => Offer::Nothing,
            _ => self.offer_any(kind),
        }
    }

    fn offer_any(&self, kind: KernelKind) -> Offer {
        match &self.spare {
            Some(spare) if spare.is_ready => Offer::Ready,
            Some(_) => Offer::Booting,
            None if self.due == Some(kind) && self.hold == BootDelay::No => Offer::Booting,
            None => Offer::Nothing,
        }
    }

    /// Returns the interpreter that is available to a session's first cell. An interpreter is made if none was started
    /// with these variables and the present files of configuration. An error says why none can be made.
    pub(super) fn offer_resident(
        &mut self,
        kind: KernelKind,
        variables: &Variables,
    ) -> Result<Offer, Failure> {
        let fits = |spare: &Kernel| {
            spare.kind == kind && spare.started_with == *variables && !spare.lacks_configuration()
        };
        if self.spare.as_ref().is_some_and(|spare| !fits(spare)) {
            self.drop_spare();
        }
        if self.spare.is_none() && self.due_with != *variables {
            self.due_with.clone_from(variables);
            self.due = None;
        }
        match self.offer_any(kind) {
            Offer::Nothing => match self.last_failure.take() {
                Some(failure) => Err(failure),
                None => {
                    self.due = Some(kind);
                    self.hold = BootDelay::No;
                    Ok(Offer::Booting)
                }
            },
            offer => Ok(offer),
        }
    }

    pub(super) fn take(&mut self) -> Option<Kernel> {
        self.due_with.clear();
        self.spare.take_if(|spare| spare.is_ready)
    }

    /// Asks for a spare where the host wants one to be kept.
    pub(super) fn renew(&mut self) {
        self.hold = BootDelay::No;
        self.due_with.clear();
        self.due = self.wanted.as_ref().map(|wanted| wanted.kind);
    }

    /// Notes that a script starts without an interpreter that waits. If it is the only script to come, none is needed
    /// any more.
    pub(super) fn skip_boot(&mut self) {
        let is_only = |wanted: &Wanted| wanted.settings.max_runs == 1;
        if self.hold != BootDelay::No && self.wanted.as_ref().is_some_and(is_only) {
            self.hold = BootDelay::No;
            self.due = None;
        }
    }

    /// As after a reset: what failed before is tried again.
    pub(super) fn start_over(&mut self) {
        self.failures = 0;
        self.zygote_failures = 0;
        self.last_failure = None;
        self.renew();
    }

    /// The spare is gone with everything else that ran as user code does.
    pub(super) fn forget_spare(&mut self) -> bool {
        self.patience = None;
        self.spare.take().is_some()
    }

    fn drop_spare(&mut self) {
        if let Some(spare) = self.spare.take() {
            spare.end();
        }
        self.patience = None;
    }

    pub(super) fn spare_pid(&self) -> Option<Pid> {
        self.spare.as_ref().and_then(Kernel::pid)
    }

    pub(super) fn has_zygote(&self) -> bool {
        self.zygote_pids().next().is_some()
    }

    pub(super) fn zygote_pids(&self) -> impl Iterator<Item = Pid> {
        let zygotes = [&self.zygote, &self.successor].into_iter().flatten();
        zygotes.map(Zygote::pid)
    }

    pub(super) fn alarm(&self) -> Option<Instant> {
        match self.hold {
            BootDelay::Until(end) => Some(end),
            BootDelay::No | BootDelay::WhileBusy => self.patience,
        }
    }

    pub(super) fn add_waits(&self, waits: &mut Waits) {
        if let Some(spare) = self.spare.as_ref().filter(|spare| !spare.is_ready) {
            waits.readable(Source::Spare, &spare.line());
        }
        if let Some(zygote) = &self.zygote {
            waits.readable(Source::Zygote, &zygote.control());
        }
        if let Some(zygote) = &self.successor {
            waits.readable(Source::Successor, &zygote.control());
        }
    }

    fn settings(&self) -> PrewarmSettings {
        let wanted = self.wanted.as_ref();
        wanted.map_or_else(PrewarmSettings::default, |wanted| wanted.settings.clone())
    }

    /// Whether forking saves more than the interpreter costs that is forked.
    fn is_worth_forking(&self) -> bool {
        let wanted = self.wanted.as_ref();
        wanted.is_none_or(|wanted| {
            wanted.settings.max_runs > 1 || !wanted.settings.preload.is_empty()
        })
    }

    fn wait_for(&mut self, patience: Duration) {
        self.patience = Instant::now().checked_add(patience);
    }
}

impl Guest {
    pub(super) fn prepare(&mut self, id: StreamId, kind: KernelKind, settings: PrewarmSettings) {
        if !Interpreter::of(kind).is_worth_keeping() {
            return self.tell(&GuestFrame::Done { id });
        }
        self.prewarmer.wanted = Some(Wanted { kind, settings });
        if self.prewarmer.offer(Some(kind)) == Offer::Ready {
            return self.tell(&GuestFrame::Done { id });
        }
        self.prewarmer.asked.push(id);
        if self.resident.is_none() {
            self.prewarmer.due = Some(kind);
            if self.prewarmer.spare.is_none() && self.prewarmer.zygote.is_none() {
                self.prewarmer.hold = BootDelay::Until(Instant::now() + GRACE);
                if self.runs.iter().any(Run::is_active) {
                    // The run came before this frame.
                    self.prewarmer.skip_boot();
                }
            }
        }
    }

    /// Whether what is due is not to be booted yet.
    fn is_held_back(&mut self) -> bool {
        if self.sweep_at.is_some() {
            return true;
        }
        let hold = match self.prewarmer.hold {
            BootDelay::WhileBusy if !self.runs.iter().any(Run::is_active) => BootDelay::No,
            hold => hold,
        };
        self.prewarmer.hold = hold;
        hold != BootDelay::No
    }

    /// Makes the spare that is due, where that needs no waiting. Returns whether that, as far as it
    /// went, did not fail.
    pub(super) fn boot_spare(&mut self) -> bool {
        let Some(kind) = self.prewarmer.due else {
            return true;
        };
        if self.prewarmer.spare.is_some() {
            self.prewarmer.due = None;
            return true;
        }
        if self.is_held_back() {
            return true;
        }
        let forks = kind == KernelKind::Python
            && self.prewarmer.due_with.is_empty()
            && self.prewarmer.is_worth_forking()
            && !self.launcher.privileges.shared_uid()
            && !may_load_user_code(&self.launcher.base)
            && self.prewarmer.zygote_failures < MAX_FAILURES;
        let made = if forks {
            match self.fork_spare() {
                Ok(None) => return true,
                Ok(Some(kernel)) => Ok(kernel),
                Err(failure) => {
                    self.zygote_failed(failure);
                    return false;
                }
            }
        } else {
            Kernel::boot(
                &self.launcher,
                &self.drivers,
                kind,
                &self.prewarmer.due_with,
            )
        };
        self.prewarmer.due = None;
        match made {
            Ok(kernel) => {
                let patience = if forks { FORK_PATIENCE } else { BOOT_PATIENCE };
                self.prewarmer.wait_for(patience);
                self.prewarmer.spare = Some(kernel);
                true
            }
            Err(failure) => {
                self.spare_failed(kind, failure);
                false
            }
        }
    }

    /// A kernel forked from the zygote; `None` where that is still booting.
    fn fork_spare(&mut self) -> Result<Option<Kernel>, Failure> {
        let settings = self.prewarmer.settings();
        let Some(zygote) = &mut self.prewarmer.zygote else {
            let zygote = Zygote::boot(&self.launcher, &self.drivers, &settings)?;
            self.prewarmer.zygote = Some(zygote);
            self.prewarmer.wait_for(BOOT_PATIENCE);
            return Ok(None);
        };
        if !zygote.is_ready {
            return Ok(None);
        }
        let kernel = zygote.fork(&self.launcher)?;
        if zygote.is_worn(&settings) && self.prewarmer.successor.is_none() {
            // The new zygote boots while this one goes on, so that no run waits for it.
            let booted = Zygote::boot(&self.launcher, &self.drivers, &settings);
            self.prewarmer.successor = booted.inspect_err(|failure| log(&failure.message)).ok();
        }
        Ok(Some(kernel))
    }

    /// The spare says that it is ready, or lets go.
    pub(super) fn attend_spare(&mut self) {
        let Some(spare) = &mut self.prewarmer.spare else {
            return;
        };
        let kind = spare.kind;
        match spare.next() {
            Ok(Some(Message::Ready(_))) => {
                self.prewarmer.patience = None;
                self.prewarmer.failures = 0;
                self.prewarmer.zygote_failures = 0;
                self.prewarmer.last_failure = None;
                for id in std::mem::take(&mut self.prewarmer.asked) {
                    self.tell(&GuestFrame::Done { id });
                }
            }
            Ok(_) => {}
            Err(_) if spare.pid().is_none() => {
                let text = "zygote cannot fork: the sandbox may be at its limit of processes";
                self.prewarmer.drop_spare();
                self.zygote_failed(failure(FailureKind::Exhausted, text));
                self.prewarmer.due.get_or_insert(kind);
            }
            // Its end, which follows, says why.
            Err(_) => spare.end(),
        }
    }

    pub(super) fn attend_zygote(&mut self, successor: bool) {
        let place = if successor {
            &mut self.prewarmer.successor
        } else {
            &mut self.prewarmer.zygote
        };
        let Some(zygote) = place else { return };
        for pipe in &zygote.output {
            drop_output(std::os::fd::AsFd::as_fd(pipe), &mut self.buffer[..]);
        }
        match zygote.next() {
            Ok(None) => {}
            Ok(Some(Word::Ready)) if successor => {
                self.prewarmer.zygote = self.prewarmer.successor.take()
            }
            Ok(Some(Word::Ready)) => self.prewarmer.patience = None,
            Ok(Some(Word::Refused(reason))) => {
                *place = None;
                if !successor {
                    self.refuse_zygote(reason);
                }
            }
            Err(_) => {
                *place = None;
                if !successor {
                    let text = "zygote died";
                    self.zygote_failed(failure(FailureKind::Internal, text));
                }
            }
        }
    }

    /// A module cannot be imported ahead: who asked for it is told, and runs import it themselves.
    fn refuse_zygote(&mut self, reason: String) {
        log(&format!("zygote refused: {reason}"));
        if let Some(wanted) = &mut self.prewarmer.wanted {
            wanted.settings.preload.clear();
        }
        self.prewarmer.patience = None;
        for id in std::mem::take(&mut self.prewarmer.asked) {
            self.tell_failed(id, failure(FailureKind::Refused, reason.clone()));
        }
    }

    pub(super) fn zygote_failed(&mut self, failure: Failure) {
        log(&failure.message);
        self.prewarmer.zygote = None;
        self.prewarmer.patience = None;
        self.prewarmer.zygote_failures += 1;
    }

    /// A spare did not come to be, or died before it was ready.
    fn spare_failed(&mut self, kind: KernelKind, failure: Failure) {
        log(&failure.message);
        self.prewarmer.patience = None;
        if !self.prewarmer.due_with.is_empty() {
            return self.refuse_variables();
        }
        self.prewarmer.failures += 1;
        if self.prewarmer.failures < MAX_FAILURES && failure.kind == FailureKind::Internal {
            self.prewarmer.due = Some(kind);
            return;
        }
        for id in std::mem::take(&mut self.prewarmer.asked) {
            self.tell_failed(id, failure.clone());
        }
        self.prewarmer.failures = 0;
        self.prewarmer.due = None;
        // If no run waits, the next one tries again.
        let waits = self.runs.iter().any(Run::is_waiting_cell);
        self.prewarmer.last_failure = waits.then_some(failure);
    }

    /// Refuses a cell whose variables kept its interpreter from starting. The fault is the cell's: nothing is tried
    /// again, and the sandbox stays.
    fn refuse_variables(&mut self) {
        let names: Vec<&str> = self
            .prewarmer
            .due_with
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let text = format!(
            "request.env: the session's interpreter does not start with {}, leave out or correct what it does not take",
            names.join(", ")
        );
        self.prewarmer.due = None;
        let waits = self.runs.iter().any(Run::is_waiting_cell);
        self.prewarmer.last_failure = waits.then(|| failure(FailureKind::Refused, text));
    }

    /// The spare's process has ended.
    pub(super) fn note_spare_died(&mut self) {
        let Some(spare) = self.prewarmer.spare.take() else {
            return;
        };
        self.prewarmer.patience = None;
        if spare.is_ready {
            // Runs that need an interpreter start one themselves.
            return;
        }
        let kind = spare.kind;
        let why = spare.start_failure().unwrap_or_else(|| {
            let text = "interpreter ended while it booted";
            failure(FailureKind::Internal, text)
        });
        self.spare_failed(kind, why);
    }

    /// A zygote has ended. Its socket says so too, but not why.
    pub(super) fn note_zygote_died(&mut self, pid: Pid) {
        if self
            .prewarmer
            .successor
            .take_if(|it| it.pid() == pid)
            .is_some()
        {
            return;
        }
        let Some(zygote) = self.prewarmer.zygote.as_mut() else {
            return;
        };
        // Messages that it sent before its end still count.
        if let Ok(Some(Word::Refused(reason))) = zygote.next() {
            self.prewarmer.zygote = None;
            return self.refuse_zygote(reason);
        }
        let why = zygote.start_failure().unwrap_or_else(|| {
            let text = "zygote died";
            failure(FailureKind::Internal, text)
        });
        self.zygote_failed(why);
    }

    /// Gives up what did not come in time.
    pub(super) fn ring_boot_alarm(&mut self, now: Instant) {
        if matches!(self.prewarmer.hold, BootDelay::Until(end) if end <= now) {
            self.prewarmer.hold = BootDelay::WhileBusy;
        }
        if self
            .prewarmer
            .patience
            .is_none_or(|patience| patience > now)
        {
            return;
        }
        self.prewarmer.patience = None;
        // User code can bring this about, by a pipe in the place of a file that the interpreter
        // reads while it boots. So it is no reason to end the sandbox, or to wait once more.
        let text =
            "interpreter did not boot in time: the machine, or a file in /sandbox, holds it up";
        let late = failure(FailureKind::Exhausted, text);
        match self.prewarmer.spare.take() {
            Some(spare) if spare.pid().is_some() => {
                spare.end();
                self.spare_failed(spare.kind, late);
            }
            Some(spare) => {
                self.zygote_failed(late);
                self.prewarmer.due.get_or_insert(spare.kind);
            }
            None => self.zygote_failed(late),
        }
    }
}
