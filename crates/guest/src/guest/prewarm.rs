//! Keeps an interpreter ready: the spare, which waits for its first code, and the zygote that it is forked from.
//!
//! No run may fail because of a zygote. If a zygote dies, hangs or cannot be made, spares are booted one by one; if
//! that fails too, scripts are started as programs.

use std::time::{Duration, Instant};

use isol8_protocol::{Failure, FailureKind, GuestFrame, PrewarmSettings, Runtime, StreamId};
use nix::unistd::Pid;

use super::wait::{PollSet, PollSource};
use super::{Guest, log};
use crate::failure::failure;
use crate::interpreter::control_socket::InterpreterMessage;
use crate::interpreter::interpreters::{InterpreterSpec, may_load_user_code};
use crate::interpreter::zygote::{Zygote, ZygoteMessage};
use crate::interpreter::{Interpreter, Variables};
use crate::run::GuestRun;
use crate::run::output::drop_output;

/// How long an interpreter may take to boot. A large module that is imported ahead takes seconds on a
/// slow machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a zygote that is booted may take to fork.
const FORK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the boot of the first interpreter is delayed in a new sandbox. A sandbox that was made for a request gets
/// the request at once, and an interpreter that boots beside the request's program only takes processor time from it.
const BOOT_DELAY: Duration = Duration::from_millis(3);

/// Consecutive failures after which zygotes, and then spares, are no longer made until the next reset.
const MAX_FAILURES: u32 = 3;

/// Whether an interpreter is available to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Availability {
    /// An interpreter waits.
    Ready,
    /// An interpreter will soon be ready.
    Booting,
    /// No interpreter is ready or boots.
    Nothing,
}

/// Whether the boot of the first interpreter is delayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum BootDelay {
    #[default]
    No,
    /// Delayed until this moment, because a program may come.
    Until(Instant),
    /// Delayed while a run is active.
    WhileBusy,
}

/// The interpreters that the host asked to be kept ready.
#[derive(Debug)]
struct Wanted {
    kind: Runtime,
    settings: PrewarmSettings,
}

/// The interpreters that are kept ready, and those that boot.
#[derive(Debug, Default)]
pub(super) struct Prewarmer {
    wanted: Option<Wanted>,
    /// `Prepare` requests, answered once the spare is ready.
    prepare_requests: Vec<StreamId>,
    spare: Option<Interpreter>,
    /// When the spare, or the zygote that it is forked from, is given up because it has not booted.
    boot_deadline: Option<Instant>,
    /// The kind of the spare that is to be made.
    due: Option<Runtime>,
    /// The variables of a session's first cell with which the spare is to start.
    due_with: Variables,
    boot_delay: BootDelay,
    zygote: Option<Zygote>,
    /// The zygote that replaces `zygote` once it is booted.
    successor: Option<Zygote>,
    /// Consecutive failures of zygotes, and of spares.
    zygote_failures: u32,
    failures: u32,
    last_failure: Option<Failure>,
}

impl Prewarmer {
    /// Returns the interpreter that is available to a script of this kind.
    pub(super) fn availability(&self, kind: Option<Runtime>) -> Availability {
        let Some(kind) = kind else {
            return Availability::Nothing;
        };
        match &self.spare {
            Some(spare) if spare.kind != kind || !spare.started_with.is_empty() => {
                Availability::Nothing
            }
            _ => self.availability_of_any(kind),
        }
    }

    fn availability_of_any(&self, kind: Runtime) -> Availability {
        match &self.spare {
            Some(spare) if spare.is_ready => Availability::Ready,
            Some(_) => Availability::Booting,
            None if self.due == Some(kind) && self.boot_delay == BootDelay::No => {
                Availability::Booting
            }
            None => Availability::Nothing,
        }
    }

    /// Returns whether an interpreter is available to a session's first cell. Asks for a new one unless the spare was
    /// started with these variables and the present configuration files. The error is the reason why none can be made.
    pub(super) fn request_resident(
        &mut self,
        kind: Runtime,
        variables: &Variables,
    ) -> Result<Availability, Failure> {
        let fits = |spare: &Interpreter| {
            spare.kind == kind && spare.started_with == *variables && !spare.lacks_configuration()
        };
        if self.spare.as_ref().is_some_and(|spare| !fits(spare)) {
            self.drop_spare();
        }
        if self.spare.is_none() && self.due_with != *variables {
            self.due_with.clone_from(variables);
            self.due = None;
        }
        match self.availability_of_any(kind) {
            Availability::Nothing => match self.last_failure.take() {
                Some(failure) => Err(failure),
                None => {
                    self.due = Some(kind);
                    self.boot_delay = BootDelay::No;
                    Ok(Availability::Booting)
                }
            },
            availability => Ok(availability),
        }
    }

