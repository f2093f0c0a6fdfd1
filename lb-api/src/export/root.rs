//! The envelope of Rust modules: the abi_stable root, and how a host opens it.
#![allow(unsafe_code, reason = "the boundary itself")]

use std::ffi::c_void;
use std::mem::{size_of, transmute};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::{
    AbiInstability, AbiInstabilityErrors, check_layout_compatibility,
};
use abi_stable::library::{LibraryError, RootModule};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RSlice, RStr};
use abi_stable::type_layout::TLFieldOrFunction;

use crate::version::{ABI_MAJOR, ABI_MINOR};
use crate::wire::{self, FieldLayout};

pub use abi_stable::library::AbiHeaderRef;

/// Name of the symbol that a Rust module exports, with its NUL; what stands there is an [`AbiHeaderRef`].
pub const ROOT_SYMBOL: &str = abi_stable::library::ROOT_MODULE_LOADER_NAME_WITH_NUL;

/// Name of the symbol that a C module exports, with its NUL; what stands there is a `*const wire::Module` (so the symbol's
/// address is a `*const *const wire::Module`).
pub const C_SYMBOL: &str = "lb_module\0";

/// The root of a Rust module. Pointers are untyped in the calls: abi_stable checks number and kind of the arguments,
/// and `fields` says what the structs behind them look like, because a struct that abi_stable knows could never grow.
///
/// Calls of later minors go to the end, each with `#[sabi(missing_field(option))]`.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootPrefix)))]
#[expect(missing_docs, reason = "the calls are those of `wire::Module`")]
pub struct Root {
    /// ABI version that the module was built for.
    pub abi_major: u32,
    pub abi_minor: u32,
    /// Every wire struct as the module was compiled with it.
    pub fields: RSlice<'static, FieldLayout>,
    pub info: unsafe extern "C" fn(*mut c_void) -> u32,
    pub build: unsafe extern "C" fn(*const c_void, *mut *mut c_void) -> u32,
    pub load_balance: unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void) -> u32,
    pub next: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void, *mut c_void) -> u32,
    pub report_failure: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    pub observe: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    pub finish: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    pub drop_trylist: unsafe extern "C" fn(*const c_void, *mut c_void) -> u32,
    pub save: unsafe extern "C" fn(*const c_void, *const c_void) -> u32,
    pub explain: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
    #[sabi(last_prefix_field)]
    pub drop_balancer: unsafe extern "C" fn(*mut c_void) -> u32,
}

impl RootModule for RootRef {
    abi_stable::declare_root_module_statics! {RootRef}
    const BASE_NAME: &'static str = "trylist_module";
    const NAME: &'static str = "trylist_module";
    // The ABI's version, so that a module's is known before its layout is looked at. A literal, because abi_stable has
    // a rule of its own about versions; of those from 1 on it compares the major alone.
    const VERSION_STRINGS: VersionStrings = VersionStrings { version: RStr::from_str("1.0.0") };
}

/// The calls of a Rust module, after every check of the envelope has passed: the header is abi_stable's of the same
/// version, the ABI's major is ours and its minor not above ours, the root's layout is ours as far as it goes, and so is
/// every wire struct.
///
/// The library that the header stands in must never be closed. That the header is one, the caller vouches for when it
/// looks the symbol up.
///
/// # Errors
///
/// The difference, in one line that follows `module "x": `.
pub fn open_root(header: AbiHeaderRef) -> Result<wire::Module, String> {
    let library = header.upgrade().map_err(|e| library_error(&e))?;
    check_version(library.version_strings().version.as_str())?;
    let layout = library
        .layout()
        .ok_or("built without the layout of its root; export it with lb_api::export_balancer!")?;
    // The module's layout takes the place of the interface. abi_stable lets implementations be longer than interfaces,
    // and here the host is the one that may know more calls than the module.
    check_layout_compatibility(layout, RootRef::LAYOUT).map_err(|e| layout_error(&e))?;
    // SAFETY: the layouts were compared in the line above, the module's being the shorter or equal one; a prefix type's
    // accessors never read fields that the module does not have.
    let root: RootRef =
        unsafe { library.init_root_module_with_unchecked_layout() }.map_err(|e| library_error(&e))?;
    wire::compare(&root.fields(), wire::wire_fields()).map_err(|e| {
        format!("built for ABI {}.{}, but {e}; rebuild it", root.abi_major(), root.abi_minor())
    })?;
    Ok(table(root))
}

