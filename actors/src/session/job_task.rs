//! The task that runs one job in a session's sandbox.

use std::borrow::Cow;
use std::sync::Arc;

use isol8_api::ExecutionResult;
use isol8_backend::SessionDefaults;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::context::SessionContext;
use super::message::{JobEnded, Reply, RunJob};
use crate::admission::Permit;
use crate::error::ExecuteError;
use crate::job::Job;
use crate::run::{self, Attachment, QueueTimings, RunMode};
use crate::sandbox::PooledSandbox;
use crate::supervisor::WeakRecipient;

/// The job that runs in the session. Dropping it ends the run.
#[derive(Debug)]
pub(super) struct RunningJob {
    pub(super) reply: Reply,
    _cancel: DropGuard,
}

/// The values with which a job's task starts.
#[derive(Debug)]
pub(super) struct JobStart {
    pub(super) run: RunJob,
    pub(super) held: PooledSandbox,
    /// The task that persists the session's claim, which is awaited before the answer.
    pub(super) claiming: Option<JoinHandle<()>>,
    pub(super) timings: QueueTimings,
}

impl RunningJob {
    /// Runs a job in a task of its own, in which a panic is only an error. The task reports its end by [`JobEnded`].
    pub(super) fn start(
        start: JobStart,
        context: &SessionContext,
        session: WeakRecipient<JobEnded>,
    ) -> Self {
        let JobStart {
            run,
            mut held,
            claiming,
            timings,
        } = start;
        let cancel = run.cancel.child_token();
        let running = Self {
            reply: run.reply,
            _cancel: cancel.clone().drop_guard(),
        };
        let (admission, tenant) = (context.admission.clone(), context.key.tenant.clone());
        let (job, attachment) = (run.job, run.attachment);
        let defaults = context.defaults.clone();
        let work = async move {
            let admitting = admission.admit(&tenant);
            let job = in_session(&job, defaults.as_ref(), &held.spec.image);
            let result = execute(
                &mut held,
                &job,
                admitting,
                timings,
                attachment.as_ref(),
                &cancel,
            )
            .await;
            if let Some(claiming) = claiming {
                // The task reports its own failure.
                let _ = claiming.await;
            }
            JobEnded {
                result,
                held: Some(held),
            }
        };
        session.report(work, |ended| {
            ended.unwrap_or_else(|panic| {
                log::error!(error:% = panic; "run panicked");
                let text = "the run panicked".to_owned();
                JobEnded {
                    result: Err(ExecuteError::Internal(text)),
                    held: None,
                }
            })
        });
        running
    }
}

async fn execute(
    held: &mut PooledSandbox,
    job: &Job,
    admitting: impl Future<Output = Result<Permit, ExecuteError>>,
    mut timings: QueueTimings,
    attachment: Option<&Attachment>,
    cancel: &CancellationToken,
) -> Result<ExecutionResult, ExecuteError> {
    let asked = Instant::now();
    let permit = cancel.run_until_cancelled(admitting).await;
    let _permit = permit.ok_or(ExecuteError::Cancelled)??;
    timings.queue += asked.elapsed();
    // The sizes of a session are those of its first request. The limits are those of each request.
    apply_limits(held, job).await?;
    let sandbox = Arc::clone(&held.sandbox);
    run::run(
        sandbox.as_ref(),
        job,
        RunMode::Session,
        timings,
        &mut held.history,
        attachment,
        cancel,
    )
    .await
}

/// Returns the job as it runs in a session: with the session's image instead of the one chosen for the job, and with
/// the session's settings.
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

/// Applies the job's limits. A memory limit below what the sandbox's processes and files already use is an error of the
/// request, because that memory cannot be taken away. The session stays as it is.
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
