//! What is in the image and under which terms: `sbom.spdx.json` (SPDX 2.3) and the licences that the image carries.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cache::{Entry, Key, files_below};
use crate::crates::{self, Crate};
use crate::guest::{GUEST_PACKAGES, Programs, Rust};
use crate::project::Project;
use crate::toolbox::Toolbox;

/// Debian packages whose files are in the image, whole or linked into a program, with their licences as SPDX expressions.
const BUNDLED: &[(&str, &str)] = &[
    ("linux-source-6.12", "GPL-2.0-only WITH Linux-syscall-note"),
    ("systemd-boot-efi", "LGPL-2.1-or-later"),
    ("busybox-static", "GPL-2.0-only"),
    ("ca-certificates", "MPL-2.0"),
    ("libc6-dev", "LGPL-2.1-or-later"),
    ("libgcc-14-dev", "GPL-3.0-or-later WITH GCC-exception-3.1"),
    ("libseccomp-dev", "LGPL-2.1-only"),
    ("libelf-dev", "LGPL-3.0-or-later OR GPL-2.0-or-later"),
    ("zlib1g-dev", "Zlib"),
    ("libzstd-dev", "BSD-3-Clause OR GPL-2.0-only"),
];

/// As [`BUNDLED`], from the toolbox for networks: `nft` and the libraries beside it.
const BUNDLED_NETWORK: &[(&str, &str)] = &[
    ("nftables", "GPL-2.0-only"),
    ("libnftables1", "GPL-2.0-only"),
    ("libnftnl11", "GPL-2.0-only AND GPL-2.0-or-later"),
    ("libmnl0", "LGPL-2.1-or-later"),
    ("libxtables12", "GPL-2.0-or-later"),
    ("libjansson4", "MIT"),
    ("libgmp10", "LGPL-3.0-or-later OR GPL-2.0-or-later"),
    ("libedit2", "BSD-3-Clause"),
    ("libbsd0", "BSD-3-Clause AND BSD-2-Clause AND ISC AND MIT"),
    ("libmd0", "BSD-3-Clause AND BSD-2-Clause AND ISC"),
    ("libtinfo6", "X11"),
    ("libc6", "LGPL-2.1-or-later"),
];

/// One part of the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub version: String,
    pub sha256: Option<String>,
    pub licence: String,
    /// Package URL (purl specification).
    pub url: String,
}

/// Collects every part and every licence: `parts.json` and `licences/`.
pub fn collect(
    project: &Project,
    toolbox: &Toolbox,
    network: &Toolbox,
    rust: &Rust,
    bundled: &[Programs],
    kernel: &Entry,
) -> Result<Entry> {
    let mut key = Key::new("licences 1")
        .text(&toolbox.id)
        .text(&network.id)
        .text(rust.version())
        .entry(kernel)
        .file(&project.sources.join("Cargo.lock"))?
        .file(&project.sources.join("Cargo.toml"))?;
    for (program, _) in bundled {
        key = key.entry(program);
    }
    for (name, licence) in BUNDLED.iter().chain(BUNDLED_NETWORK) {
        key = key.text(name).text(licence);
    }
    for guest in GUEST_PACKAGES {
        for folder in guest.folders() {
            key = key.file(&project.sources.join(folder).join("Cargo.toml"))?;
        }
    }
    project.cache.step("licences", "the parts of the image and their licences", key, |out| {
        let licences = out.join("licences");
        let texts = licences.join("crates");
        let roots: Vec<&str> = GUEST_PACKAGES.iter().map(|guest| guest.package).collect();
        let mut crates = crates::collect(&project.sources, &roots, &[], &texts)?;
        for (program, _) in bundled {
            let its: Vec<Crate> = serde_json::from_slice(&fs::read(program.path.join("crates.json"))?)?;
            for file in files_below(&program.path.join("texts"))? {
                fs::copy(&file, texts.join(file.file_name().unwrap_or_default()))?;
            }
            crates.extend(its);
        }
        crates.sort();
        crates.dedup();
        fs::write(licences.join("crates.txt"), index(&crates))?;
        for text in ["COPYING", "GPL-2.0"] {
            fs::create_dir_all(licences.join("linux"))?;
            fs::copy(kernel.path.join(text), licences.join("linux").join(text))?;
        }
        let mut parts: Vec<Part> = crates.into_iter().map(of_crate).collect();
        let ours = BUNDLED.iter().map(|part| (toolbox, part));
        for (toolbox, (name, licence)) in ours.chain(BUNDLED_NETWORK.iter().map(|part| (network, part))) {
            let package = toolbox.package(name)?;
            copy_copyright(toolbox, name, &licences.join("debian"))?;
            parts.push(Part {
                name: (*name).to_owned(),
                version: package.version.clone(),
                sha256: Some(package.sha256.clone()),
                licence: (*licence).to_owned(),
                url: format!("pkg:deb/debian/{name}@{}?arch=amd64", package.version),
            });
        }
        parts.push(rust.standard_library()?);
        parts.sort();
        fs::write(out.join("parts.json"), serde_json::to_vec_pretty(&parts)?)?;
        Ok(())
    })
}

