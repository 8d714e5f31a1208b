//! Overlays through which each sandbox sees the files that all sandboxes share.
//!
//! The host's `/usr`, an unpacked root, the skeleton around them and the guest are the same files for every sandbox.
//! With bind mounts, they would have the same inodes in all sandboxes: a program could watch with inotify or dnotify
//! which files the host and other sandboxes open, and hold locks that the others wait for. So each sandbox gets its own
//! read-only overlays of these directories. Watches and locks refer to the overlay's inodes, which no other sandbox
//! has; all sandboxes still share the page cache of the files.
//!
//! The process that makes the container mounts the overlays, in its own mount namespace, which ends with
//! that process. If the kernel refuses an overlay (over two other overlays, or over a directory that is mounted within
//! a user's namespace), the directory is bind-mounted, and [`Views::shared`] lists it.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use procfs::process::Process;

use super::mounts;
use crate::identity::Identity;
use crate::rootfs::{self, CERTIFICATES, GUEST, SharedDirectory};
use crate::spawner::message::NewSandbox;

/// Directory of the skeleton around the host's programs: mount points and `/etc`.
const SKELETON_LAYER: &str = "programs";

/// Directory of the layer above every root, which contains the guest and the certificates.
const GUEST_LAYER: &str = "agent";

/// Directory of the topmost layers of sandboxes in the host's network, one per sandbox. Such a layer contains the
/// host's files for name resolution.
const NAMES_LAYERS: &str = "names";

/// Directory of an empty layer, for overlays of a single directory: the kernel requires two layers.
const EMPTY_LAYER: &str = "empty";

/// Mount point of a sandbox's root, in the mount namespace of the process that makes the container.
const VIEW: &str = "view";

const DEVICES: &str = "/dev";

/// The way a shared directory is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountMethod {
    Overlay,
    /// A bind mount, if the kernel refuses an overlay.
    Bind,
}

#[derive(Debug)]
struct SharedMount {
    directory: SharedDirectory,
    method: MountMethod,
}

impl SharedMount {
    fn new(directory: SharedDirectory) -> Self {
        let method = probe(&directory.source);
        Self { directory, method }
    }
}

/// The layers of sandboxes' roots, and the way each of them is mounted.
#[derive(Debug)]
pub(super) struct Views {
    /// A tmpfs, which contains the directories above.
    directory: PathBuf,
    /// Mounts of the host's directories in the skeleton, each before the mounts within it.
    shared_mounts: Vec<SharedMount>,
    skeleton: MountMethod,
    unpacked: MountMethod,
    /// `None` for an ordinary user, whose overlays cannot have devices.
    devices: Option<MountMethod>,
    identity: Identity,
    /// Whether the guest's layer contains certificates.
    has_certificates: bool,
}

impl Views {
    /// Makes the layers, and determines for which of them the kernel allows an overlay.
    pub(super) fn prepare(
        directory: &Path,
        host: &Path,
        roots: Option<&Path>,
        identity: Identity,
    ) -> io::Result<Self> {
        make_layers(directory)?;
        rootfs::build(host, &directory.join(SKELETON_LAYER))?;
        let shared = with_inner_mounts(&rootfs::shared_directories(host), &mount_points()?);
        // Paths of layers are relative to this directory, as in [`Self::enter`].
        std::env::set_current_dir(directory)?;
        let views = Self {
            directory: directory.to_owned(),
            // A mount that another mount hides cannot be reached, not even on the host.
            shared_mounts: shared
                .into_iter()
                .filter(|shared| shared.source.exists())
                .map(SharedMount::new)
                .collect(),
            skeleton: probe(Path::new(SKELETON_LAYER)),
            unpacked: roots
                .filter(|roots| roots.is_dir())
                .map_or(MountMethod::Overlay, probe),
            devices: (identity == Identity::Root).then(|| probe_devices([Some(directory), roots])),
            identity,
            has_certificates: false,
        };
        std::env::set_current_dir("/")?;
        Ok(views)
    }

