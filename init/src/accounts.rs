//! Users and groups of the image, from its own `/etc/passwd` and `/etc/group` (passwd(5), group(5)). Read by ourselves: a
//! static program cannot load the modules of a name service.

use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    users: BTreeMap<String, User>,
    groups: BTreeMap<String, u32>,
}

impl Accounts {
    /// Lines that cannot be read are passed over.
    pub fn parse(passwd: &str, group: &str) -> Self {
        let users = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((name.to_owned(), User { uid, gid }))
        });
        let groups = group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?))
        });
        Self { users: users.collect(), groups: groups.collect() }
    }

    pub fn user(&self, name: &str) -> Option<User> {
        self.users.get(name).copied()
    }

    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_line_does_not_hide_the_others() {
        let accounts =
            Accounts::parse("nonsense\nx:x:a:b\napi:x:274:275:API:/:/bin/false\n", "api:x:275:\nbad\n");
        assert_eq!(accounts.user("api"), Some(User { uid: 274, gid: 275 }));
        assert_eq!(accounts.group("api"), Some(275));
        assert_eq!(accounts.user("x"), None);
    }
}