fn check_version(theirs: &str) -> Result<(), String> {
    let mut numbers = theirs.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(ABI_MAJOR)), Some(Ok(0..=ABI_MINOR))) => Ok(()),
        (Some(Ok(major)), Some(Ok(minor))) => Err(format!(
            "built for ABI {major}.{minor}, this host provides {ABI_MAJOR}.{ABI_MINOR}; rebuild it"
        )),
        _ => Err(format!("its ABI version {theirs:?} is not a version; rebuild it")),
    }
}

#[allow(
    clippy::missing_transmute_annotations,
    reason = "both types of each call stand in `Root` and `wire::Module`"
)]
fn table(root: RootRef) -> wire::Module {
    // SAFETY: for each call: pointers to sized types have one ABI whatever they point to, so only the types of the
    // pointees change here, and these were compared by `wire::compare`.
    unsafe {
        wire::Module {
            size: size_of::<wire::Module>() as u32,
            abi_major: root.abi_major(),
            abi_minor: root.abi_minor(),
            reserved: 0,
            info: Some(transmute::<unsafe extern "C" fn(_) -> _, _>(root.info())),
            build: Some(transmute::<unsafe extern "C" fn(_, _) -> _, _>(root.build())),
            load_balance: Some(transmute::<unsafe extern "C" fn(_, _, _) -> _, _>(root.load_balance())),
            next: Some(transmute::<unsafe extern "C" fn(_, _, _, _) -> _, _>(root.next())),
            report_failure: Some(transmute::<unsafe extern "C" fn(_, _, _) -> _, _>(root.report_failure())),
            observe: Some(transmute::<unsafe extern "C" fn(_, _, _) -> _, _>(root.observe())),
            finish: Some(transmute::<unsafe extern "C" fn(_, _, _) -> _, _>(root.finish())),
            drop_trylist: Some(root.drop_trylist()),
            save: Some(transmute::<unsafe extern "C" fn(_, _) -> _, _>(root.save())),
            explain: Some(transmute::<unsafe extern "C" fn(_, _, _) -> _, _>(root.explain())),
            drop_balancer: Some(root.drop_balancer()),
        }
    }
}

/// The root of a module that this crate implements; the other way round of [`table`].
#[allow(
    clippy::missing_transmute_annotations,
    clippy::useless_transmute,
    reason = "as for `table`; two need none"
)]
pub(crate) fn root_of(calls: &wire::Module) -> RootRef {
    use abi_stable::prefix_type::PrefixTypeTrait as _;
    macro_rules! untyped {
        ($($call:ident)*) => {
            Root {
                abi_major: calls.abi_major,
                abi_minor: calls.abi_minor,
                fields: RSlice::from_slice(wire::wire_fields()),
                // SAFETY: as in `table`.
                $($call: unsafe { transmute::<_, _>(calls.$call.expect("the SDK implements every call")) },)*
            }
        };
    }
    untyped!(info build load_balance next report_failure observe finish drop_trylist save explain drop_balancer)
        .leak_into_prefix()
}

/// abi_stable writes hundreds of lines on one difference; the innermost place and the kind of difference suffice.
fn layout_error(errors: &AbiInstabilityErrors) -> String {
    let first = errors.errors.iter().find(|e| !e.errs.is_empty());
    let place = first.and_then(|e| e.stack_trace.last()).map_or("its root", |at| match &at.expected {
        // The root itself stands in its reference as field 0.
        TLFieldOrFunction::Field(field) if field.name() != "0" => field.name(),
        TLFieldOrFunction::Field(_) => "its root",
        TLFieldOrFunction::Function(call) => &call.name,
    });
    let what = match first.and_then(|e| e.errs.first()) {
        Some(AbiInstability::MismatchedPrefixSize(n)) => {
            format!("has {} calls and fields of the first release, here {}", n.expected, n.found)
        }
        Some(AbiInstability::FieldCountMismatch(n)) => {
            format!("has {} calls and fields, here {}", n.expected, n.found)
        }
        Some(AbiInstability::PackageVersion(v)) => format!("is of lb-api {}, here {}", v.expected, v.found),
        Some(other) => {
            let kind = format!("{other:?}");
            format!("differs ({})", kind.split(['(', ' ', '{']).next().unwrap_or("unknown"))
        }
        None => "differs".into(),
    };
    format!("its calls differ from this host's: {place} {what}; rebuild it")
}