fn of_crate(krate: Crate) -> Part {
    Part {
        url: format!("pkg:cargo/{}@{}", krate.name, krate.version),
        // Older crates write OR as a slash.
        licence: krate
            .licence
            .map_or_else(|| "NOASSERTION".to_owned(), |licence| licence.replace('/', " OR ")),
        name: krate.name,
        version: krate.version,
        sha256: krate.sha256,
    }
}

fn index(crates: &[Crate]) -> String {
    let mut text = String::from(
        "The crates in the programs of this image, their licences, and the texts in crates/.\n\n",
    );
    for krate in crates {
        let licence = krate.licence.as_deref().unwrap_or("not declared");
        text.push_str(&format!("{} {}: {licence}: {}\n", krate.name, krate.version, krate.texts.join(" ")));
    }
    text
}

fn copy_copyright(toolbox: &Toolbox, name: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    // The folder may be a link to that of another package from the same source; all is inside the tree.
    let copyright = toolbox.root.join("usr/share/doc").join(name).join("copyright");
    fs::copy(&copyright, to.join(name)).with_context(|| format!("{} is missing", copyright.display()))?;
    Ok(())
}

/// The document for `parts`; its name and date do not depend on when or where it is made.
pub fn document(variant: &str, version: &str, root_hash: &str, parts: &[Part]) -> Value {
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-image", "name": format!("caisson-{variant}"), "versionInfo": version,
        "downloadLocation": "NOASSERTION", "licenseConcluded": "NOASSERTION", "licenseDeclared": "Apache-2.0 OR MIT",
        "copyrightText": "NOASSERTION", "filesAnalyzed": false,
    })];
    let mut relations = vec![
        json!({"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-image"}),
    ];
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for part in parts {
        let plain: String = format!("{}-{}", part.name, part.version)
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
            .collect();
        let count = seen.entry(plain.clone()).or_default();
        *count += 1;
        let id = if *count == 1 { format!("SPDXRef-{plain}") } else { format!("SPDXRef-{plain}-{count}") };
        let mut package = json!({
            "SPDXID": id, "name": part.name, "versionInfo": part.version, "downloadLocation": "NOASSERTION",
            "licenseConcluded": "NOASSERTION", "licenseDeclared": part.licence, "copyrightText": "NOASSERTION", "filesAnalyzed": false,
            "externalRefs": [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": part.url}],
        });
        if let Some(sha256) = &part.sha256 {
            package["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": sha256}]);
        }
        packages.push(package);
        relations.push(json!({"spdxElementId": "SPDXRef-image", "relationshipType": "CONTAINS", "relatedSpdxElement": id}));
    }
    json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("caisson-{variant}-{version}"),
        "documentNamespace": format!("https://caisson.invalid/spdx/{variant}/{version}/{root_hash}"),
        "creationInfo": {"created": "2026-11-01T00:00:00Z", "creators": ["Tool: cargo-caisson"]},
        "packages": packages, "relationships": relations,
    })
}
