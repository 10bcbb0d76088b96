//! Bottlerocket's net.toml, versions 1 to 3: interfaces as top-level tables, beside `version`. They are `settings.network.interfaces`
//! here, and mistakes name them so.

use serde_json::{Map, Value, json};

use super::make_whole;
use crate::parse::{Mistake, Mistakes};
use crate::shape::{DHCP, MONITORING, ROUTE, STATIC, Shape, check_shape};

const VERSION_1: &Shape = &Shape::Table(&[("primary", Shape::Switch), ("dhcp4", DHCP), ("dhcp6", DHCP)]);

const VERSION_2: &Shape = &Shape::Table(&[
    ("primary", Shape::Switch),
    ("dhcp4", DHCP),
    ("dhcp6", DHCP),
    ("static4", STATIC),
    ("static6", STATIC),
    ("route", ROUTE),
]);

const VERSION_3: &Shape = &Shape::Table(&[
    ("primary", Shape::Switch),
    ("dhcp4", DHCP),
    ("dhcp6", DHCP),
    ("static4", STATIC),
    ("static6", STATIC),
    ("route", ROUTE),
    ("kind", Shape::Choice(&["bond", "vlan"])),
    ("mode", Shape::Choice(&["active-backup"])),
    ("interfaces", Shape::Texts),
    ("min-links", Shape::Number),
    ("monitoring", MONITORING),
    ("device", Shape::Text),
    ("id", Shape::Number),
]);

/// From the file's top level, whose keys have `settings.network.interfaces` before them in `Mistake`s, to a tree of settings.
pub(crate) fn read(mut top: Map<String, Value>, key: &str) -> Result<Value, Mistakes> {
    let wrong = |reason: &str| Mistakes::one(&format!("{key}.version"), reason);
    let interface = match top.remove("version") {
        Some(version) => match version.as_u64() {
            Some(1) => VERSION_1,
            Some(2) => VERSION_2,
            Some(3) => VERSION_3,
            _ => return Err(wrong("there are versions 1, 2 and 3 of net.toml: write version = 3")),
        },
        None => return Err(wrong("missing: net.toml begins with its version, such as version = 3")),
    };
    top.values_mut().for_each(make_whole);
    let (mut mistakes, interfaces) = (Vec::new(), Value::Object(top));
    check_shape(key, &interfaces, &Shape::Map(interface), &mut mistakes);
    match mistakes.is_empty() {
        true => Ok(json!({"network": {"interfaces": interfaces}})),
        false => Err(Mistakes(mistakes.into_iter().map(of_later_version).collect())),
    }
}

/// Whoever takes an example of a newer version is to learn which one.
fn of_later_version(mistake: Mistake) -> Mistake {
    let name = mistake.key.rsplit('.').next().unwrap_or_default();
    let knows = |shape: &Shape| matches!(shape, Shape::Table(fields) if fields.iter().any(|(known, _)| *known == name));
    let version = [(2, VERSION_2), (3, VERSION_3)].into_iter().find(|(_, shape)| knows(shape));
    match version {
        Some((version, _)) if mistake.reason.starts_with("unknown key") => {
            let reason = format!("this came with version {version} of net.toml: write version = {version}");
            Mistake { reason, ..mistake }
        }
        _ => mistake,
    }
}

