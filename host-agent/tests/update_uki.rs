//! The kernel image of an update: from a repository to the ESP.

// Each test file uses its own part of the shared code.
#[allow(dead_code)]
mod repository;

use host_agent::update::{Entries, Install, Partition, Progress, Running, Slots};
use repository::{Answer, World, root_hash};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A kernel image: much that does not change, and what names a root and a version.
fn image(root: &str, version: &str) -> Vec<u8> {
    let mut state = 7u32;
    let mut code: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(300_001)
    .collect();
    code.splice(1000..1000, format!("root {root} of {version}").into_bytes());
    code
}

/// A node of version 1.0.0 that looks into a repository with 1.1.0.
struct Node {
    world: World,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Node {
    fn new(newer: &[u8]) -> Self {
        let world = World::new();
        for (version, image) in [("1.0.0", &image(&root_hash(), "1.0.0")[..]), ("1.1.0", newer)] {
            world.publisher.publish_image(&world.path("served"), version, image, 1);
        }
        let node = Self { world, asked: Arc::default() };
        node.serve(|_| Answer::File);
        node.boots(&image(&root_hash(), "1.0.0"));
        node
    }

    /// What is on the ESP.
    fn boots(&self, image: &[u8]) {
        fs::create_dir_all(self.world.path("esp")).unwrap();
        fs::write(self.world.path("esp/caisson_1.0.0.efi"), image).unwrap();
    }

    fn serve(&self, answer: impl Fn(&str) -> Answer + Send + 'static) {
        let asked = self.asked.clone();
        self.world.serve(Box::new(move |path| {
            asked.lock().unwrap().push(path.to_owned());
            answer(path)
        }));
    }

    /// What was asked for of the kernel image, since this was asked last.
    fn asked(&self) -> Vec<String> {
        let all = std::mem::take(&mut *self.asked.lock().unwrap());
        all.iter()
            .filter_map(|path| path.split_once(".caisson-default-x86_64-1.1.0")?.1.to_owned().into())
            .collect()
    }

    fn install(&self) -> Result<(), String> {
        let nowhere = || Partition { device: PathBuf::new(), number: 1, size: 0 };
        let slots = Slots {
            disk: PathBuf::new(),
            disk_size: 0,
            esp: nowhere(),
            running_root: PathBuf::new(),
            running_slot: nowhere(),
            running_verity: nowhere(),
            spare: 'b',
            spare_root: nowhere(),
            spare_verity: nowhere(),
        };
        let checked = self.world.check(json!({}))?;
        let entries = Entries::in_folder(&self.world.path("esp"));
        let own = entries.of("1.0.0")?.unwrap();
        let install = Install {
            slots: &slots,
            running: Running { hash: root_hash().parse().unwrap(), blocks: 2 },
            update: checked.update.as_ref().unwrap(),
            files: checked.files,
            progress: Progress::default(),
            resumes: false,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(install.uki(&entries, &own)).map(drop)
    }

    fn staged(&self) -> Option<Vec<u8>> {
        fs::read(self.world.path("esp/caisson_1.1.0.efi.staged")).ok()
    }

    fn esp(&self) -> Vec<String> {
        let names = fs::read_dir(self.world.path("esp")).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn it_comes_as_a_patch_of_the_one_that_runs() {
    let new = image(&root_hash(), "1.1.0");
    let node = Node::new(&new);
    node.install().unwrap();
    assert!(node.staged().unwrap() == new);
    assert_eq!(node.asked(), [".efi.from-1.0.0.patch"]);
}

/// Signed with other keys, say: what is there is not what a patch is for.
#[test]
fn it_comes_whole_where_another_runs() {
    let new = image(&root_hash(), "1.1.0");
    let node = Node::new(&new);
    let mut other = image(&root_hash(), "1.0.0");
    other[200_000] ^= 1;
    node.boots(&other);
    node.install().unwrap();
    assert!(node.staged().unwrap() == new);
    assert_eq!(node.asked(), [".efi"]);
}

#[test]
fn what_is_wrong_leaves_nothing_on_the_esp_and_the_next_attempt_works() {
    let new = image(&root_hash(), "1.1.0");
    let node = Node::new(&new);
    let folder = node.world.path("served");
    let damaged = move |path: &str| match fs::read(folder.join(path.trim_start_matches('/'))) {
        Ok(mut data) if path.contains(".efi") => {
            let end = data.len() - 1;
            data[end / 2] ^= 1;
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", data.len());
            Answer::Raw([head.into_bytes(), data].concat())
        }
        _ => Answer::File,
    };
    node.serve(damaged);
    let error = node.install().unwrap_err();
    assert!(error.contains(".efi.from-1.0.0.patch: "), "{error}");
    node.boots(b"another");
    let error = node.install().unwrap_err();
    assert!(error.contains("it is not the one that was signed: its publisher has to add"), "{error}");
    assert_eq!(node.esp(), ["caisson_1.0.0.efi"]);
    node.serve(|_| Answer::File);
    node.install().unwrap();
    assert!(node.staged().unwrap() == new);
}

#[test]
fn one_that_boots_another_root_is_refused() {
    let node = Node::new(&image(&"ab".repeat(32), "1.1.0"));
    let error = node.install().unwrap_err();
    assert!(error.contains(&format!("it does not boot the root {}", root_hash())), "{error}");
    assert_eq!(node.esp(), ["caisson_1.0.0.efi"]);
}
