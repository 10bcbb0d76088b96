//! Bottlerocket's net.toml: what is read is a valid value, and what is not is told with where it is.

use settings::{UserData, from_json};

pub(crate) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match UserData::read_net_toml(text) {
        Ok(data) => assert_eq!(from_json(&data.settings.to_json()).as_ref(), Ok(&data.settings)),
        Err(mistakes) => {
            let told = mistakes.to_string();
            assert!(!told.is_empty() && told.len() <= 64 << 10, "{} bytes of mistakes", told.len());
        }
    }
}

/// One of each version and kind.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "version = 1\n[eno1]\nprimary = true\ndhcp4 = true\ndhcp6 = {enabled = true, optional = true}\n",
        "version = 2\n[eno1]\n[eno1.static4]\naddresses = [\"10.0.0.10/24\"]\n[[eno1.route]]\nto = \"default\"\nvia = \"10.0.0.1\"\nroute-metric = 100\n",
        "version = 3\n[\"52:54:00:12:34:56\"]\ndhcp4 = true\n[bond0]\nkind = \"bond\"\nmode = \"active-backup\"\ninterfaces = [\"eno1\", \"eno2\"]\nmin-links = 1\n[bond0.monitoring]\nmiimon-frequency-ms = 100\nmiimon-updelay-ms = 200\nmiimon-downdelay-ms = 200\n[vlan42]\nkind = \"vlan\"\ndevice = \"bond0\"\nid = 42\ndhcp4 = true\n",
        "version = 3\n[bond0]\nkind = \"bond\"\nmode = \"active-backup\"\ninterfaces = [\"eno1\"]\n[bond0.monitoring]\narpmon-interval-ms = 200\narpmon-validate = \"all\"\narpmon-targets = [\"10.0.0.1\"]\n",
    ]
    .iter()
    .map(|text| text.as_bytes().to_vec())
    .collect()
}
