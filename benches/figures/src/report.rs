//! From measured values to what is printed and drawn.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::{Figure, FigureError, Machine, Measured, heading, row};

/// How a report is published.
#[derive(Clone, Debug, Default)]
pub struct Style {
    /// One JSON object a line instead of a table.
    pub json: bool,
    /// Folder for pictures, if wanted; made if it is not there.
    pub plot: Option<PathBuf>,
}

/// The figures of one run, each printed when it is told.
#[derive(Debug)]
pub struct Report {
    style: Style,
    run: String,
    figures: Vec<Figure>,
}

impl Report {
    /// Begins the report of run `run` with a record of the machine and its programs' versions.
    ///
    /// # Errors
    /// [`FigureError::Print`].
    pub fn begin(
        style: Style,
        run: String,
        machine: &Machine,
        versions: &BTreeMap<String, String>,
    ) -> Result<Self, FigureError> {
        if style.json {
            print(&machine.record(versions, &run))?;
        } else {
            print(&machine.line(versions, &run))?;
            print(&heading())?;
        }
        Ok(Self { style, run, figures: Vec::new() })
    }

    /// Judges and prints a figure.
    ///
    /// # Errors
    /// [`FigureError::Print`].
    pub fn tell(&mut self, measured: Measured) -> Result<(), FigureError> {
        let figure = measured.judge(&self.run);
        print(&if self.style.json { json(&figure) } else { row(&figure) })?;
        self.figures.push(figure);
        Ok(())
    }

    /// Draws what is to be drawn. Whether every goal was met.
    ///
    /// # Errors
    /// [`FigureError::Draw`].
    pub fn end(self) -> Result<bool, FigureError> {
        #[cfg(feature = "plot")]
        if let Some(folder) = &self.style.plot {
            crate::plot::draw_all(folder, &self.figures)?;
        }
        Ok(self.figures.iter().all(|figure| figure.met))
    }
}

fn json(figure: &Figure) -> String {
    // Numbers and strings under string keys: there is nothing in a figure that JSON cannot express.
    serde_json::to_string(figure).unwrap_or_default()
}

/// Unlike `println!`, says so instead of panicking when the reader has gone.
fn print(line: &str) -> Result<(), FigureError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(FigureError::Print)
}