    /// Sets the guest executable of sandboxes that are made from now on.
    pub(super) fn set_guest(&self, guest: &Path) -> io::Result<()> {
        let inside = self
            .directory
            .join(GUEST_LAYER)
            .join(GUEST.trim_start_matches('/'));
        let unfinished = inside.with_extension("new");
        if let Some(parent) = inside.parent() {
            fs::create_dir_all(parent)?;
            fs::set_permissions(parent, Permissions::from_mode(0o755))?;
        }
        fs::copy(guest, &unfinished)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o755))?;
        // Existing sandboxes keep the file that they execute.
        fs::rename(unfinished, inside)
    }

    /// Sets the certificates of sandboxes that are made from now on.
    pub(super) fn set_certificates(&mut self, certificates: Option<&str>) -> io::Result<()> {
        let layer = self.directory.join(GUEST_LAYER);
        let inside = layer.join(CERTIFICATES.trim_start_matches('/'));
        self.has_certificates = certificates.is_some();
        let Some(certificates) = certificates else {
            return match fs::remove_file(inside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let unfinished = inside.with_extension("new");
        fs::write(&unfinished, certificates)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o644))?;
        fs::rename(unfinished, inside)
    }

    pub(super) fn has_certificates(&self) -> bool {
        self.has_certificates
    }

    /// Returns the directories that sandboxes share with the host and each other without an overlay.
    pub(super) fn shared(&self) -> Vec<PathBuf> {
        let named = [
            (Some(self.skeleton), "/"),
            (Some(self.unpacked), "the roots of `images.root`"),
            (self.devices, DEVICES),
        ];
        let named = named
            .into_iter()
            .filter_map(|(method, name)| Some((method?, Path::new(name))));
        let shared_mounts = self
            .shared_mounts
            .iter()
            .map(|shared| (shared.method, shared.directory.source.as_path()));
        named
            .chain(shared_mounts)
            .filter(|(method, _)| *method == MountMethod::Bind)
            .map(|(_, path)| path.to_owned())
            .collect()
    }

    /// Returns whether any directory of a sandbox is shared without an overlay. The devices of an ordinary user do not
    /// count.
    pub(super) fn is_shared(&self, sandbox: &NewSandbox) -> bool {
        let methods = match &sandbox.root {
            Some(_) => vec![self.unpacked],
            None => self.shared_mounts.iter().map(|it| it.method).collect(),
        };
        let methods = methods.into_iter().chain([self.skeleton]);
        methods
            .chain(self.devices)
            .any(|method| method == MountMethod::Bind)
    }

    /// Returns the path of the root for the process that has [entered](Self::enter) a view.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join(VIEW)
    }

    /// Makes the sandbox's own layer, if the sandbox needs one.
    pub(super) fn add_own_layer(&self, sandbox: &NewSandbox) -> io::Result<()> {
        if !sandbox.host_network {
            return Ok(());
        }
        rootfs::copy_name_resolution(Path::new("/etc"), &self.own_layer(&sandbox.id))
    }

    /// Removes the sandbox's own layer, if the sandbox has one.
    pub(super) fn remove_own_layer(&self, id: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.own_layer(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn own_layer(&self, id: &str) -> PathBuf {
        self.directory.join(NAMES_LAYERS).join(id)
    }

    /// Moves the calling process to a new mount namespace in which the sandbox's root is mounted, and in which `/dev`
    /// is an overlay for this sandbox.
    pub(super) fn enter(&self, sandbox: &NewSandbox) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // User code can read the mount options, so the paths in them are relative and reveal no directory of this
        // instance.
        std::env::set_current_dir(&self.directory)?;
        let view = Path::new(VIEW);
        let own_layer = Path::new(NAMES_LAYERS).join(&sandbox.id);
        let (base, method) = match &sandbox.root {
            Some(root) => (root.as_path(), self.unpacked),
            None => (Path::new(SKELETON_LAYER), self.skeleton),
        };
        let layers = [own_layer.as_path(), Path::new(GUEST_LAYER), base];
        let first = if sandbox.host_network { 0 } else { 1 };
        mount_layers(method, &layers[first..], view)?;
        if sandbox.root.is_none() {
            for SharedMount { directory, method } in &self.shared_mounts {
                let target = view.join(&directory.destination);
                mount_directory(*method, &directory.source, &target)?;
            }
        }
        self.mount_writable(sandbox, view)?;
        if self.devices == Some(MountMethod::Overlay) {
            let layers = [Path::new(DEVICES), Path::new(EMPTY_LAYER)];
            mount_overlay(&layers, Path::new(DEVICES), MsFlags::MS_NOEXEC)?;
        }
        std::env::set_current_dir("/")
    }

    /// Mounts the directories that user code may write to, each with one system call. libcontainer makes hundreds of
    /// system calls per mount, to check its path.
    fn mount_writable(&self, sandbox: &NewSandbox, view: &Path) -> io::Result<()> {
        let (root, user) = self.identity.owners(&sandbox.id);
        let directories = [
            ("sandbox", user, "755", sandbox.sandbox_bytes),
            ("tmp", root, "1777", sandbox.tmp_bytes),
        ];
        for (name, owner, mode, size) in directories {
            let options = format!("mode={mode},uid={owner},gid={owner},size={size}");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let kind = Some("tmpfs");
            mount(Some(name), &view.join(name), kind, flags, Some(&*options))?;
        }
        Ok(())
    }
}

