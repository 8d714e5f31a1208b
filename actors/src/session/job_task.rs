//! The task that runs one job in a session's sandbox.

use std::borrow::Cow;
use std::sync::Arc;

use isol8_api::ExecutionResult;
use isol8_backend::SessionDefaults;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::message::{Reply, TurnEnded};
use super::{Run, Session, SessionContext};
use crate::admission::Permit;
use crate::error::ExecuteError;
use crate::job::Job;
use crate::pool::PooledSandbox;
use crate::run::{self, Attachment, Mode, QueueTimings};
use crate::supervisor::WeakSupervised;

/// The session's hold on the running job. Dropping it ends the run.
#[derive(Debug)]
pub(super) struct RunningJob {
    pub(super) reply: Reply,
    _cancel: DropGuard,
}

/// The values that a job's task starts with.
#[derive(Debug)]
pub(super) struct JobStart {
    pub(super) run: Run,
    pub(super) held: PooledSandbox,
    /// To be awaited before the answer.
    pub(super) claiming: Option<JoinHandle<()>>,
    pub(super) waits: QueueTimings,
}

impl RunningJob {
    /// Runs a job in a task of its own, where a panic is an error and no more. The session is told of
    /// the end by [`TurnEnded`].
    pub(super) fn begin(
        beginning: JobStart,
        setting: &SessionContext,
        session: WeakSupervised<Session>,
    ) -> Self {
        let JobStart {
            run,
            mut held,
            claiming,
            waits,
        } = beginning;
        let cancel = run.cancel.child_token();
        let turn = Self {
            reply: run.reply,
            _cancel: cancel.clone().drop_guard(),
        };
        let (admission, tenant) = (setting.admission.clone(), setting.key.tenant.clone());
        let (job, live) = (run.job, run.live);
        let defaults = setting.defaults.clone();
        let running = async move {
            let admitting = admission.admit(&tenant);
            let job = in_session(&job, defaults.as_ref(), &held.spec.image);
            let result = execute(&mut held, &job, admitting, waits, live.as_ref(), &cancel).await;
            if let Some(claiming) = claiming {
                // The task reports its own failure.
                let _ = claiming.await;
            }
            TurnEnded {
                result,
                held: Some(held),
            }
        };
        session.report(running, |ended| {
            ended.unwrap_or_else(|panic| {
                log::error!(error:% = panic; "run panicked");
                let text = "the run panicked".to_owned();
                TurnEnded {
                    result: Err(ExecuteError::Internal(text)),
                    held: None,
                }
            })
        });
        turn
    }
}

async fn execute(
    held: &mut PooledSandbox,
    job: &Job,
    admitting: impl Future<Output = Result<Permit, ExecuteError>>,
    mut waits: QueueTimings,
    live: Option<&Attachment>,
    cancel: &CancellationToken,
) -> Result<ExecutionResult, ExecuteError> {
    let asked = Instant::now();
    let permit = cancel.run_until_cancelled(admitting).await;
    let _permit = permit.ok_or(ExecuteError::Cancelled)??;
    waits.queue += asked.elapsed();
    // A session's sizes are those of its first request; its limits are each request's own.
    apply_limits(held, job).await?;
    let sandbox = Arc::clone(&held.sandbox);
    run::run(
        sandbox.as_ref(),
        job,
        Mode::Session,
        waits,
        &mut held.memory,
        live,
        cancel,
    )
    .await
}

/// The job as it is in a session of this image, whichever it would have chosen for itself, with the session's
/// settings.
fn in_session<'a>(
    job: &'a Job,
    defaults: Option<&SessionDefaults>,
    image: &Option<String>,
) -> Cow<'a, Job> {
    let mut job = Cow::Borrowed(job);
    if job.install.is_some() && job.sandbox.image != *image {
        job.to_mut().sandbox.image.clone_from(image);
    }
    if let Some(defaults) = defaults {
        job.to_mut().apply_defaults(defaults);
    }
    job
}

/// Applies the job's limits. Memory and files that the sandbox already holds cannot be taken from it, so a limit below
/// them is the request's fault and leaves the session as it is.
async fn apply_limits(held: &mut PooledSandbox, job: &Job) -> Result<(), ExecuteError> {
    let limits = job.sandbox.limits;
    if limits != held.spec.limits
        && let Ok(usage) = held.sandbox.usage().await
        && usage.memory_bytes >= limits.memory.bytes()
    {
        return Err(ExecuteError::Invalid(format!(
            "options.memoryLimit: the session holds {} bytes already, more than {}",
            usage.memory_bytes, limits.memory
        )));
    }
    held.set_limits(limits)
        .await
        .map_err(|error| ExecuteError::BackendUnavailable(error.to_string()))
}
