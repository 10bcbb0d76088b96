//! Finds the sources of the mozim that `Cargo.lock` names.

use std::path::Path;
use std::process::Command;

fn main() {
    let cargo = std::env::var_os("CARGO").expect("cargo sets it");
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", &std::env::var("TARGET").expect("cargo sets it")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let mozim =
        packages.iter().find(|package| package["name"] == "mozim").expect("host-agent depends on mozim");
    let manifest = Path::new(mozim["manifest_path"].as_str().expect("a path"));
    println!("cargo::rustc-env=MOZIM={}", manifest.with_file_name("src/lib.rs").display());
    println!("cargo::rerun-if-changed=../../Cargo.lock");
}
