//! When memory runs out, the kernel is to kill a worker, which is replaced, and not the supervisor (`oom_score_adj`).

use std::fs;
use std::io;

const FILE: &str = "/proc/self/oom_score_adj";
/// Below what the service was started with. The most that there is, -1000, would have the kernel spare a supervisor that
/// leaks; this has it spare one that holds less than half of the machine's memory.
const SUPERVISOR: i32 = -500;
/// Above what the service was started with: enough to come before the supervisor where that may not lower its own value, and
/// too little to come before what is not the service's.
const WORKERS: i32 = 100;
/// The kernel's range.
const LEAST: i32 = -1000;
const MOST: i32 = 1000;

/// The `oom_score_adj` that the service was started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OomScore(i32);

impl OomScore {
    /// Reads it and lowers the supervisor's own, which takes CAP_SYS_RESOURCE and is not tried again without. None where the
    /// system does not say.
    pub(super) fn lower() -> Option<Self> {
        let found: i32 = fs::read_to_string(FILE).ok()?.trim().parse().ok()?;
        let score = Self(found);
        if let Err(error) = score.write() {
            tracing::debug!("oom_score_adj stays {found}: {error}");
        }
        Some(score)
    }

    fn write(self) -> io::Result<()> {
        fs::write(FILE, self.of_supervisor().to_string())
    }

    fn of_supervisor(self) -> i32 {
        // A service that is never to be killed stays so.
        if self.0 == LEAST { LEAST } else { (self.0 + SUPERVISOR).max(LEAST + 1) }
    }

    /// For workers.
    pub(super) fn of_workers(self) -> i32 {
        (self.0 + WORKERS).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_come_first_and_no_value_is_one_that_the_kernel_does_not_take() {
        for (found, supervisor, workers) in
            [(0, -500, 100), (-1000, -1000, -900), (-900, -999, -800), (1000, 500, 1000), (950, 450, 1000)]
        {
            let score = OomScore(found);
            assert_eq!((score.of_supervisor(), score.of_workers()), (supervisor, workers), "{found}");
        }
    }
}
