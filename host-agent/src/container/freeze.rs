//! Whether a container is paused. The kernel's freezer of its processes' group (cgroup-v2.rst, cgroup.freeze) is the one place that says so:
//! an agent that is started again finds it there, and a new run of the container has a new group.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::container::record::Places;

fn file(places: &Places) -> PathBuf {
    places.group.join("payload/cgroup.freeze")
}

/// From now on its processes do nothing, or go on. Those that are to end by SIGKILL do so either way.
pub fn set(places: &Places, is_paused: bool) -> io::Result<()> {
    fs::write(file(places), if is_paused { "1" } else { "0" })
}

pub fn is_paused(places: &Places) -> bool {
    fs::read_to_string(file(places)).is_ok_and(|text| text.trim() == "1")
}
