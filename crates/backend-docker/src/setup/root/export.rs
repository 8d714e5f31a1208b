//! A root exported from an engine's image: the file system of a container that is never started.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::CreateContainerOptionsBuilder;
use futures::{StreamExt as _, TryStreamExt as _};
use isol8_backend::SandboxId;

use super::super::build::BUILD_DEADLINE;
use super::Archive;
use crate::engine::{CALL_DEADLINE, Engine, EngineError};

/// Label of containers for exports.
const LABEL: &str = "isol8.export";

/// Age at which a container was left by a killed export: no export takes this long.
const LEFTOVER_AGE: Duration = Duration::from_secs(2 * BUILD_DEADLINE.as_secs());

/// Exports an image while `take` reads it.
pub(super) async fn export(
    engine: &Engine,
    image: &str,
    take: impl AsyncFnOnce(Archive) -> Result<(), String>,
) -> Result<(), String> {
    let text = |error: EngineError| error.to_string();
    remove_leftovers(engine).await.map_err(text)?;
    let name = format!("isol8-export-{}", SandboxId::random());
    create(engine, &name, image).await.map_err(text)?;
    let archive = export_of(engine, &name);
    let taken = take(archive).await;
    let removed = engine.remove(&name).await.map_err(text);
    taken.and(removed)
}

async fn create(engine: &Engine, name: &str, image: &str) -> Result<(), EngineError> {
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    let body = ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        labels: Some(HashMap::from([(LABEL.to_owned(), String::new())])),
        ..Default::default()
    };
    let created = engine.docker.create_container(Some(options), body);
    engine.call(CALL_DEADLINE, created).await.map(|_| ())
}

fn export_of(engine: &Engine, name: &str) -> Archive {
    // The clones are needed because the stream type has no lifetime for the borrowed arguments.
    let (docker, name) = (engine.docker.clone(), name.to_owned());
    let pieces = futures::stream::once(async move { docker.export_container(&name) });
    pieces.flatten().map_err(io::Error::other).boxed()
}

async fn remove_leftovers(engine: &Engine) -> Result<(), EngineError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let labels = vec![LABEL.to_owned()];
    for container in engine.containers_with_labels(labels).await? {
        let created = container.created.and_then(|at| u64::try_from(at).ok());
        let age = now.saturating_sub(Duration::from_secs(created.unwrap_or(0)));
        if let Some(id) = container.id.filter(|_| age > LEFTOVER_AGE) {
            engine.remove(&id).await?;
        }
    }
    Ok(())
}
