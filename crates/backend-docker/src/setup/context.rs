//! The inputs of a build: the archive of the build context, and a hash of all inputs.

use std::io;

use isol8_protocol::{SANDBOX_GID, SANDBOX_UID};
use sha2::{Digest as _, Sha256};

use super::base;

pub(super) const DOCKERFILE: &str = include_str!("../../../../images/Dockerfile");

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
        add(DOCKERFILE);
        add(&SANDBOX_UID.to_string());
        add(&SANDBOX_GID.to_string());
        add(self.base);
        add(&self.bootstrap.to_string());
        base::BOOTSTRAP.iter().for_each(|argument| add(argument));
        self.certificates.iter().for_each(|text| add(text));
        super::hex(&hash.finalize())
    }

    /// Returns the build context: the Dockerfile, and `ca/` with one file for each certificate.
    pub(super) fn archive(&self) -> io::Result<Vec<u8>> {
        self.archive_with("Dockerfile", DOCKERFILE)
    }

    /// Returns the build context with another file in place of the Dockerfile.
    pub(super) fn archive_with(&self, name: &str, content: &str) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut directory = tar::Header::new_gnu();
        directory.set_entry_type(tar::EntryType::Directory);
        directory.set_mode(0o755);
        directory.set_size(0);
        archive.append_data(&mut directory, "ca/", io::empty())?;
        append(&mut archive, name, content)?;
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

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
    fn the_archive_holds_the_dockerfile_and_the_certificates() {
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
        let expected = [
            ("ca/".to_owned(), String::new()),
            ("Dockerfile".to_owned(), DOCKERFILE.to_owned()),
            ("ca/0000.crt".to_owned(), trusted[0].clone()),
            ("ca/0001.crt".to_owned(), trusted[1].clone()),
        ];
        assert_eq!(files, expected);
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
            assert!(DOCKERFILE.contains(&format!("\nARG {name}\n")), "{name}");
        }
    }
}
