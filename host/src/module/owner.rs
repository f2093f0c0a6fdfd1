//! Checks who can change the code that root is about to run.
//!
//! Started as root, Trylist opens only what nobody but root can have changed: the file and every folder on the way to it
//! belong to root and are not writable by group or world. A folder with the sticky bit (`/tmp`) may be writable by all:
//! there nobody can rename or remove what root owns, and what is next on the way is root's, by this same check. The walk
//! is [`trusted_path`](crate::os::trusted_path)'s: folders that links stand in are checked as well as those they lead to.
//!
//! As another user it checks nothing: who may change the module could also change the program that loads it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::os::trusted_path::{Distrust, DistrustCause, LastName, PathError, SafePath};

const WRITABLE_BY_OTHERS: u32 = 0o022;
const ROOT: u32 = 0;

/// Checks an opened file, named `path` when it was opened, and its folders: none may be changed by anybody but `owner`
/// and root.
///
/// # Errors
///
/// The user that can change the file or a folder, and the remedy, as text that follows the file's name.
pub(super) fn check(path: &Path, file: &Metadata, owner: u32) -> Result<(), String> {
    let whose = if owner == ROOT { "root".to_owned() } else { format!("user {owner}") };
    let advice = format!("modules run by {whose} must be for {whose} alone to change");
    if file.uid() != owner && file.uid() != ROOT {
        return Err(format!("belongs to user {}; {advice}", file.uid()));
    }
    if file.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(format!("is writable by others (mode {:04o}); {advice}", file.mode() & 0o7777));
    }
    let by = match SafePath::find_for(path, LastName::Follow, owner) {
        Ok(way) => way.distrust().cloned(),
        Err(PathError::Link { by, .. }) => Some(by),
        Err(error) => return Err(format!("has a folder that cannot be checked: {error}")),
    };
    let Some(Distrust { path, is_link, why }) = by else { return Ok(()) };
    let way = if is_link { "is reached by link" } else { "is in folder" };
    let which = match why {
        DistrustCause::BelongsTo(user) => format!("which belongs to user {user}"),
        DistrustCause::WritableByOthers(mode) => format!("which is writable by others (mode {mode:04o})"),
    };
    Err(format!("{way} {}, {which}; {advice}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use super::*;

    /// `a/b/m.so`, with whatever rights the folders above have: a temporary directory is sticky, or the user's own.
    struct OwnedTree(tempfile::TempDir);

    impl OwnedTree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.path("a/b")).unwrap();
            fs::write(tree.path("a/b/m.so"), "").unwrap();
            tree.chmod("a", 0o755).chmod("a/b", 0o755).chmod("a/b/m.so", 0o644);
            tree
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn chmod(&self, name: &str, mode: u32) -> &Self {
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
            self
        }

        fn check(&self, name: &str) -> Result<(), String> {
            let me = rustix::process::geteuid().as_raw();
            check(&self.path(name), &fs::metadata(self.path(name)).unwrap(), me)
        }

        /// What `check` says when it names `folder`.
        fn refusal(&self, folder: &str, mode: &str) -> Result<(), String> {
            let folder = fs::canonicalize(self.path(folder)).unwrap();
            let whose = match rustix::process::geteuid().as_raw() {
                0 => "root".to_owned(),
                user => format!("user {user}"),
            };
            Err(format!(
                "is in folder {}, which is writable by others (mode {mode}); \
                 modules run by {whose} must be for {whose} alone to change",
                folder.display()
            ))
        }
    }

    #[test]
    fn takes_what_only_the_owner_can_change() {
        assert_eq!(OwnedTree::new().check("a/b/m.so"), Ok(()));
    }

    #[test]
    fn refuses_a_file_that_others_can_write() {
        let tree = OwnedTree::new();
        for mode in [0o664, 0o646] {
            tree.chmod("a/b/m.so", mode);
            let error = tree.check("a/b/m.so").unwrap_err();
            assert!(error.starts_with(&format!("is writable by others (mode {mode:04o}); ")), "{error}");
        }
    }

    #[test]
    fn refuses_any_folder_on_the_way_that_others_can_write() {
        let tree = OwnedTree::new();
        tree.chmod("a", 0o777);
        assert_eq!(tree.check("a/b/m.so"), tree.refusal("a", "0777"));
        tree.chmod("a", 0o775);
        assert_eq!(tree.check("a/b/m.so"), tree.refusal("a", "0775"));
    }

    #[test]
    fn takes_a_sticky_folder_because_nobody_can_rename_in_it() {
        let tree = OwnedTree::new();
        tree.chmod("a", 0o1777);
        assert_eq!(tree.check("a/b/m.so"), Ok(()));
    }

    #[test]
    fn refuses_a_link_in_a_folder_that_others_can_write() {
        let tree = OwnedTree::new();
        fs::create_dir(tree.path("open")).unwrap();
        symlink(tree.path("a/b"), tree.path("open/link")).unwrap();
        symlink("open/link", tree.path("outer")).unwrap();
        assert_eq!(tree.check("outer/m.so"), Ok(()));
        tree.chmod("open", 0o777);
        assert_eq!(tree.check("a/b/m.so"), Ok(()), "not on this way");
        assert_eq!(tree.check("outer/m.so"), tree.refusal("open", "0777"));
    }

    #[test]
    fn refuses_what_belongs_to_somebody_else() {
        let tree = OwnedTree::new();
        let file = tree.path("a/b/m.so");
        // Root trusts itself alone; everybody else trusts root too, so each needs a stranger of its own.
        let stranger = match rustix::process::geteuid().as_raw() {
            ROOT => {
                std::os::unix::fs::chown(&file, Some(1), None).unwrap();
                ROOT
            }
            me => me + 1,
        };
        let file_data = fs::metadata(&file).unwrap();
        let error = check(&file, &file_data, stranger).unwrap_err();
        assert!(error.starts_with(&format!("belongs to user {}; ", file_data.uid())), "{error}");
    }
}