#[cfg(test)]
mod tests {
    use crate::{Settings, UserData};
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Result<Settings, String> {
        UserData::read_net_toml(text).map(|read| read.settings).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn assert_reads(text: &str, interfaces: serde_json::Value) {
        let settings = read(text).unwrap();
        assert_eq!(settings.to_json(), json!({"network": {"interfaces": interfaces}}));
        settings.check().unwrap();
    }

    #[test]
    fn version_1_is_read() {
        assert_reads(
            "version = 1\n[eno1]\nprimary = true\ndhcp4 = true\n[eno2.dhcp4]\nenabled = true\nroute-metric = 200\noptional = true\n[eno2.dhcp6]\nenabled = false\n",
            json!({
                "eno1": {"primary": true, "dhcp4": {"enabled": true}},
                "eno2": {"dhcp4": {"enabled": true, "route-metric": 200, "optional": true}, "dhcp6": {"enabled": false}},
            }),
        );
    }

    #[test]
    fn version_2_is_read() {
        assert_reads(
            "version = 2\n[eno1.static4]\naddresses = [\"10.0.0.10/24\", \"11.0.0.11/24\"]\n[eno1.static6]\naddresses = [\"3001:f00f:f00f::2/64\"]\n\
             [[eno1.route]]\nto = \"default\"\nfrom = \"10.0.0.10\"\nvia = \"10.0.0.1\"\nroute-metric = 100\n[[eno1.route]]\nto = \"9.9.0.0/16\"\nvia = \"10.0.0.1\"\n",
            json!({"eno1": {
                "static4": {"addresses": ["10.0.0.10/24", "11.0.0.11/24"]},
                "static6": {"addresses": ["3001:f00f:f00f::2/64"]},
                "route": [
                    {"to": "default", "from": "10.0.0.10", "via": "10.0.0.1", "route-metric": 100},
                    {"to": "9.9.0.0/16", "via": "10.0.0.1"},
                ],
            }}),
        );
    }

    #[test]
    fn version_3_is_read() {
        assert_reads(
            "version = 3\n[\"0c:c4:7a:00:00:01\"]\ndhcp4 = true\n\
             [bond0]\nkind = \"bond\"\nmode = \"active-backup\"\ninterfaces = [\"eno51\", \"eno52\"]\ndhcp4 = true\nmin-links = 1\n\
             [bond0.monitoring]\nmiimon-frequency-ms = 100\nmiimon-updelay-ms = 200\nmiimon-downdelay-ms = 200\n\
             [bond1]\nkind = \"bond\"\nmode = \"active-backup\"\ninterfaces = [\"eno53\"]\n\
             [bond1.monitoring]\narpmon-interval-ms = 200\narpmon-validate = \"all\"\narpmon-targets = [\"192.168.1.1\"]\n\
             [vlan42]\nkind = \"vlan\"\ndevice = \"bond0\"\nid = 42\ndhcp4 = true\n",
            json!({
                "0c:c4:7a:00:00:01": {"dhcp4": {"enabled": true}},
                "bond0": {
                    "kind": "bond", "mode": "active-backup", "interfaces": ["eno51", "eno52"], "dhcp4": {"enabled": true}, "min-links": 1,
                    "monitoring": {"miimon-frequency-ms": 100, "miimon-updelay-ms": 200, "miimon-downdelay-ms": 200},
                },
                "bond1": {
                    "kind": "bond", "mode": "active-backup", "interfaces": ["eno53"],
                    "monitoring": {"arpmon-interval-ms": 200, "arpmon-validate": "all", "arpmon-targets": ["192.168.1.1"]},
                },
                "vlan42": {"kind": "vlan", "device": "bond0", "id": 42, "dhcp4": {"enabled": true}},
            }),
        );
    }

    #[test]
    fn mistakes_have_their_line() {
        let key = "settings.network.interfaces";
        for (text, expected) in [
            ("[eno1]\ndhcp4 = true\n", format!("{key}.version: missing")),
            ("version = 4\n", format!("line 1: {key}.version: there are versions 1, 2 and 3")),
            ("version = \"1\"\n", format!("line 1: {key}.version: there are versions")),
            (
                "version = 1\n[eno1]\ndchp4 = true\n",
                format!("line 3: {key}.eno1.dchp4: unknown key; did you mean \"dhcp4\"?"),
            ),
            (
                "version = 1\n[eno1.static4]\naddresses = [\"10.0.0.1/8\"]\n",
                format!("line 2: {key}.eno1.static4: this came with version 2"),
            ),
            (
                "version = 2\n[vlan1]\nkind = \"vlan\"\n",
                format!("line 3: {key}.vlan1.kind: this came with version 3"),
            ),
            ("version = 3\n[eno1]\nmtu = 9000\n", format!("line 3: {key}.eno1.mtu: unknown key")),
            (
                "version = 3\n[br0]\nkind = \"bridge\"\n",
                format!("line 3: {key}.br0.kind: \"bridge\" is not one of bond, vlan"),
            ),
            (
                "version = 3\n[eno1]\ndhcp4 = \"yes\"\n",
                format!("line 3: {key}.eno1.dhcp4: expected true, false or a table"),
            ),
            (
                "version = 3\n[eno1.dhcp4]\nroute-metric = 0\n",
                format!("line 3: {key}.eno1.dhcp4.route-metric: 0 is not between"),
            ),
            ("version = 3\n[\"a/b\"]\ndhcp4 = true\n", "is not a name for an interface".to_owned()),
            ("version = 1\neno1 = 5\n", format!("line 2: {key}.eno1: expected a table")),
            ("version = \n", "line 1: this is not TOML".to_owned()),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(&expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_valid_or_a_mistake(pieces in proptest::collection::vec(proptest::sample::select(vec![
            "version = 3\n", "version = 1\n", "[eno1]\n", "[bond0.monitoring]\n", "dhcp4 = true\n", "[[eno1.route]]\n", "to = \"default\"\n",
            "kind = \"bond\"\n", "interfaces = [\"a\"]\n", "id = 5\n", "[", "\"", "ö", "= 1\n", "dhcp6 = {enabled = false}\n",
        ]), 0..12)) {
            if let Ok(settings) = read(&pieces.concat()) {
                prop_assert_eq!(crate::from_json(&settings.to_json()).unwrap(), settings);
            }
        }
    }
}
