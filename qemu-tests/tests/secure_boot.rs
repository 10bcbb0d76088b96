//! Secure Boot, with keys made for the story, and firmware that has none at first.

use build::esp;
use build::secure_boot::{Keys, enrolment};
use build::toolbox::Toolbox;
use build::variant::{Mib, Variant};
use qemu_tests::{Config, Node, bench};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the ESP begins on every disk that we build.
const ESP_AT: u64 = 1 << 20;

struct Signer {
    keys: Keys,
    folder: PathBuf,
    toolbox: Toolbox,
    size: Mib,
}

impl Signer {
    fn new(folder: &Path) -> Self {
        let project = &bench().project;
        let variant = Variant::load(project, "default").expect("the variant");
        let folder = folder.join("signed");
        let keys = Keys::generate(project, &folder.join("keys")).expect("keys");
        let toolbox = bench().toolbox.clone().with_share(&folder);
        Self { keys, folder, toolbox, size: variant.partitions.esp }
    }

    fn sign(&self, from: &Path, name: &str) -> PathBuf {
        let tests = Toolbox::for_tests(&bench().project).expect("the toolbox").with_share(&self.folder);
        let copy = self.folder.join(format!("unsigned-{name}"));
        fs::copy(from, &copy).expect("a copy");
        let to = self.folder.join(name);
        self.keys.sign(&tests, &copy, &to).unwrap_or_else(|error| panic!("{error:#}"));
        to
    }

    /// Puts an ESP with this loader and kernel image, and the keys, on the disk of a node that is off.
    fn install(&self, node: &Node, loader: &Path, uki: &Path) {
        let image = self.folder.join("esp.img");
        let keys = enrolment(&self.folder.join("keys"));
        esp::write(&self.toolbox, &image, self.size, loader, uki, &keys)
            .unwrap_or_else(|error| panic!("{error:#}"));
        let disk = File::options().write(true).open(node.disk_path()).expect("the disk");
        disk.write_all_at(&fs::read(&image).expect("the ESP"), ESP_AT).expect("the ESP on the disk");
    }
}

#[test]
fn signed_boots_unsigned_and_altered_do_not() {
    let mut node = Node::new(Config { secure_boot: true, ..Config::uefi() });
    let signer = Signer::new(&node.path(""));
    let real_uki = bench().artifacts.uki();
    let name = real_uki.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
    let unsigned_loader = bench().toolbox.root.join(esp::LOADER);
    let loader = signer.sign(&unsigned_loader, "loader.efi");
    let uki = signer.sign(&real_uki, &name);

    // The first boot gives the firmware its keys, and restarts; from then on only what is signed runs.
    signer.install(&node, &loader, &uki);
    node.start();
    node.wait_for("Secure Boot", Duration::from_secs(120), |node| {
        node.try_status().filter(|status| status.secure_boot == Some(true)).map(drop)
    });
    node.wait_until_healthy();
    node.power_off();

    let mut refused = |loader: &Path, uki: &Path, what: &str| {
        signer.install(&node, loader, uki);
        node.start();
        let said = node.wait_for(format!("{what} is refused"), Duration::from_secs(90), |node| {
            let console = node.console();
            ["Access Denied", "caisson:"].into_iter().find(|text| console.contains(text))
        });
        assert_eq!(said, "Access Denied", "{what} booted");
        node.cut_power();
    };
    refused(&loader, &real_uki, "an unsigned kernel image");
    refused(&unsigned_loader, &uki, "an unsigned loader");
    let mut altered = fs::read(&uki).expect("the kernel image");
    let at = altered.windows(11).position(|text| text == b"root=/dev/d").expect("the command line");
    altered[at] ^= 1;
    let folder = node_folder(&signer);
    let altered_uki = folder.join(&name);
    fs::write(&altered_uki, altered).expect("an altered kernel image");
    refused(&loader, &altered_uki, "an altered command line");

    signer.install(&node, &loader, &uki);
    node.start();
    node.wait_until_healthy();
}

fn node_folder(signer: &Signer) -> PathBuf {
    let folder = signer.folder.join("altered");
    fs::create_dir_all(&folder).expect("a folder");
    folder
}
