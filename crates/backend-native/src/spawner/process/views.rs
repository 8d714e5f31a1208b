//! Files that many sandboxes share, each through file systems of its own.
//!
//! The host's `/usr`, an unpacked root, the skeleton around them and the guest are the same files for every sandbox.
//! Mounted as they are, they would have the same inodes for all: a program could watch with inotify or dnotify what
//! the host and other sandboxes open, and hold locks that the others wait for. So each sandbox gets read-only
//! overlays of them. Watches and locks are kept with the overlay's inodes, which no other sandbox has; the pages of the
//! files are still the same for all.
//!
//! The overlays are mounted by the process that makes the container, in a mount namespace of its own that ends with
//! that process. If the kernel refuses an overlay (over two others, over something that is mounted within a user's
//! namespace), the directory is mounted as it is, and [`Views::shared`] reports it.

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
use crate::rootfs::{self, CERTIFICATES, GUEST, Share};
use crate::spawner::message::NewSandbox;

/// The skeleton around the host's programs: mount points and `/etc`.
const PROGRAMS: &str = "programs";

/// The layer above every root; it holds the guest.
const AGENT: &str = "agent";

/// For each sandbox in the host's network, the layer above that; it holds the host's names.
const NAMES: &str = "names";

/// The second layer if there is only one: the kernel requires two.
const EMPTY: &str = "empty";

/// Mount point of a sandbox's root, in the namespace of the process that makes it.
const VIEW: &str = "view";

const DEVICES: &str = "/dev";

/// How something that is shared is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Overlay,
    /// As it is, where the kernel refuses an overlay.
    Bind,
}

#[derive(Debug)]
struct SharedPlace {
    share: Share,
    means: Means,
}

impl SharedPlace {
    fn of(share: Share) -> Self {
        let means = possible_over(&share.source);
        Self { share, means }
    }
}

/// The layers that roots are made of, and how each sandbox gets to see them.
#[derive(Debug)]
pub(super) struct Views {
    /// A file system in memory, which holds the directories above.
    directory: PathBuf,
    /// The host's directories in the skeleton; each before those within it.
    places: Vec<SharedPlace>,
    skeleton: Means,
    unpacked: Means,
    /// None for an ordinary user, whose overlays have no devices.
    devices: Option<Means>,
    identity: Identity,
    /// Whether the agent's layer holds certificates.
    has_certificates: bool,
}

impl Views {
    /// Makes the layers, and finds out over which of them the kernel allows an overlay.
    pub(super) fn prepare(
        directory: &Path,
        host: &Path,
        roots: Option<&Path>,
        identity: Identity,
    ) -> io::Result<Self> {
        make_layers(directory)?;
        rootfs::build(host, &directory.join(PROGRAMS))?;
        let shares = with_inner_mounts(&rootfs::shares(host), &mount_points()?);
        // Layers are named from here, as in [`Self::enter`].
        std::env::set_current_dir(directory)?;
        let views = Self {
            directory: directory.to_owned(),
            // A mount that another one hides cannot be reached, on the host either.
            places: shares
                .into_iter()
                .filter(|share| share.source.exists())
                .map(SharedPlace::of)
                .collect(),
            skeleton: possible_over(Path::new(PROGRAMS)),
            unpacked: roots
                .filter(|roots| roots.is_dir())
                .map_or(Means::Overlay, possible_over),
            devices: (identity == Identity::Root)
                .then(|| possible_over_devices([Some(directory), roots])),
            identity,
            has_certificates: false,
        };
        std::env::set_current_dir("/")?;
        Ok(views)
    }

