//! A zip archive in memory: the form in which CPython takes modules from a single descriptor.

fn word(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend_from_slice(&(value as u32).to_le_bytes());
}

fn half(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend_from_slice(&(value as u16).to_le_bytes());
}

/// The fields that a local header and a directory entry share.
fn description(bytes: &mut Vec<u8>, name: &str, content: &str) {
    half(bytes, 20); // version that reads it
    half(bytes, 0); // flags
    half(bytes, 0); // stored as it is
    half(bytes, 0); // time
    half(bytes, 0x21); // date: 1980-01-01
    word(bytes, crc32fast::hash(content.as_bytes()) as usize);
    word(bytes, content.len());
    word(bytes, content.len());
    half(bytes, name.len());
    half(bytes, 0); // no extra field
}

/// An archive of small files, stored uncompressed.
pub(super) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in files {
        let offset = bytes.len();
        bytes.extend_from_slice(b"PK\x03\x04");
        description(&mut bytes, name, content);
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(content.as_bytes());

        directory.extend_from_slice(b"PK\x01\x02");
        half(&mut directory, 20); // version that made it
        description(&mut directory, name, content);
        half(&mut directory, 0); // no comment
        half(&mut directory, 0); // first disk
        half(&mut directory, 0); // internal attributes
        word(&mut directory, 0); // external attributes
        word(&mut directory, offset);
        directory.extend_from_slice(name.as_bytes());
    }
    let start = bytes.len();
    bytes.extend_from_slice(&directory);
    bytes.extend_from_slice(b"PK\x05\x06");
    half(&mut bytes, 0); // this disk
    half(&mut bytes, 0); // the directory's disk
    half(&mut bytes, files.len());
    half(&mut bytes, files.len());
    word(&mut bytes, directory.len());
    word(&mut bytes, start);
    half(&mut bytes, 0); // no comment
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_begins_with_a_file_and_ends_with_the_directory_s_end() {
        let bytes = archive(&[("a.py", "x = 1\n")]);
        assert!(bytes.starts_with(b"PK\x03\x04"));
        // The checksum of that content, as zip computes it.
        assert_eq!(bytes[14..18], 0x8bf6_893b_u32.to_le_bytes());
        assert_eq!(&bytes[bytes.len() - 22..][..4], b"PK\x05\x06");
    }
}
