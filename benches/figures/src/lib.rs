//! What benches have in common.
//!
//! A bench measures [`Spread`]s, makes a [`Measured`] of each, and hands them to a [`Report`], which prints them as JSON lines or
//! as a table and draws them if asked to. Goals are written in a small language, see [`Goal`].

mod error;
mod figure;
mod goal;
mod machine;
#[cfg(feature = "plot")]
mod plot;
mod report;
mod spread;
mod table;
mod units;

pub use error::FigureError;
pub use figure::{Better, Figure, Measured};
pub use goal::Goal;
pub use machine::Machine;
pub use report::{Report, Style};
pub use spread::Spread;
pub use table::{heading, row};
pub use units::human;
