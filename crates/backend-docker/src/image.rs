//! Checks of the image that a container is made from.
//!
//! An image contains more than files: its Dockerfile can declare volumes, which would be directories on the host's disk
//! without a size limit. And any name can lead to an image of another project. So each image is checked
//! before a container is made from it, and the container is made from the id of the checked image. All other
//! settings that an image declares are overridden by [`container`](crate::container).

use bollard::models::ImageInspect;
use isol8_backend::{BackendError, SandboxSpec};

use crate::backend::{NAME, missing_image};
use crate::engine::{CALL_DEADLINE, Engine};

/// Returns the id of the image for a sandbox. If `spec` names an image, that image must be made from `own`, the
/// runtime's image; otherwise `own` is used.
///
/// # Errors
/// [`BackendError::ImageUnavailable`] if the named image cannot be used, [`BackendError::RuntimeUnavailable`] if the
/// runtime's image cannot be used; [`BackendError::Unavailable`] if the engine does not answer.
pub(crate) async fn choose(
    engine: &Engine,
    spec: &SandboxSpec,
    own: &str,
) -> Result<String, BackendError> {
    let runtime_error = |reason: String| BackendError::RuntimeUnavailable {
        runtime: spec.runtime,
        backend: NAME,
        reason,
    };
    let Some(named) = &spec.image else {
        let found = inspect(engine, own).await?;
        let found = found.ok_or_else(|| runtime_error(missing_image(own)))?;
        return usable(found).map_err(runtime_error);
    };
    let image_error = |reason: String| BackendError::ImageUnavailable {
        image: named.clone(),
        backend: NAME,
        reason,
    };
    let (found, base) = tokio::try_join!(inspect(engine, named), inspect(engine, own))?;
    let found = found.ok_or_else(|| image_error("the engine has none of that name".to_owned()))?;
    let base = base.ok_or_else(|| image_error(missing_image(own)))?;
    if !is_made_from(&found, &base) {
        return Err(image_error(format!(
            "it is not made from {own}, the current image of runtime {}; build it again with \
             `isol8 build --base {}`, or from a Dockerfile that begins with FROM {own}",
            spec.runtime, spec.runtime
        )));
    }
    usable(found).map_err(image_error)
}

async fn inspect(engine: &Engine, name: &str) -> Result<Option<ImageInspect>, BackendError> {
    match engine
        .call(CALL_DEADLINE, engine.docker.inspect_image(name))
        .await
    {
        Ok(image) => Ok(Some(image)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into_backend(BackendError::Create)),
    }
}

/// Returns the image's id, or the reason why the image cannot be used.
fn usable(image: ImageInspect) -> Result<String, String> {
    check_volumes(&image)?;
    image
        .id
        .ok_or_else(|| "the engine did not return the image's id".to_owned())
}

/// Refuses an image that declares volumes.
///
/// # Errors
/// A text with the volumes and the fix.
pub(crate) fn check_volumes(image: &ImageInspect) -> Result<(), String> {
    let config = image.config.as_ref();
    let mut volumes = config
        .and_then(|config| config.volumes.clone())
        .unwrap_or_default();
    if volumes.is_empty() {
        return Ok(());
    }
    // The engine lists them in any order.
    volumes.sort_unstable();
    Err(format!(
        "it declares volumes ({}), which would be directories on this host's disk without a size limit; build it \
             without VOLUME, on a base without volumes",
        volumes.join(", ")
    ))
}

/// Returns whether an image begins with all layers of another. Layers are identified by the hash of their content, so
/// unlike a label this cannot be forged.
fn is_made_from(image: &ImageInspect, base: &ImageInspect) -> bool {
    let (image, base) = (layers(image), layers(base));
    !base.is_empty() && image.starts_with(base)
}

fn layers(image: &ImageInspect) -> &[String] {
    let file_system = image.root_fs.as_ref();
    file_system
        .and_then(|it| it.layers.as_deref())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bollard::models::{ImageConfig, ImageInspectRootFs};

    use super::*;

    fn image(layers: &[&str], volumes: Option<&[&str]>) -> ImageInspect {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        ImageInspect {
            id: Some("sha256:1".to_owned()),
            config: Some(ImageConfig {
                volumes: volumes.map(owned),
                ..Default::default()
            }),
            root_fs: Some(ImageInspectRootFs {
                typ: "layers".to_owned(),
                layers: Some(owned(layers)),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn an_image_is_made_from_another_if_it_begins_with_its_layers() {
        for (layers, base, expected) in [
            (&["a", "b"][..], &["a", "b"][..], true),
            (&["a", "b", "c"], &["a", "b"], true),
            (&["a"], &["a", "b"], false),
            (&["a", "c", "b"], &["a", "b"], false),
            (&["b", "a"], &["a", "b"], false),
            (&["a"], &[], false),
            (&[], &["a"], false),
            (&[], &[], false),
        ] {
            let made = is_made_from(&image(layers, None), &image(base, None));
            assert_eq!(made, expected, "{layers:?} from {base:?}");
        }
        let unknown = ImageInspect::default();
        assert!(!is_made_from(&unknown, &unknown));
    }

    #[test]
    fn an_image_with_volumes_is_refused_by_their_names() {
        assert_eq!(usable(image(&[], None)).unwrap(), "sha256:1");
        assert_eq!(usable(image(&[], Some(&[]))).unwrap(), "sha256:1");
        let error = usable(image(&[], Some(&["/more", "/data"]))).unwrap_err();
        assert!(
            error.contains("(/data, /more)") && error.contains("without VOLUME"),
            "{error}"
        );
        assert!(usable(ImageInspect::default()).is_err());
    }
}
