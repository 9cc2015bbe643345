//! What can go wrong with figures.

use std::io;
use std::path::PathBuf;

/// Why a figure cannot be stated, printed or drawn.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    /// Nothing was measured.
    #[error("{figure}: no values were measured")]
    Empty {
        /// Whose values are missing.
        figure: String,
    },
    /// Not in the goals' language.
    #[error(
        "goal {text:?}: {part:?} is no bound; write for example \"<= 0.5\", \"p99 <= 40\" or \"printed\""
    )]
    Goal {
        /// The whole goal.
        text: String,
        /// The part that is no bound.
        part: String,
    },
    /// Standard output is gone.
    #[error("cannot print figures: {0}")]
    Print(#[source] io::Error),
    /// A picture could not be written.
    #[error("cannot draw {path}: {reason}; check the folder given with --plot")]
    Draw {
        /// The picture's file.
        path: PathBuf,
        /// What the folder or the drawing library said.
        reason: String,
    },
}
