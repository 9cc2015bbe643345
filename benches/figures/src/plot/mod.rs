//! Pictures: for each figure our bars above the peers', as SVG and as PNG.
//!
//! A solid bar ends at p50, a thin one goes on to p99.

mod letters;

use std::fs;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::{Figure, FigureError, Spread, human};
use letters::BlockLetters;

const WIDTH: i32 = 760;
const BAR: i32 = 26;
const GAP: i32 = 14;
const MARGIN: i32 = 16;
const HEAD: i32 = 64;
/// Where bars begin, right of their names.
const LEFT: i32 = 230;
/// Room for the values right of the longest bar.
const RIGHT: i32 = 240;
const OURS: RGBColor = RGBColor(0x2e, 0x7d, 0x4f);
const THEIRS: RGBColor = RGBColor(0x9a, 0x9a, 0x9a);

/// Draws each figure into `folder`, as `FIGURE.svg` and `FIGURE.png`.
///
/// # Errors
/// [`FigureError::Draw`].
pub(crate) fn draw_all(folder: &Path, figures: &[Figure]) -> Result<(), FigureError> {
    fs::create_dir_all(folder)
        .map_err(|error| FigureError::Draw { path: folder.to_owned(), reason: error.to_string() })?;
    figures.iter().try_for_each(|figure| {
        let bars = bars(figure);
        let height = HEAD + i32::try_from(bars.len()).unwrap_or(0) * (BAR + GAP) + MARGIN;
        let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
        let svg = folder.join(format!("{}.svg", figure.figure));
        finish(&svg, draw(SVGBackend::new(&svg, size), figure, &bars))?;
        let png = folder.join(format!("{}.png", figure.figure));
        finish(&png, draw(BlockLetters(BitMapBackend::new(&png, size)), figure, &bars))
    })
}

fn finish(path: &Path, drawn: Result<(), String>) -> Result<(), FigureError> {
    drawn.map_err(|reason| FigureError::Draw { path: path.to_owned(), reason })
}

struct Bar<'a> {
    name: &'a str,
    spread: Spread,
    color: RGBColor,
}

/// Ours first, then every peer that was there.
fn bars(figure: &Figure) -> Vec<Bar<'_>> {
    let ours = Bar { name: "endophyte", spread: figure.ours, color: OURS };
    let single = figure.peer.iter().map(|spread| (figure.peer_name.as_str(), *spread));
    let several = figure.peers.iter().filter_map(|(name, spread)| Some((name.as_str(), (*spread)?)));
    let theirs: Vec<(&str, Spread)> =
        if figure.peers.is_empty() { single.collect() } else { several.collect() };
    let theirs = theirs.into_iter().map(|(name, spread)| Bar { name, spread, color: THEIRS });
    std::iter::once(ours).chain(theirs).collect()
}

fn draw<B: DrawingBackend>(backend: B, figure: &Figure, bars: &[Bar<'_>]) -> Result<(), String> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(|error| error.to_string())?;
    caption(&area, figure)?;
    let longest = bars.iter().map(|bar| end(&bar.spread)).fold(f64::MIN_POSITIVE, f64::max);
    let mut top = HEAD;
    for bar in bars {
        draw_bar(&area, figure, bar, longest, top)?;
        top += BAR + GAP;
    }
    area.present().map_err(|error| error.to_string())
}

fn caption<B: DrawingBackend>(area: &DrawingArea<B, Shift>, figure: &Figure) -> Result<(), String> {
    write(area, &figure.figure, (MARGIN, MARGIN), HPos::Left)?;
    let ratio = figure.ratio.map_or_else(|| "no ratio".to_owned(), |ratio| format!("ratio {ratio:.2}"));
    let verdict = if figure.met { "met" } else { "NOT MET" };
    let better = format!("{:?} is better", figure.better).to_lowercase();
    let line = format!("{better}; {ratio}, goal {}: {verdict}", figure.goal);
    write(area, &line, (MARGIN, MARGIN + 22), HPos::Left)
}

fn draw_bar<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    figure: &Figure,
    bar: &Bar<'_>,
    longest: f64,
    top: i32,
) -> Result<(), String> {
    let fill = |from: i32, to: i32, above: i32, below: i32| {
        let rectangle =
            Rectangle::new([(from, top + above), (to.max(from + 1), top + below)], bar.color.filled());
        area.draw(&rectangle).map_err(|error| error.to_string())
    };
    let (p50, p99) = (length(bar.spread.p50, longest), length(end(&bar.spread), longest));
    fill(LEFT, LEFT + p50, 0, BAR)?;
    fill(LEFT + p50, LEFT + p99, BAR / 2 - 2, BAR / 2 + 2)?;
    write(area, bar.name, (LEFT - 10, top + 5), HPos::Right)?;
    write(area, &value(figure, &bar.spread), (LEFT + p99 + 10, top + 5), HPos::Left)
}

fn value(figure: &Figure, spread: &Spread) -> String {
    let p50 = human(spread.p50, &figure.unit);
    spread.p99.map_or_else(|| p50.clone(), |p99| format!("{p50}, p99 {}", human(p99, &figure.unit)))
}

fn end(spread: &Spread) -> f64 {
    spread.p99.unwrap_or(spread.p50).max(spread.p50)
}

/// Pixels of a value where the longest bar fills the room.
fn length(value: f64, longest: f64) -> i32 {
    let room = f64::from(WIDTH - LEFT - RIGHT);
    #[expect(clippy::cast_possible_truncation, reason = "clamped to the picture's width")]
    let pixels = (value / longest * room).clamp(0.0, room) as i32;
    pixels
}

fn write<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    text: &str,
    at: (i32, i32),
    anchor: HPos,
) -> Result<(), String> {
    let style = ("monospace", letters::HEIGHT).into_font().color(&BLACK).pos(Pos::new(anchor, VPos::Top));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Better, Goal, Measured};

    fn figure(name: &str) -> Figure {
        let peers = vec![
            ("qemu-7.2 vhost=on".to_owned(), Some(Spread::single(9_000.0))),
            ("qemu-7.2 vhost=off".to_owned(), None),
        ];
        let ours = Spread::of(vec![11_000.0, 12_000.0]).unwrap();
        let goal = Goal::parse(">= 1.0").unwrap();
        Measured { name: name.to_owned(), unit: "1/s", better: Better::Higher, ours, peers, goal }.judge("r")
    }

    #[test]
    fn a_figure_becomes_an_svg_with_its_texts_and_a_png() {
        let folder = tempfile::tempdir().unwrap();
        draw_all(folder.path(), &[figure("vmm.a"), figure("vmm.b")]).unwrap();
        let svg = fs::read_to_string(folder.path().join("vmm.a.svg")).unwrap();
        for part in ["vmm.a", "endophyte", "qemu-7.2 vhost=on", "12,000/s", "met"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert!(!svg.contains("vhost=off"), "a peer that was not measured has no bar");
        let png = fs::read(folder.path().join("vmm.b.png")).unwrap();
        assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let folder = file.path().join("x");
        let error = draw_all(&folder, &[figure("vmm.a")]).unwrap_err().to_string();
        assert!(error.contains(&folder.display().to_string()) && error.contains("--plot"), "{error}");
    }

    #[test]
    fn bars_stay_within_the_picture() {
        assert_eq!(length(5.0, 5.0), WIDTH - LEFT - RIGHT);
        assert_eq!(length(0.0, 5.0), 0);
        assert_eq!(length(f64::NAN, 5.0), 0);
    }
}
