//! Callers that know what the answer must be.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use isol8_actors::pool::SandboxDefaults;
use isol8_actors::{ExecuteError, Job, Program, Service};
use isol8_api::{ExecutionResult, Runtime, SessionId, TenantId};
use isol8_backend::Limits;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const TENANTS: usize = 4;

/// Sessions of one caller.
const SESSIONS: usize = 2;

/// No answer may take longer: queue, a sandbox made anew, and the longest program together.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long a caller waits that was refused: a polite one would wait for seconds, which would leave the
/// server in peace.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Makes callers.
pub(crate) struct Load {
    service: Service,
}

/// Counts of the requests' outcomes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) right: usize,
    gone_away: usize,
    errors: BTreeMap<&'static str, usize>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.right += other.right;
        self.gone_away += other.gone_away;
        for (error, count) in &other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            right,
            gone_away,
            errors,
        } = self;
        write!(
            f,
            "{right} right answers, {gone_away} callers gone, {errors:?}"
        )
    }
}

impl Load {
    pub(crate) fn new(service: Service) -> Self {
        Self { service }
    }

    /// Starts callers that go on until `end`.
    pub(crate) fn start(&self, count: usize, end: Instant) -> Vec<JoinHandle<Tally>> {
        let caller = |number: usize| Caller {
            service: self.service.clone(),
            tenant: format!("tenant-{}", number % TENANTS).parse().unwrap(),
            number,
            known: [None; SESSIONS],
            tally: Tally::default(),
            is_refused: false,
        };
        (0..count)
            .map(|number| tokio::spawn(caller(number).call_until(end)))
            .collect()
    }
}

struct Caller {
    service: Service,
    tenant: TenantId,
    number: usize,
    /// The value of `x` in each session of this caller, if it must have one.
    known: [Option<usize>; SESSIONS],
    tally: Tally,
    /// There was no room for its last request.
    is_refused: bool,
}

impl Caller {
    async fn call_until(mut self, end: Instant) -> Tally {
        while Instant::now() < end {
            if std::mem::take(&mut self.is_refused) {
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            match fastrand::usize(..100) {
                0..45 => self.ephemeral().await,
                45..80 => self.in_session().await,
                80..88 => self.go_away().await,
                88..94 => self.time_out().await,
                94..97 => self.with_other_limits().await,
                _ => self.delete().await,
            }
        }
        self.tally
    }

    async fn ephemeral(&mut self) {
        let number = fastrand::u32(..);
        let code = format!("import os\nprint({number}, os.listdir('/sandbox'))");
        let answer = self.execute(None, job(&code)).await;
        if let Some(result) = self.count(answer) {
            assert_eq!(result.stdout, format!("{number} ['main.py']"), "{result:?}");
        }
    }

    async fn in_session(&mut self) {
        let which = fastrand::usize(..SESSIONS);
        let number = fastrand::usize(..1_000_000);
        // The value before, then the new one.
        let code = format!("print(globals().get('x')); x = {number}");
        let answer = self.execute(Some(which), job(&code)).await;
        let Some(result) = self.count(answer) else {
            // The progress of that run is unknown.
            self.known[which] = None;
            return;
        };
        if let Some(known) = self.known[which]
            && !result.state_lost
        {
            assert_eq!(result.stdout, known.to_string(), "{result:?}");
        }
        // A process of a sandbox may be killed from outside in the middle of a run.
        self.known[which] = (result.exit_code == 0).then_some(number);
    }

    async fn go_away(&mut self) {
        let session = fastrand::bool().then(|| fastrand::usize(..SESSIONS));
        let patience = Duration::from_millis(fastrand::u64(..60));
        let running = self.execute(session, job("import time; time.sleep(60)"));
        let answer = timeout(patience, running).await;
        if let Some(which) = session {
            self.known[which] = None;
        }
        match answer {
            Ok(answer) => drop(self.count(answer)),
            Err(_) => self.tally.gone_away += 1,
        }
    }

    async fn time_out(&mut self) {
        let mut endless = job("while True: pass");
        endless.timeout = Duration::from_millis(50);
        let answer = self.execute(None, endless).await;
        if let Some(result) = self.count(answer) {
            assert_eq!(result.exit_code, 137, "{result:?}");
        }
    }

    async fn with_other_limits(&mut self) {
        let mut limited = job("print(1)");
        limited.sandbox.limits = Limits {
            cpus: 0.5,
            ..limited.sandbox.limits
        };
        let answer = self.execute(None, limited).await;
        if let Some(result) = self.count(answer) {
            assert_eq!(result.stdout, "1", "{result:?}");
        }
    }

    async fn delete(&mut self) {
        let which = fastrand::usize(..SESSIONS);
        let id = self.session(which);
        let deleting = self.service.delete_session(self.tenant.clone(), id);
        let deleted = timeout(PATIENCE, deleting).await;
        deleted.expect("a deletion hangs").unwrap();
        self.known[which] = None;
    }

    fn session(&self, which: usize) -> SessionId {
        format!("{}-{which}", self.number).parse().unwrap()
    }

    async fn execute(
        &self,
        session: Option<usize>,
        job: Job,
    ) -> Result<ExecutionResult, ExecuteError> {
        let id = session.map(|which| self.session(which));
        let running = self.service.execute(self.tenant.clone(), id, job);
        let answer = timeout(PATIENCE, running).await;
        answer.expect("a request hangs")
    }

    /// Counts an answer; an error must be one that a client can understand.
    fn count(&mut self, answer: Result<ExecutionResult, ExecuteError>) -> Option<ExecutionResult> {
        let error = match answer {
            // Killed from outside, or its interpreter was.
            Ok(result) if result.exit_code == 137 && !result.timed_out => "killed",
            Ok(result) => {
                self.tally.right += 1;
                return Some(result);
            }
            Err(ExecuteError::TenantOverloaded { .. }) => "tenant overloaded",
            Err(ExecuteError::Overloaded { .. }) => "overloaded",
            Err(ExecuteError::SessionLost { .. }) => "session lost",
            Err(ExecuteError::SandboxLost(_)) => "sandbox lost",
            Err(ExecuteError::BackendUnavailable(_)) => "backend unavailable",
            Err(error) => panic!("no proper answer: {error:?}"),
        };
        self.is_refused = error.ends_with("overloaded");
        *self.tally.errors.entry(error).or_default() += 1;
        None
    }
}

fn job(code: &str) -> Job {
    let spec = SandboxDefaults::default().spec(Runtime::Python);
    Job::new(Program::source(code, Runtime::Python), spec).unwrap()
}
