//! A zip archive in memory: CPython can import modules from one through a single descriptor.

fn put_u32(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend_from_slice(&(value as u32).to_le_bytes());
}

fn put_u16(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend_from_slice(&(value as u16).to_le_bytes());
}

/// Appends the fields that a local header and a directory entry have in common.
fn description(bytes: &mut Vec<u8>, name: &str, content: &str) {
    put_u16(bytes, 20); // version that reads it
    put_u16(bytes, 0); // flags
    put_u16(bytes, 0); // stored as it is
    put_u16(bytes, 0); // time
    put_u16(bytes, 0x21); // date: 1980-01-01
    put_u32(bytes, crc32fast::hash(content.as_bytes()) as usize);
    put_u32(bytes, content.len());
    put_u32(bytes, content.len());
    put_u16(bytes, name.len());
    put_u16(bytes, 0); // no extra field
}

/// Returns an archive of small files, stored uncompressed.
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
        put_u16(&mut directory, 20); // version that made it
        description(&mut directory, name, content);
        put_u16(&mut directory, 0); // no comment
        put_u16(&mut directory, 0); // first disk
        put_u16(&mut directory, 0); // internal attributes
        put_u32(&mut directory, 0); // external attributes
        put_u32(&mut directory, offset);
        directory.extend_from_slice(name.as_bytes());
    }
    let start = bytes.len();
    bytes.extend_from_slice(&directory);
    bytes.extend_from_slice(b"PK\x05\x06");
    put_u16(&mut bytes, 0); // this disk
    put_u16(&mut bytes, 0); // the directory's disk
    put_u16(&mut bytes, files.len());
    put_u16(&mut bytes, files.len());
    put_u32(&mut bytes, directory.len());
    put_u32(&mut bytes, start);
    put_u16(&mut bytes, 0); // no comment
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
