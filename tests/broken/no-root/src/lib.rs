//! A library like any other: its author forgot the export line.

#[unsafe(no_mangle)]
pub extern "C" fn something_else() {}
