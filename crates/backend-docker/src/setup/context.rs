//! The inputs of a build: the archive of the build context, and a hash of all inputs.

use std::io;

use isol8_protocol::{SANDBOX_GID, SANDBOX_UID};
use sha2::{Digest as _, Sha256};

use super::base;

/// Name of a file of `images/`, and its content.
macro_rules! file {
    ($path:literal) => {
        ($path, include_str!(concat!("../../../../images/", $path)))
    };
}

/// The files of a build context that are the same in every build: the Dockerfile, the script that makes a root for all
/// runtimes, and the installation scripts that both of them call.
const FILES: [(&str, &str); 11] = [
    file!("Dockerfile"),
    file!("root"),
    file!("install/common"),
    file!("install/debian"),
    file!("install/pypi"),
    file!("install/bash"),
    file!("install/python"),
    file!("install/uv"),
    file!("install/node"),
    file!("install/bun"),
    file!("install/deno"),
];

const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// All inputs that determine the content of an image.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) base: &'a str,
    pub(super) bootstrap: bool,
    pub(super) certificates: &'a [String],
}

impl Inputs<'_> {
    /// Returns a hash of the inputs, which is the same on every machine.
    pub(super) fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            // The length of each part is included, so that different lists of parts never hash the same bytes.
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        };
        for (path, content) in FILES {
            add(path);
            add(content);
        }
        add(&SANDBOX_UID.to_string());
        add(&SANDBOX_GID.to_string());
        add(self.base);
        add(&self.bootstrap.to_string());
        base::BOOTSTRAP.iter().for_each(|argument| add(argument));
        self.certificates.iter().for_each(|text| add(text));
        super::hex(&hash.finalize())
    }

    /// Returns the build context: the [`FILES`], and `ca/` with one file for each certificate.
    pub(super) fn archive(&self) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut directory = tar::Header::new_gnu();
        directory.set_entry_type(tar::EntryType::Directory);
        directory.set_mode(0o755);
        directory.set_size(0);
        archive.append_data(&mut directory, "ca/", io::empty())?;
        for (path, content) in FILES {
            append(&mut archive, path, content)?;
        }
        for (number, certificate) in self.certificates.iter().enumerate() {
            append(&mut archive, &format!("ca/{number:04}.crt"), certificate)?;
        }
        archive.into_inner()
    }
}

pub(super) fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    content: &str,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content.as_bytes())
}

/// Splits a bundle into its certificates: Debian's trust store requires one file for each certificate. Text between
/// certificates, which bundles use for names, and repeated certificates are left out.
pub(super) fn certificates(bundle: &str) -> Vec<String> {
    let mut certificates: Vec<String> = Vec::new();
    for part in bundle.split(PEM_BEGIN).skip(1) {
        let Some((body, _)) = part.split_once(PEM_END) else {
            continue;
        };
        let certificate = format!("{PEM_BEGIN}{body}{PEM_END}\n");
        if !certificates.contains(&certificate) {
            certificates.push(certificate);
        }
    }
    certificates
}

/// Returns the text of the Dockerfile.
pub(super) fn dockerfile() -> &'static str {
    FILES[0].1
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Command;

    use isol8_api::Runtime;

    use super::*;

    fn inputs(certificates: &[String]) -> Inputs<'_> {
        Inputs {
            base: "debian:bookworm-slim",
            bootstrap: false,
            certificates,
        }
    }

    fn certificate(body: &str) -> String {
        format!("{PEM_BEGIN}\n{body}\n{PEM_END}\n")
    }

    #[test]
    fn a_bundle_is_split_into_its_certificates() {
        let (one, two) = (certificate("b25l"), certificate("dHdv"));
        let bundle = format!("# One\n{one}\n# Two\n{two}{one}{PEM_BEGIN}\ncut off");
        assert_eq!(certificates(&bundle), [one, two]);
        assert!(certificates("").is_empty());
    }

    #[test]
    fn the_hash_depends_on_every_input() {
        let none = inputs(&[]).hash();
        assert_eq!(none, inputs(&[]).hash());
        assert_eq!(none.len(), 64);
        let trusted = [certificate("b25l")];
        let others = [
            inputs(&trusted).hash(),
            Inputs {
                bootstrap: true,
                ..inputs(&[])
            }
            .hash(),
            Inputs {
                base: "debian:12",
                ..inputs(&[])
            }
            .hash(),
        ];
        assert!(others.iter().all(|other| *other != none));
    }

    #[test]
    fn the_archive_holds_the_files_of_every_build_and_the_certificates() {
        let trusted = [certificate("b25l"), certificate("dHdv")];
        let bytes = inputs(&trusted).archive().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut files = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            files.push((path, content));
        }
        let mut expected = vec![("ca/", "")];
        expected.extend(FILES);
        expected.extend([("ca/0000.crt", &*trusted[0]), ("ca/0001.crt", &*trusted[1])]);
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (&**path, &**text))
            .collect();
        assert_eq!(files, expected);
    }

    /// Returns the installation scripts by their paths in the build context.
    fn scripts() -> impl Iterator<Item = (&'static str, &'static str)> {
        FILES
            .into_iter()
            .filter(|(path, _)| path.starts_with("install/"))
    }

    #[test]
    fn no_installation_script_is_missing_in_the_context() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../images/install");
        let mut there: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| format!("install/{}", entry.unwrap().file_name().display()))
            .collect();
        let mut packed: Vec<_> = scripts().map(|(path, _)| path).collect();
        there.sort();
        packed.sort_unstable();
        assert_eq!(packed, there);
    }

    #[test]
    fn the_dockerfile_and_the_script_of_a_root_call_every_installation_script() {
        let root = FILES.iter().find(|(path, _)| *path == "root").unwrap().1;
        // The loop of the root's script has the names of these in one line.
        let fetched = ["node", "bun", "deno"];
        assert!(root.contains("for runtime in node bun deno; do"));
        for (path, _) in scripts() {
            let name = path.trim_start_matches("install/");
            // The other scripts call these two.
            if ["debian", "pypi"].contains(&name) {
                continue;
            }
            assert!(
                dockerfile().contains(&format!("bash /.isol8/{path} ")),
                "{path}"
            );
            let called = fetched.contains(&name) || root.contains(&format!("\ninstall {name}\n"));
            assert!(called, "{path}");
        }
    }

    #[test]
    fn every_script_can_be_parsed_and_ends_at_a_command_that_fails() {
        for (path, script) in FILES.into_iter().skip(1) {
            assert!(script.contains("\nset -euo pipefail\n"), "{path}");
            let parsed = Command::new("bash").args(["-n", "-c", script]).output();
            let parsed = parsed.unwrap();
            assert!(parsed.status.success(), "{path}: {parsed:?}");
        }
    }

    #[test]
    fn the_dockerfile_has_a_stage_for_every_runtime() {
        for runtime in Runtime::ALL {
            assert!(super::super::stage_of(runtime).is_some(), "{runtime}");
        }
        let cheapest = super::super::runtimes().first().copied();
        assert_eq!(cheapest, Some(Runtime::Bash));
    }

    #[test]
    fn every_forwarded_variable_of_an_index_is_an_argument_of_the_dockerfile() {
        for name in ["PIP_INDEX_URL", "NPM_CONFIG_REGISTRY"] {
            assert!(dockerfile().contains(&format!("\nARG {name}\n")), "{name}");
        }
    }
}
