//! Text for bitmaps from a font of 8 by 8 dots, drawn twice as high: pictures look the same on machines without fonts.

use font8x8::legacy::BASIC_LEGACY;
use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};

/// Of a line of text, pixels.
pub(super) const HEIGHT: i32 = 16;
/// Of a letter, pixels.
const LETTER: i32 = 8;

/// A drawing backend with letters of its own.
pub(super) struct BlockLetters<B>(pub(super) B);

type Drawn<B> = Result<(), DrawingErrorKind<<B as DrawingBackend>::ErrorType>>;

impl<B: DrawingBackend> DrawingBackend for BlockLetters<B> {
    type ErrorType = B::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.0.get_size()
    }

    fn ensure_prepared(&mut self) -> Drawn<B> {
        self.0.ensure_prepared()
    }

    fn present(&mut self) -> Drawn<B> {
        self.0.present()
    }

    fn draw_pixel(&mut self, point: BackendCoord, color: BackendColor) -> Drawn<B> {
        self.0.draw_pixel(point, color)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Drawn<B> {
        self.0.draw_rect(upper_left, bottom_right, style, fill)
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Drawn<B> {
        let (width, height) = size_of(text);
        let mut left = at.0 - part(width, style.anchor().h_pos);
        let top = match style.anchor().v_pos {
            VPos::Top => at.1,
            VPos::Center => at.1 - height / 2,
            VPos::Bottom => at.1 - height,
        };
        for letter in text.chars() {
            self.letter(letter, (left, top), style.color())?;
            left += LETTER;
        }
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Self::ErrorType>> {
        let (width, height) = size_of(text);
        Ok((width.unsigned_abs(), height.unsigned_abs()))
    }
}

impl<B: DrawingBackend> BlockLetters<B> {
    fn letter(&mut self, letter: char, (left, top): BackendCoord, color: BackendColor) -> Drawn<B> {
        for (rows, row) in (0..).zip(glyph(letter)) {
            for dot in (0..LETTER).filter(|dot| row >> dot & 1 == 1) {
                self.0.draw_pixel((left + dot, top + 2 * rows), color)?;
                self.0.draw_pixel((left + dot, top + 2 * rows + 1), color)?;
            }
        }
        Ok(())
    }
}

/// Rows of dots, the leftmost in the lowest bit; a question mark for what the font does not have.
fn glyph(letter: char) -> [u8; 8] {
    let place = usize::try_from(u32::from(letter)).unwrap_or(usize::MAX);
    BASIC_LEGACY.get(place).copied().unwrap_or(BASIC_LEGACY[usize::from(b'?')])
}

fn size_of(text: &str) -> (i32, i32) {
    let letters = i32::try_from(text.chars().count()).unwrap_or(i32::MAX / LETTER);
    (letters.saturating_mul(LETTER), HEIGHT)
}

/// How much of a text's width lies left of where it is anchored.
fn part(width: i32, anchor: HPos) -> i32 {
    match anchor {
        HPos::Left => 0,
        HPos::Center => width / 2,
        HPos::Right => width,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_have_dots_and_unknown_ones_become_question_marks() {
        assert_eq!(glyph(' '), [0; 8]);
        assert!(glyph('A').iter().any(|row| *row != 0));
        assert_eq!(glyph('\u{2192}'), glyph('?'));
    }

    #[test]
    fn a_right_anchor_is_the_end_of_the_text() {
        assert_eq!((part(80, HPos::Right), part(80, HPos::Left), part(80, HPos::Center)), (80, 0, 40));
        assert_eq!(size_of("abc"), (24, 16));
    }
}
