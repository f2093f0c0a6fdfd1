//! Dropping privileges, for good.

use nix::unistd::{Gid, Group, Uid, User, initgroups, setgid, setgroups, setuid};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use crate::config::{Place, RunAs};

/// Has this process be who the configuration says, and never gain rights again. Only root can become somebody; whoever
/// else runs it stays who they are. Before any module is opened, and before any thread is started but the log's, which
/// [`gain_none`] was called for.
///
/// # Errors
/// One line: there is no such account, or the system refuses.
pub fn drop_to(run_as: &RunAs) -> Result<(), String> {
    if nix::unistd::geteuid().is_root() {
        become_somebody(run_as)?;
    }
    gain_none().map_err(|error| format!("cannot give up gaining privileges (NO_NEW_PRIVS): {error}"))
}

/// The same, as nobody: for code of modules where no user is configured.
///
/// # Errors
/// One line: the system refuses.
pub fn drop_to_nobody() -> Result<(), String> {
    let nobody = User::from_name("nobody").ok().flatten();
    // The number that every system has for it.
    let (uid, gid) =
        nobody.map_or((Uid::from_raw(65_534), Gid::from_raw(65_534)), |user| (user.uid, user.gid));
    let refused = |error: nix::Error| format!("cannot become nobody: {error}");
    setgroups(&[gid]).and_then(|()| setgid(gid)).and_then(|()| setuid(uid)).map_err(refused)?;
    gain_none().map_err(|error| format!("cannot give up gaining privileges (NO_NEW_PRIVS): {error}"))
}

/// Has this process leave no core dump when it dies, or as large a one as the system allows. To be called after
/// [`drop_to`], because the system forbids dumps of a process that has become somebody else.
///
/// # Errors
/// The system refuses.
pub(crate) fn allow_core_dumps(are_allowed: bool) -> std::io::Result<()> {
    let mut limit = getrlimit(Resource::Core);
    if are_allowed {
        limit.current = limit.maximum;
        set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    } else {
        limit = Rlimit { current: Some(0), maximum: Some(0) };
    }
    Ok(setrlimit(Resource::Core, limit)?)
}

/// Disables core dumps of this process. Processes that it starts may raise their limit again.
///
/// # Errors
/// The system refuses.
pub(crate) fn leave_no_core_dump() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Core);
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), ..limit })?)
}

/// Sets NO_NEW_PRIVS for this thread and those that it starts from now on.
///
/// # Errors
/// The system refuses.
pub fn gain_none() -> std::io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Accounts and groups that do not exist on this machine, one line each: [`drop_to`] refuses them where root calls it.
pub(crate) fn problems(run_as: &RunAs) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some((name, place)) = &run_as.user {
        match user(name) {
            Ok(Account { uid, gid: None, .. }) if run_as.group.is_none() => {
                problems.push(format!("{place}: {}", no_group(uid)));
            }
            Ok(_) => {}
            Err(error) => problems.push(format!("{place}: {error}")),
        }
    }
    if let Some((name, place)) = &run_as.group
        && let Err(error) = group(name)
    {
        problems.push(format!("{place}: {error}"));
    }
    problems
}

fn no_group(uid: Uid) -> String {
    format!("user {uid} has no account, so its group is unknown; set the key group")
}

/// The numbers of an account and a group, as far as they are named.
///
/// # Errors
/// There is no such account, or no such group.
pub(crate) fn ids(of: &RunAs) -> Result<(Option<u32>, Option<u32>), String> {
    let user = of.user.as_ref().map(|(name, _)| user(name)).transpose()?;
    let group = of.group.as_ref().map(|(name, _)| group(name)).transpose()?;
    Ok((user.map(|user| user.uid.as_raw()), group.map(Gid::as_raw)))
}

fn become_somebody(run_as: &RunAs) -> Result<(), String> {
    let at = |place: &Place, error: String| format!("{place}: {error}");
    let user = run_as.user.as_ref().map(|(name, place)| user(name).map_err(|e| at(place, e))).transpose()?;
    let group =
        run_as.group.as_ref().map(|(name, place)| group(name).map_err(|e| at(place, e))).transpose()?;
    let gid = match (group, &user) {
        (Some(gid), _) => gid,
        (None, Some(user)) => user.gid.ok_or_else(|| no_group(user.uid))?,
        (None, None) => return Ok(()),
    };
    let refused = |what: &str, error: nix::Error| format!("cannot become {what}: {error}");
    match user.as_ref().and_then(|user| user.name.as_deref()) {
        Some(name) => initgroups(name, gid).map_err(|error| refused("a member of its groups", error))?,
        None => setgroups(&[gid]).map_err(|error| refused("a member of its group alone", error))?,
    }
    setgid(gid).map_err(|error| refused(&format!("group {gid}"), error))?;
    if let Some(user) = user {
        setuid(user.uid).map_err(|error| refused(&format!("user {}", user.uid), error))?;
    }
    Ok(())
}

struct Account {
    uid: Uid,
    /// Absent where a number has no account.
    gid: Option<Gid>,
    /// Absent where a number has no name.
    name: Option<std::ffi::CString>,
}

fn user(name: &str) -> Result<Account, String> {
    let number = name.parse().ok().map(Uid::from_raw);
    let found = match number {
        Some(uid) => User::from_uid(uid),
        None => User::from_name(name),
    };
    let found = found.map_err(|error| format!("user \"{name}\" cannot be looked up: {error}"))?;
    match (found, number) {
        (Some(user), _) => {
            let name = std::ffi::CString::new(user.name).ok();
            Ok(Account { uid: user.uid, gid: Some(user.gid), name })
        }
        (None, Some(uid)) => Ok(Account { uid, gid: None, name: None }),
        (None, None) => Err(format!("there is no user \"{name}\"")),
    }
}

fn group(name: &str) -> Result<Gid, String> {
    if let Ok(gid) = name.parse() {
        return Ok(Gid::from_raw(gid));
    }
    let found =
        Group::from_name(name).map_err(|error| format!("group \"{name}\" cannot be looked up: {error}"))?;
    found.map(|group| group.gid).ok_or_else(|| format!("there is no group \"{name}\""))
}