fn library_error(error: &LibraryError) -> String {
    match error {
        LibraryError::InvalidAbiHeader(found) => format!(
            "built with abi_stable {}.{}, this host has {}.{}; rebuild it",
            found.abi_major,
            found.abi_minor,
            abi_stable::library::AbiHeader::VALUE.abi_major,
            abi_stable::library::AbiHeader::VALUE.abi_minor
        ),
        LibraryError::RootModule { .. } => "its root could not be made: it panicked".into(),
        LibraryError::InvalidCAbi { .. } => {
            "its compiler uses another C calling convention; build it for this machine".into()
        }
        other => one_line(&other.to_string()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_major_is_the_abi_major() {
        // abi_stable compares it for the types defined here.
        assert_eq!(env!("CARGO_PKG_VERSION_MAJOR"), ABI_MAJOR.to_string());
        assert_eq!(RootRef::VERSION_STRINGS.version, format!("{ABI_MAJOR}.{ABI_MINOR}.0"));
    }

    #[test]
    fn refuses_other_majors_and_later_minors() {
        assert_eq!(check_version("1.0.0"), Ok(()));
        let provides = format!("this host provides {ABI_MAJOR}.{ABI_MINOR}; rebuild it");
        assert_eq!(check_version("2.0.0"), Err(format!("built for ABI 2.0, {provides}")));
        assert_eq!(check_version("0.9.0"), Err(format!("built for ABI 0.9, {provides}")));
        assert_eq!(check_version("1.77.0"), Err(format!("built for ABI 1.77, {provides}")));
        assert_eq!(check_version("x"), Err("its ABI version \"x\" is not a version; rebuild it".into()));
    }

    /// Roots of other versions: abi_stable compares names without their paths.
    #[allow(unreachable_pub, dead_code, reason = "the derive wants it so")]
    mod newer {
        use super::super::*;
        #[repr(C)]
        #[derive(StableAbi)]
        #[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootPrefix)))]
        pub struct Root {
            pub abi_major: u32,
            pub abi_minor: u32,
            pub fields: RSlice<'static, FieldLayout>,
            pub info: unsafe extern "C" fn(*mut c_void) -> u32,
            pub build: unsafe extern "C" fn(*const c_void, *mut *mut c_void) -> u32,
            pub load_balance: unsafe extern "C" fn(*const c_void, *const c_void, *mut c_void) -> u32,
            pub next: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void, *mut c_void) -> u32,
            pub report_failure: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
            pub observe: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
            pub finish: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
            pub drop_trylist: unsafe extern "C" fn(*const c_void, *mut c_void) -> u32,
            pub save: unsafe extern "C" fn(*const c_void, *const c_void) -> u32,
            pub explain: unsafe extern "C" fn(*const c_void, *mut c_void, *const c_void) -> u32,
            #[sabi(last_prefix_field)]
            pub drop_balancer: unsafe extern "C" fn(*mut c_void) -> u32,
            #[sabi(missing_field(option))]
            pub later: unsafe extern "C" fn(*mut c_void) -> u32,
        }
    }

    #[allow(unreachable_pub, dead_code, reason = "the derive wants it so")]
    mod other {
        use super::super::*;
        #[repr(C)]
        #[derive(StableAbi)]
        #[sabi(kind(Prefix(prefix_ref = RootRef, prefix_fields = RootPrefix)))]
        pub struct Root {
            pub abi_major: u32,
            pub abi_minor: u32,
            pub fields: RSlice<'static, FieldLayout>,
            #[sabi(last_prefix_field)]
            pub info: unsafe extern "C" fn(*mut c_void, u64) -> u32,
        }
    }

    #[test]
    fn a_later_host_takes_the_root_of_today() {
        check_layout_compatibility(RootRef::LAYOUT, newer::RootRef::LAYOUT).unwrap();
        check_layout_compatibility(RootRef::LAYOUT, RootRef::LAYOUT).unwrap();
    }

    #[test]
    fn a_root_of_later_is_refused_in_one_line() {
        let error = check_layout_compatibility(newer::RootRef::LAYOUT, RootRef::LAYOUT).unwrap_err();
        assert_eq!(
            layout_error(&error),
            "its calls differ from this host's: its root has 15 calls and fields, here 14; rebuild it"
        );
    }

    #[test]
    fn another_root_is_refused_in_one_line() {
        let error = check_layout_compatibility(other::RootRef::LAYOUT, RootRef::LAYOUT).unwrap_err();
        assert_eq!(
            layout_error(&error),
            "its calls differ from this host's: its root has 4 calls and fields of the first release, here 14; rebuild it"
        );
    }
}