fn make_layers(directory: &Path) -> io::Result<()> {
    mounts::mount_tmpfs(directory)?;
    for name in [SKELETON_LAYER, GUEST_LAYER, NAMES_LAYERS, EMPTY_LAYER, VIEW] {
        let layer = directory.join(name);
        fs::create_dir(&layer)?;
        fs::set_permissions(layer, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn mount_points() -> io::Result<Vec<PathBuf>> {
    let mounted = Process::myself().and_then(|own| own.mountinfo());
    let mounted = mounted.map_err(io::Error::other)?.into_iter();
    Ok(mounted.map(|mounted| mounted.mount_point).collect())
}

/// Inserts the mounts within each directory after it: an overlay of the directory does not include them.
fn with_inner_mounts(
    directories: &[SharedDirectory],
    mount_points: &[PathBuf],
) -> Vec<SharedDirectory> {
    let mut all = Vec::new();
    for directory in directories {
        let mut inner: Vec<PathBuf> = mount_points
            .iter()
            .filter(|point| point.starts_with(&directory.source) && **point != directory.source)
            .cloned()
            .collect();
        inner.sort();
        inner.dedup();
        all.push(directory.clone());
        all.extend(inner.into_iter().filter_map(|source| {
            let within = source.strip_prefix(&directory.source).ok()?;
            let destination = directory.destination.join(within);
            Some(SharedDirectory {
                source,
                destination,
            })
        }));
    }
    all
}

/// Determines whether the kernel allows an overlay of a directory, by mounting one.
fn probe(directory: &Path) -> MountMethod {
    let view = Path::new(VIEW);
    let tried = mount_directory(MountMethod::Overlay, directory, view);
    match tried.and_then(|()| mounts::detach(view)) {
        Ok(()) => MountMethod::Overlay,
        Err(error) => {
            log::debug!(directory:% = directory.display(), error:%; "overlay is not possible");
            MountMethod::Bind
        }
    }
}

/// Does the same as [`probe`] for `/dev`. An overlay of `/dev` would hide the `used` paths, if they are below it.
fn probe_devices(used: [Option<&Path>; 2]) -> MountMethod {
    let mut used = used.into_iter().flatten();
    if used.any(|path| path.starts_with(DEVICES)) {
        return MountMethod::Bind;
    }
    probe(Path::new(DEVICES))
}

/// Mounts a single directory.
fn mount_directory(method: MountMethod, source: &Path, target: &Path) -> io::Result<()> {
    match method {
        MountMethod::Overlay => {
            mount_overlay(&[source, Path::new(EMPTY_LAYER)], target, MsFlags::MS_NODEV)
        }
        MountMethod::Bind => mounts::bind_read_only(source, target),
    }
}

/// Mounts several layers, the topmost first.
fn mount_layers(method: MountMethod, layers: &[&Path], target: &Path) -> io::Result<()> {
    let [upper @ .., base] = layers else {
        return Ok(());
    };
    if method == MountMethod::Overlay {
        return mount_overlay(layers, target, MsFlags::MS_NODEV);
    }
    mounts::bind_read_only(base, target)?;
    for layer in upper.iter().rev() {
        bind_files(layer, target)?;
    }
    Ok(())
}

/// Bind-mounts each file of a layer over the file with the same path.
fn bind_files(layer: &Path, target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(layer)? {
        let entry = entry?;
        let inside = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            bind_files(&entry.path(), &inside)?;
        } else if inside.exists() || !inside.ends_with(CERTIFICATES.trim_start_matches('/')) {
            // A root that was unpacked by an earlier version has no mount point for certificates.
            mounts::bind_read_only(&entry.path(), &inside)?;
        }
    }
    Ok(())
}

/// Mounts a read-only overlay.
fn mount_overlay(layers: &[&Path], target: &Path, flags: MsFlags) -> io::Result<()> {
    let flags = flags | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    let kind = Some("overlay");
    mount(kind, target, kind, flags, Some(&*lowerdir_option(layers)))?;
    Ok(())
}

/// Returns the mount option that names the layers. A backslash escapes colons, which separate layers, and commas, which
/// separate options.
fn lowerdir_option(layers: &[&Path]) -> OsString {
    let mut option = b"lowerdir=".to_vec();
    for (index, layer) in layers.iter().enumerate() {
        if index > 0 {
            option.push(b':');
        }
        for byte in layer.as_os_str().as_bytes() {
            if b":,\\".contains(byte) {
                option.push(b'\\');
            }
            option.push(*byte);
        }
    }
    OsString::from_vec(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(path: &str) -> SharedDirectory {
        SharedDirectory {
            source: Path::new("/").join(path),
            destination: path.into(),
        }
    }

    #[test]
    fn mounts_within_a_directory_come_after_it() {
        let points = [
            "/",
            "/usr/local/b",
            "/usr",
            "/usr/local",
            "/usrlocal",
            "/usr/local",
        ];
        let directories = [shared("usr"), shared("etc/ssl/certs")];
        let found = with_inner_mounts(&directories, &points.map(PathBuf::from));
        let expected = ["usr", "usr/local", "usr/local/b", "etc/ssl/certs"];
        assert_eq!(found, expected.map(shared));
    }

    #[test]
    fn no_path_becomes_another_option_or_layer() {
        let layers = [Path::new("/a:b,upperdir=c\\d"), Path::new("empty")];
        assert_eq!(
            lowerdir_option(&layers).to_str().unwrap(),
            r"lowerdir=/a\:b\,upperdir=c\\d:empty"
        );
    }
}