    pub(super) fn take(&mut self) -> Option<Interpreter> {
        self.due_with.clear();
        self.spare.take_if(|spare| spare.is_ready)
    }

    /// Asks for a new spare if the host wants one to be kept.
    pub(super) fn renew(&mut self) {
        self.boot_delay = BootDelay::No;
        self.due_with.clear();
        self.due = self.wanted.as_ref().map(|wanted| wanted.kind);
    }

    /// Cancels the delayed boot of a spare if the sandbox serves one run only, because the script of that run starts
    /// without a spare.
    pub(super) fn skip_boot(&mut self) {
        let is_only = |wanted: &Wanted| wanted.settings.max_runs == 1;
        if self.boot_delay != BootDelay::No && self.wanted.as_ref().is_some_and(is_only) {
            self.boot_delay = BootDelay::No;
            self.due = None;
        }
    }

    /// Forgets earlier failures and asks for a new spare, after a reset.
    pub(super) fn start_over(&mut self) {
        self.failures = 0;
        self.zygote_failures = 0;
        self.last_failure = None;
        self.renew();
    }

    /// Forgets the spare, which was killed together with all user code. Returns whether there was one.
    pub(super) fn forget_spare(&mut self) -> bool {
        self.boot_deadline = None;
        self.spare.take().is_some()
    }

    fn drop_spare(&mut self) {
        if let Some(spare) = self.spare.take() {
            spare.kill();
        }
        self.boot_deadline = None;
    }

    pub(super) fn spare_pid(&self) -> Option<Pid> {
        self.spare.as_ref().and_then(Interpreter::pid)
    }

    pub(super) fn has_zygote(&self) -> bool {
        self.zygote_pids().next().is_some()
    }

    pub(super) fn zygote_pids(&self) -> impl Iterator<Item = Pid> {
        let zygotes = [&self.zygote, &self.successor].into_iter().flatten();
        zygotes.map(Zygote::pid)
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        match self.boot_delay {
            BootDelay::Until(end) => Some(end),
            BootDelay::No | BootDelay::WhileBusy => self.boot_deadline,
        }
    }

    pub(super) fn add_to_poll_set(&self, poll_set: &mut PollSet) {
        if let Some(spare) = self.spare.as_ref().filter(|spare| !spare.is_ready) {
            poll_set.readable(PollSource::Spare, &spare.control());
        }
        if let Some(zygote) = &self.zygote {
            poll_set.readable(PollSource::Zygote, &zygote.control());
        }
        if let Some(zygote) = &self.successor {
            poll_set.readable(PollSource::Successor, &zygote.control());
        }
    }

    fn settings(&self) -> PrewarmSettings {
        let wanted = self.wanted.as_ref();
        wanted.map_or_else(PrewarmSettings::default, |wanted| wanted.settings.clone())
    }

    /// Whether forking saves more time than booting the zygote costs.
    fn is_worth_forking(&self) -> bool {
        let wanted = self.wanted.as_ref();
        wanted.is_none_or(|wanted| {
            wanted.settings.max_runs > 1 || !wanted.settings.preload.is_empty()
        })
    }

    fn set_boot_deadline(&mut self, timeout: Duration) {
        self.boot_deadline = Instant::now().checked_add(timeout);
    }
}

impl Guest {
    pub(super) fn prepare(&mut self, id: StreamId, kind: Runtime, settings: PrewarmSettings) {
        if !InterpreterSpec::of(kind).is_worth_keeping() {
            return self.send(&GuestFrame::Done { id });
        }
        self.prewarmer.wanted = Some(Wanted { kind, settings });
        if self.prewarmer.availability(Some(kind)) == Availability::Ready {
            return self.send(&GuestFrame::Done { id });
        }
        self.prewarmer.prepare_requests.push(id);
        if self.resident.is_none() {
            self.prewarmer.due = Some(kind);
            if self.prewarmer.spare.is_none() && self.prewarmer.zygote.is_none() {
                self.prewarmer.boot_delay = BootDelay::Until(Instant::now() + BOOT_DELAY);
                if self.runs.iter().any(GuestRun::is_active) {
                    // The run's frame came before this one.
                    self.prewarmer.skip_boot();
                }
            }
        }
    }