    /// Gives sandboxes that are made from now on this guest.
    pub(super) fn set_guest(&self, guest: &Path) -> io::Result<()> {
        let inside = self
            .directory
            .join(AGENT)
            .join(GUEST.trim_start_matches('/'));
        let unfinished = inside.with_extension("new");
        if let Some(parent) = inside.parent() {
            fs::create_dir_all(parent)?;
            fs::set_permissions(parent, Permissions::from_mode(0o755))?;
        }
        fs::copy(guest, &unfinished)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o755))?;
        // Sandboxes that are there keep the file that they run.
        fs::rename(unfinished, inside)
    }

    /// Gives sandboxes that are made from now on these certificates.
    pub(super) fn set_certificates(&mut self, certificates: Option<&str>) -> io::Result<()> {
        let layer = self.directory.join(AGENT);
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

    /// The directories whose files sandboxes have as they are, and so share with the host and each other.
    pub(super) fn shared(&self) -> Vec<PathBuf> {
        let named = [
            (Some(self.skeleton), "/"),
            (Some(self.unpacked), "the roots of `images.root`"),
            (self.devices, DEVICES),
        ];
        let named = named
            .into_iter()
            .filter_map(|(means, name)| Some((means?, Path::new(name))));
        let places = self
            .places
            .iter()
            .map(|place| (place.means, place.share.source.as_path()));
        named
            .chain(places)
            .filter(|(means, _)| *means == Means::Bind)
            .map(|(_, path)| path.to_owned())
            .collect()
    }

    /// Whether files of a sandbox are shared as they are, other than the devices of an ordinary user.
    pub(super) fn is_shared(&self, sandbox: &NewSandbox) -> bool {
        let own = match &sandbox.root {
            Some(_) => vec![self.unpacked],
            None => self.places.iter().map(|place| place.means).collect(),
        };
        let own = own.into_iter().chain([self.skeleton]);
        own.chain(self.devices).any(|means| means == Means::Bind)
    }

    /// Returns the path at which the process that has [entered](Self::enter) a view finds its root.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join(VIEW)
    }

    /// Makes the layer that no other sandbox has, where one is needed.
    pub(super) fn add(&self, sandbox: &NewSandbox) -> io::Result<()> {
        if !sandbox.host_network {
            return Ok(());
        }
        rootfs::name_hosts(Path::new("/etc"), &self.names(&sandbox.id))
    }

    /// Removes the layer that no other sandbox has, if there is one.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_dir_all(self.names(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn names(&self, id: &str) -> PathBuf {
        self.directory.join(NAMES).join(id)
    }

    /// Takes the calling process to a mount namespace in which the sandbox's root is mounted, and the device files
    /// are the sandbox's own.
    pub(super) fn enter(&self, sandbox: &NewSandbox) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // The options of a mount can be read in the sandbox: so they name no directory of this instance.
        std::env::set_current_dir(&self.directory)?;
        let view = Path::new(VIEW);
        let names = Path::new(NAMES).join(&sandbox.id);
        let (base, means) = match &sandbox.root {
            Some(root) => (root.as_path(), self.unpacked),
            None => (Path::new(PROGRAMS), self.skeleton),
        };
        let layers = [names.as_path(), Path::new(AGENT), base];
        let needed = if sandbox.host_network { 0 } else { 1 };
        show(means, &layers[needed..], view)?;
        if sandbox.root.is_none() {
            for place in &self.places {
                let layers = [place.share.source.as_path(), Path::new(EMPTY)];
                show_one(place.means, layers, &view.join(&place.share.destination))?;
            }
        }
        self.mount_writable(sandbox, view)?;
        if self.devices == Some(Means::Overlay) {
            let layers = [Path::new(DEVICES), Path::new(EMPTY)];
            overlay(&layers, Path::new(DEVICES), MsFlags::MS_NOEXEC)?;
        }
        std::env::set_current_dir("/")
    }

    /// Mounts the places that user code may write to, each by one system call. libcontainer makes hundreds for a
    /// mount, to check its path.
    fn mount_writable(&self, sandbox: &NewSandbox, view: &Path) -> io::Result<()> {
        let (root, user) = self.identity.owners(&sandbox.id);
        let places = [
            ("sandbox", user, "755", sandbox.sandbox_bytes),
            ("tmp", root, "1777", sandbox.tmp_bytes),
        ];
        for (name, owner, mode, size) in places {
            let options = format!("mode={mode},uid={owner},gid={owner},size={size}");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            let kind = Some("tmpfs");
            mount(Some(name), &view.join(name), kind, flags, Some(&*options))?;
        }
        Ok(())
    }
}

