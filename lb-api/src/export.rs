//! The boundary: makes a module of a [`Balancer`], and opens one in a host. Authors need only
//! [`export_balancer!`](crate::export_balancer).
#![allow(unsafe_code, reason = "the boundary itself")]

mod calls;
pub(crate) mod panics;
mod root;
mod state;
pub(crate) mod view;

use abi_stable::library::{__call_root_module_loader, CheckTypeLayout, RootModuleResult};

use crate::balancer::Balancer;
use crate::wire;

pub use crate::wire::{FieldLayout, compare, wire_fields};
pub use abi_stable::library::LibHeader;
pub use root::{AbiHeaderRef, C_SYMBOL, ROOT_SYMBOL, Root, RootRef, open_root};

/// Makes a module of the crate that it stands in: `lb_api::export_balancer!(RoundRobin);`, once, where the type is in
/// scope. The crate's type is `cdylib` (and `rlib`, for tests that link it); its version is the module's.
///
/// Panics of every call are caught inside the module, which needs unwinding: with `panic = "abort"` this does not
/// compile.
///
/// A program can link the `rlib`s of several modules as long as no two of them bring the object file that the root
/// stands in, see [the guide](crate#testing).
#[macro_export]
macro_rules! export_balancer {
    ($balancer:ty) => {
        const _: () = {
            #[cfg(panic = "abort")]
            ::core::compile_error!(
                "a module catches its panics, which `panic = \"abort\"` makes impossible: build it with `panic = \"unwind\"`"
            );

            struct Package;

            impl $crate::export::Package for Package {
                const VERSION: &'static str = ::core::env!("CARGO_PKG_VERSION");
            }

            // The name is `export::ROOT_SYMBOL`.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static ROOT: $crate::export::LibHeader = $crate::export::header::<$balancer, Package>();
        };
    };
}

/// The author's package as the export macro knows it.
#[doc(hidden)]
pub trait Package: 'static {
    const VERSION: &'static str;
}

/// For balancers that are not exported, in tests.
impl Package for () {
    const VERSION: &'static str = "0.0.0";
}

/// The header at [`ROOT_SYMBOL`].
#[doc(hidden)]
pub const fn header<B: Balancer, P: Package>() -> LibHeader {
    // SAFETY: `root` returns a `RootRef`.
    unsafe { LibHeader::from_constructor::<RootRef>(root::<B, P>, CheckTypeLayout::Yes) }
}

extern "C" fn root<B: Balancer, P: Package>() -> RootModuleResult {
    __call_root_module_loader(|| {
        panics::keep_silent();
        root::root_of(&calls::table::<B, P>())
    })
}

/// The calls of a balancer within this program, as a host would get them from its module.
pub fn in_process<B: Balancer>() -> wire::Module {
    panics::listen();
    calls::table::<B, ()>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_macro_names_the_symbol_that_hosts_look_for() {
        assert_eq!(ROOT_SYMBOL, "_1as_0lib_1header_0root_bmodule_bloader\0");
    }
}