    /// Whether the spare that is due must not be booted yet.
    fn is_held_back(&mut self) -> bool {
        if self.sweep_at.is_some() {
            return true;
        }
        let boot_delay = match self.prewarmer.boot_delay {
            BootDelay::WhileBusy if !self.runs.iter().any(GuestRun::is_active) => BootDelay::No,
            boot_delay => boot_delay,
        };
        self.prewarmer.boot_delay = boot_delay;
        boot_delay != BootDelay::No
    }

    /// Makes the spare that is due, or takes the next step towards it that does not block. Returns `false` if the step
    /// failed.
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
        let forks = kind.facts().has_zygote
            && self.prewarmer.due_with.is_empty()
            && self.prewarmer.is_worth_forking()
            && !self.launcher.privileges.shared_uid()
            && !may_load_user_code(&self.launcher.base)
            && self.prewarmer.zygote_failures < MAX_FAILURES;
        let made = if forks {
            match self.fork_spare() {
                Ok(None) => return true,
                Ok(Some(interpreter)) => Ok(interpreter),
                Err(failure) => {
                    self.zygote_failed(failure);
                    return false;
                }
            }
        } else {
            Interpreter::boot(
                &self.launcher,
                &self.drivers,
                kind,
                &self.prewarmer.due_with,
            )
        };
        self.prewarmer.due = None;
        match made {
            Ok(interpreter) => {
                let timeout = if forks { FORK_TIMEOUT } else { BOOT_TIMEOUT };
                self.prewarmer.set_boot_deadline(timeout);
                self.prewarmer.spare = Some(interpreter);
                true
            }
            Err(failure) => {
                self.spare_failed(kind, failure);
                false
            }
        }
    }

    /// Returns an interpreter that was forked from the zygote; `None` while the zygote boots.
    fn fork_spare(&mut self) -> Result<Option<Interpreter>, Failure> {
        let settings = self.prewarmer.settings();
        let Some(zygote) = &mut self.prewarmer.zygote else {
            let zygote = Zygote::boot(&self.launcher, &self.drivers, &settings)?;
            self.prewarmer.zygote = Some(zygote);
            self.prewarmer.set_boot_deadline(BOOT_TIMEOUT);
            return Ok(None);
        };
        if !zygote.is_ready {
            return Ok(None);
        }
        let interpreter = zygote.fork(&self.launcher)?;
        if zygote.is_worn(&settings) && self.prewarmer.successor.is_none() {
            // The new zygote boots while the old one still serves, so that no run waits for it.
            let booted = Zygote::boot(&self.launcher, &self.drivers, &settings);
            self.prewarmer.successor = booted.inspect_err(|failure| log(&failure.message)).ok();
        }
        Ok(Some(interpreter))
    }

    /// Handles a message of the spare, or the close of its control socket.
    pub(super) fn on_spare_message(&mut self) {
        let Some(spare) = &mut self.prewarmer.spare else {
            return;
        };
        let kind = spare.kind;
        match spare.next() {
            Ok(Some(InterpreterMessage::Ready(_))) => {
                self.prewarmer.boot_deadline = None;
                self.prewarmer.failures = 0;
                self.prewarmer.zygote_failures = 0;
                self.prewarmer.last_failure = None;
                for id in std::mem::take(&mut self.prewarmer.prepare_requests) {
                    self.send(&GuestFrame::Done { id });
                }
            }
            Ok(_) => {}
            Err(_) if spare.pid().is_none() => {
                let text = "zygote cannot fork: the sandbox may be at its limit of processes";
                self.prewarmer.drop_spare();
                self.zygote_failed(failure(FailureKind::Exhausted, text));
                self.prewarmer.due.get_or_insert(kind);
            }
            // The end of the process, which follows, tells the reason.
            Err(_) => spare.kill(),
        }
    }

    pub(super) fn on_zygote_message(&mut self, successor: bool) {
        let slot = if successor {
            &mut self.prewarmer.successor
        } else {
            &mut self.prewarmer.zygote
        };
        let Some(zygote) = slot else { return };
        for pipe in &zygote.output {
            drop_output(std::os::fd::AsFd::as_fd(pipe), &mut self.buffer[..]);
        }
        match zygote.next() {
            Ok(None) => {}
            Ok(Some(ZygoteMessage::Ready)) if successor => {
                self.prewarmer.zygote = self.prewarmer.successor.take()
            }
            Ok(Some(ZygoteMessage::Ready)) => self.prewarmer.boot_deadline = None,
            Ok(Some(ZygoteMessage::Refused(reason))) => {
                *slot = None;
                if !successor {
                    self.refuse_zygote(reason);
                }
            }
            Err(_) => {
                *slot = None;
                if !successor {
                    let text = "zygote died";
                    self.zygote_failed(failure(FailureKind::Internal, text));
                }
            }
        }
    }

    /// Handles a module that cannot be imported ahead: reports it to the host, and lets runs import it themselves.
    fn refuse_zygote(&mut self, reason: String) {
        log(&format!("zygote refused: {reason}"));
        if let Some(wanted) = &mut self.prewarmer.wanted {
            wanted.settings.preload.clear();
        }
        self.prewarmer.boot_deadline = None;
        for id in std::mem::take(&mut self.prewarmer.prepare_requests) {
            self.send_failure(id, failure(FailureKind::Refused, reason.clone()));
        }
    }

    pub(super) fn zygote_failed(&mut self, failure: Failure) {
        log(&failure.message);
        self.prewarmer.zygote = None;
        self.prewarmer.boot_deadline = None;
        self.prewarmer.zygote_failures += 1;
    }

    /// Handles a spare that could not be made, or died before it was ready.
    fn spare_failed(&mut self, kind: Runtime, failure: Failure) {
        log(&failure.message);
        self.prewarmer.boot_deadline = None;
        if !self.prewarmer.due_with.is_empty() {
            return self.refuse_variables();
        }
        self.prewarmer.failures += 1;
        if self.prewarmer.failures < MAX_FAILURES && failure.kind == FailureKind::Internal {
            self.prewarmer.due = Some(kind);
            return;
        }
        for id in std::mem::take(&mut self.prewarmer.prepare_requests) {
            self.send_failure(id, failure.clone());
        }
        self.prewarmer.failures = 0;
        self.prewarmer.due = None;
        // If no cell waits, the next one tries again.
        let cell_waits = self.runs.iter().any(GuestRun::is_queued_cell);
        self.prewarmer.last_failure = cell_waits.then_some(failure);
    }

    /// Refuses a cell whose variables kept its interpreter from starting. The cause is in the request, so nothing is
    /// tried again, and the sandbox stays.
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
        let cell_waits = self.runs.iter().any(GuestRun::is_queued_cell);
        self.prewarmer.last_failure = cell_waits.then(|| failure(FailureKind::Refused, text));
    }

    /// Handles the end of the spare's process.
    pub(super) fn on_spare_died(&mut self) {
        let Some(spare) = self.prewarmer.spare.take() else {
            return;
        };
        self.prewarmer.boot_deadline = None;
        if spare.is_ready {
            // A run that needs an interpreter starts one itself.
            return;
        }
        let kind = spare.kind;
        let why = spare.start_failure().unwrap_or_else(|| {
            let text = "interpreter ended while it booted";
            failure(FailureKind::Internal, text)
        });
        self.spare_failed(kind, why);
    }

    /// Handles the end of a zygote's process. The zygote's socket shows the end too, but not the reason.
    pub(super) fn on_zygote_died(&mut self, pid: Pid) {
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
        // A refusal that the zygote sent before its end still counts.
        if let Ok(Some(ZygoteMessage::Refused(reason))) = zygote.next() {
            self.prewarmer.zygote = None;
            return self.refuse_zygote(reason);
        }
        let why = zygote.start_failure().unwrap_or_else(|| {
            let text = "zygote died";
            failure(FailureKind::Internal, text)
        });
        self.zygote_failed(why);
    }

    /// Handles the end of the boot delay, and gives up an interpreter that did not boot in time.
    pub(super) fn fire_boot_timers(&mut self, now: Instant) {
        if matches!(self.prewarmer.boot_delay, BootDelay::Until(end) if end <= now) {
            self.prewarmer.boot_delay = BootDelay::WhileBusy;
        }
        if self
            .prewarmer
            .boot_deadline
            .is_none_or(|boot_deadline| boot_deadline > now)
        {
            return;
        }
        self.prewarmer.boot_deadline = None;
        // User code can cause this with a pipe in the place of a file that the interpreter reads while it boots. So it
        // is no reason to end the sandbox, nor to wait a second time.
        let text =
            "interpreter did not boot in time: the machine, or a file in /sandbox, holds it up";
        let late = failure(FailureKind::Exhausted, text);
        match self.prewarmer.spare.take() {
            Some(spare) if spare.pid().is_some() => {
                spare.kill();
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
