//! The unified kernel image: systemd's EFI stub with the kernel and its command line as PE sections (UAPI group: Unified Kernel
//! Image specification).

use anyhow::{Context, Result, bail, ensure};

const SECTION_HEADER: usize = 40;

/// Appends sections to an EFI stub, each at the next free page. Fails when the stub's headers have no room for them or it is
/// not a PE file; sections that overlap would be loaded by the firmware and then do nothing, without a message.
pub fn build(stub: &[u8], sections: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let pe = usize::try_from(u32_at(stub, 0x3c)?)?;
    ensure!(stub.get(pe..pe + 4) == Some(b"PE\0\0"), "the EFI stub is not a PE file");
    let count = usize::from(u16_at(stub, pe + 6)?);
    let optional = pe + 24;
    ensure!(u16_at(stub, optional)? == 0x20b, "the EFI stub is not a PE32+ file");
    let table = optional + usize::from(u16_at(stub, pe + 20)?);
    let section_alignment = usize::try_from(u32_at(stub, optional + 32)?)?;
    let file_alignment = usize::try_from(u32_at(stub, optional + 36)?)?;
    let headers = usize::try_from(u32_at(stub, optional + 60)?)?;
    let end_of_table = table + (count + sections.len()) * SECTION_HEADER;
    ensure!(
        end_of_table <= headers,
        "the EFI stub's headers have room for {headers} bytes, {} sections more need {end_of_table}",
        sections.len()
    );
    let mut address = 0;
    for index in 0..count {
        let header = table + index * SECTION_HEADER;
        let end = usize::try_from(u32_at(stub, header + 8)?)? + usize::try_from(u32_at(stub, header + 12)?)?;
        address = address.max(end);
    }
    let mut image = stub.to_vec();
    for (index, (name, data)) in sections.iter().enumerate() {
        if name.len() > 8 {
            bail!("the section name {name} is longer than 8 bytes");
        }
        address = address.next_multiple_of(section_alignment.max(4096));
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let offset = image.len();
        image.extend_from_slice(data);
        image.resize(image.len().next_multiple_of(file_alignment), 0);
        let mut header = Vec::with_capacity(SECTION_HEADER);
        header.extend(name.bytes());
        header.resize(8, 0);
        for value in [data.len(), address, image.len() - offset, offset] {
            header.extend(u32::try_from(value).context("the image is larger than 4 GiB")?.to_le_bytes());
        }
        header.resize(36, 0);
        header.extend(0x4000_0040u32.to_le_bytes()); // initialised data, readable
        let at = table + (count + index) * SECTION_HEADER;
        image[at..at + SECTION_HEADER].copy_from_slice(&header);
        address += data.len();
    }
    let count = u16::try_from(count + sections.len())?;
    image[pe + 6..pe + 8].copy_from_slice(&count.to_le_bytes());
    let size = u32::try_from(address.next_multiple_of(section_alignment.max(4096)))?;
    image[optional + 56..optional + 60].copy_from_slice(&size.to_le_bytes());
    Ok(image)
}

/// The data of a section, without padding.
pub fn section<'a>(image: &'a [u8], name: &str) -> Result<&'a [u8]> {
    let pe = usize::try_from(u32_at(image, 0x3c)?)?;
    ensure!(image.get(pe..pe + 4) == Some(b"PE\0\0"), "this is not a PE file");
    let table = pe + 24 + usize::from(u16_at(image, pe + 20)?);
    for index in 0..usize::from(u16_at(image, pe + 6)?) {
        let header = table + index * SECTION_HEADER;
        let found = image.get(header..header + 8).context("the PE file is cut short")?;
        if found.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
            let size = usize::try_from(u32_at(image, header + 8)?)?;
            let offset = usize::try_from(u32_at(image, header + 20)?)?;
            return offset
                .checked_add(size)
                .and_then(|end| image.get(offset..end))
                .context("the PE file is cut short");
        }
    }
    bail!("the PE file has no section {name}")
}

fn u16_at(data: &[u8], at: usize) -> Result<u16> {
    let bytes = data.get(at..at + 2).context("the PE file is cut short")?;
    Ok(u16::from_le_bytes(bytes.try_into()?))
}

fn u32_at(data: &[u8], at: usize) -> Result<u32> {
    let bytes = data.get(at..at + 4).context("the PE file is cut short")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest PE32+ file with one section and room for more headers.
    fn stub() -> Vec<u8> {
        let mut pe = vec![0; 0x600];
        let mut put = |at: usize, bytes: &[u8]| pe[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x3c, &0x80u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x86, &1u16.to_le_bytes());
        put(0x94, &0xf0u16.to_le_bytes());
        put(0x98, &0x20bu16.to_le_bytes());
        put(0x98 + 32, &4096u32.to_le_bytes());
        put(0x98 + 36, &512u32.to_le_bytes());
        put(0x98 + 60, &0x400u32.to_le_bytes());
        put(0x188, b".text\0\0\0");
        put(0x188 + 8, &0x123u32.to_le_bytes());
        put(0x188 + 12, &0x1000u32.to_le_bytes());
        put(0x188 + 20, &0x400u32.to_le_bytes());
        pe
    }

    #[test]
    fn what_is_put_in_comes_out_and_nothing_overlaps() {
        let image = build(&stub(), &[(".cmdline", b"quiet"), (".linux", &[9; 5000])]).unwrap();
        assert_eq!(section(&image, ".cmdline").unwrap(), b"quiet");
        assert_eq!(section(&image, ".linux").unwrap(), [9; 5000]);
        let address = |index: usize| u32_at(&image, 0x188 + index * SECTION_HEADER + 12).unwrap();
        assert_eq!((address(0), address(1), address(2)), (0x1000, 0x2000, 0x3000));
    }

    #[test]
    fn a_stub_without_room_is_refused() {
        let many: Vec<(&str, &[u8])> = vec![(".x", b""); 20];
        assert!(build(&stub(), &many).unwrap_err().to_string().contains("room"));
        assert!(build(b"MZ", &[]).is_err());
        assert!(section(&[0; 100], ".linux").is_err());
    }
}