fn make_layers(directory: &Path) -> io::Result<()> {
    mounts::in_memory(directory)?;
    for name in [PROGRAMS, AGENT, NAMES, EMPTY, VIEW] {
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

/// Adds the mounts within each directory, which an overlay of it leaves out, behind it.
fn with_inner_mounts(shares: &[Share], mount_points: &[PathBuf]) -> Vec<Share> {
    let mut all = Vec::new();
    for share in shares {
        let mut inner: Vec<PathBuf> = mount_points
            .iter()
            .filter(|point| point.starts_with(&share.source) && **point != share.source)
            .cloned()
            .collect();
        inner.sort();
        inner.dedup();
        all.push(share.clone());
        all.extend(inner.into_iter().filter_map(|source| {
            let within = source.strip_prefix(&share.source).ok()?;
            let destination = share.destination.join(within);
            Some(Share {
                source,
                destination,
            })
        }));
    }
    all
}

/// Finds out whether the kernel allows an overlay over a directory, by mounting one.
fn possible_over(directory: &Path) -> Means {
    let view = Path::new(VIEW);
    let tried = show_one(Means::Overlay, [directory, Path::new(EMPTY)], view);
    match tried.and_then(|()| mounts::detach(view)) {
        Ok(()) => Means::Overlay,
        Err(error) => {
            log::debug!(directory:% = directory.display(), error:%; "no overlay is possible");
            Means::Bind
        }
    }
}

/// Like [`possible_over`]; but an overlay would hide what is used below.
fn possible_over_devices(used: [Option<&Path>; 2]) -> Means {
    let mut used = used.into_iter().flatten();
    if used.any(|path| path.starts_with(DEVICES)) {
        return Means::Bind;
    }
    possible_over(Path::new(DEVICES))
}

/// Mounts the first of two layers; the other one is empty.
fn show_one(means: Means, layers: [&Path; 2], target: &Path) -> io::Result<()> {
    match means {
        Means::Overlay => overlay(&layers, target, MsFlags::MS_NODEV),
        Means::Bind => mounts::bind(layers[0], target),
    }
}

/// Mounts layers upon each other, the topmost first.
fn show(means: Means, layers: &[&Path], target: &Path) -> io::Result<()> {
    let [upper @ .., base] = layers else {
        return Ok(());
    };
    if means == Means::Overlay {
        return overlay(layers, target, MsFlags::MS_NODEV);
    }
    mounts::bind(base, target)?;
    for layer in upper.iter().rev() {
        bind_files(layer, target)?;
    }
    Ok(())
}

/// Mounts the files of a layer over those of the same names.
fn bind_files(layer: &Path, target: &Path) -> io::Result<()> {
    for entry in fs::read_dir(layer)? {
        let entry = entry?;
        let inside = target.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            bind_files(&entry.path(), &inside)?;
        } else if inside.exists() || !inside.ends_with(CERTIFICATES.trim_start_matches('/')) {
            // A root that was unpacked by an earlier version has no place for certificates.
            mounts::bind(&entry.path(), &inside)?;
        }
    }
    Ok(())
}

/// Mounts a read-only overlay.
fn overlay(layers: &[&Path], target: &Path, flags: MsFlags) -> io::Result<()> {
    let flags = flags | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    let kind = Some("overlay");
    mount(kind, target, kind, flags, Some(&*lower(layers)))?;
    Ok(())
}

/// The option that names the layers. Colons and commas part them and options, unless there is a backslash before.
fn lower(layers: &[&Path]) -> OsString {
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

    fn share(path: &str) -> Share {
        Share {
            source: Path::new("/").join(path),
            destination: path.into(),
        }
    }

    #[test]
    fn what_is_mounted_within_a_directory_comes_behind_it() {
        let points = [
            "/",
            "/usr/local/b",
            "/usr",
            "/usr/local",
            "/usrlocal",
            "/usr/local",
        ];
        let shares = [share("usr"), share("etc/ssl/certs")];
        let found = with_inner_mounts(&shares, &points.map(PathBuf::from));
        let expected = ["usr", "usr/local", "usr/local/b", "etc/ssl/certs"];
        assert_eq!(found, expected.map(share));
    }

    #[test]
    fn no_path_becomes_another_option_or_layer() {
        let layers = [Path::new("/a:b,upperdir=c\\d"), Path::new("empty")];
        assert_eq!(
            lower(&layers).to_str().unwrap(),
            r"lowerdir=/a\:b\,upperdir=c\\d:empty"
        );
    }
}
