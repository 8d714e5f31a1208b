//! One job's turn in a session's sandbox.

use std::sync::Arc;

use isol8_api::ExecutionResult;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::message::Reply;
use super::{Run, Setting};
use crate::admission::Permit;
use crate::error::ExecuteError;
use crate::job::Job;
use crate::pool::Held;
use crate::run::{self, Mode, Waits};

/// What the session keeps of the job that runs.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) reply: Reply,
    pub(super) cancel: CancellationToken,
}

/// How a job left its session.
#[derive(Debug)]
pub(super) struct TurnEnd {
    pub(super) held: Held,
    pub(super) result: Result<ExecutionResult, ExecuteError>,
}

impl Turn {
    /// Runs a job in a task of its own, where a panic is an error and no more.
    pub(super) fn begin(
        run: Run,
        mut held: Held,
        setting: &Setting,
        waits: Waits,
    ) -> (Self, JoinHandle<TurnEnd>) {
        let turn = Self {
            reply: run.reply,
            cancel: run.cancel.clone(),
        };
        let (admission, tenant) = (setting.admission.clone(), setting.key.tenant.clone());
        let running = tokio::spawn(async move {
            let admitting = admission.admit(&tenant);
            let result = execute(&mut held, &run.job, admitting, waits, &run.cancel).await;
            TurnEnd { held, result }
        });
        (turn, running)
    }
}

async fn execute(
    held: &mut Held,
    job: &Job,
    admitting: impl Future<Output = Result<Permit, ExecuteError>>,
    mut waits: Waits,
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
        cancel,
    )
    .await
}

/// Applies the job's limits. What the sandbox holds already cannot be taken from it, so a limit
/// below that is the request's fault and leaves the session as it is.
async fn apply_limits(held: &mut Held, job: &Job) -> Result<(), ExecuteError> {
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
