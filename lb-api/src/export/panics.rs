//! Panics inside a module: caught, with message and place, and without a word on standard error.
//!
//! A module has a standard library of its own and so a panic hook of its own. The hook cannot ask whether the panic will
//! be caught without a flag that every call sets and clears, which in a shared library costs more than all the rest of
//! `next`. So it only notes message and place in the thread, and the catcher of the panic takes the note. A note that
//! nobody took, of a thread that the module started itself, is printed when that thread ends.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

thread_local! {
    static NOTE: RefCell<Note> = const { RefCell::new(Note(None)) };
}

/// Message and place of the thread's last panic.
struct Note(Option<String>);

impl Drop for Note {
    fn drop(&mut self) {
        if let Some(text) = self.0.take().filter(|_| SILENT.is_completed()) {
            eprintln!("a module's thread panicked: {text}");
        }
    }
}

static SILENT: Once = Once::new();
static CHAINED: Once = Once::new();

/// For a module that was loaded: its hook is nobody else's.
pub(crate) fn keep_silent() {
    SILENT.call_once(|| panic::set_hook(Box::new(note)));
}

/// For a balancer within a test program: the program's hook still has its say.
pub(crate) fn listen() {
    CHAINED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            note(info);
            before(info);
        }));
    });
}

fn note(info: &PanicHookInfo<'_>) {
    let message = message(info.payload());
    let text = match info.location() {
        Some(at) => format!("panicked at {}:{}: {message}", at.file(), at.line()),
        None => format!("panicked: {message}"),
    };
    // A thread that is ending has no place for notes any more, and no reader of them.
    let _ = NOTE.try_with(|note| note.replace(Note(Some(text))));
}

fn message(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "with a value that is no text",
    }
}

/// Runs `call`.
///
/// # Errors
/// It panicked: message and place in one line.
#[inline(always)]
pub(crate) fn catch<R>(call: impl FnOnce() -> R) -> Result<R, String> {
    // State that the call left half done is never read again: after a panic the host only drops.
    panic::catch_unwind(AssertUnwindSafe(call)).map_err(explain)
}

#[cold]
#[inline(never)]
fn explain(payload: Box<dyn Any + Send>) -> String {
    let noted = NOTE.try_with(|note| note.borrow_mut().0.take()).ok().flatten();
    let text = match noted {
        // A payload passed on by `resume_unwind` calls no hook; an older note would be about another panic.
        Some(text) if text.ends_with(message(&*payload)) => text,
        _ => format!("panicked: {}", message(&*payload)),
    };
    // A payload with a drop that panics would end the process here.
    std::mem::forget(payload);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
