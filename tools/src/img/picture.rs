//! `map --output=svg` and `html`: where an image's data lies, for people to look at.
//!
//! The disk is laid out in rows of cells, as many bytes to each as it takes for a bounded number of them. A cell shows by
//! its colours which layer of the chain decides about how much of it; so an image of any length gives a picture of
//! bounded size, from memory that does not grow with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::map::MapEntry;
use crate::size::{humanise, humanise_exactly};

/// Cells of a row, and rows at the most.
const COLUMNS: u64 = 96;
const ROWS_MAX: u64 = 64;

/// Bytes of the smallest cell.
const CELL_MIN: u64 = 4096;

/// Pixels.
const CELL: u64 = 10;
const LEFT: u64 = 110;
const TOP: u64 = 64;
const LEGEND_LINE: u64 = 20;

/// Hues of the layers, from the top down; more layers begin anew.
const HUES: [u32; 8] = [210, 25, 130, 285, 350, 180, 50, 250];

/// What a stretch of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Data,
    Compressed,
    Zero,
    Nothing,
}

/// Which layer decides about a stretch, and what it says.
type Class = (u32, Kind);

/// How a picture is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PictureFormat {
    /// An image alone.
    Svg,
    /// A page with the image and the sums, that needs nothing else.
    Html,
}

/// A picture in the making.
#[derive(Debug)]
pub struct Picture {
    title: String,
    /// Names of the images of the chain, from the top down.
    layers: Vec<String>,
    start: u64,
    end: u64,
    cell: u64,
    cells: Vec<BTreeMap<Class, u64>>,
}

impl Picture {
    /// A picture of the bytes of a disk from `start` to `end`.
    #[must_use]
    pub fn new(title: &str, layers: Vec<String>, start: u64, end: u64) -> Self {
        let len = end.saturating_sub(start);
        let cell = len.div_ceil(COLUMNS * ROWS_MAX).max(CELL_MIN).next_power_of_two();
        let cells = vec![BTreeMap::new(); len.div_ceil(cell) as usize];
        Self { title: title.into(), layers, start, end: start + len, cell, cells }
    }

    /// Adds an entry of the map.
    pub fn push(&mut self, entry: &MapEntry) {
        let kind = match entry {
            MapEntry { compressed: true, .. } => Kind::Compressed,
            MapEntry { data: true, zero: false, .. } => Kind::Data,
            MapEntry { present: true, zero: true, .. } => Kind::Zero,
            _ => Kind::Nothing,
        };
        let end = (entry.start + entry.length).min(self.end);
        let mut at = entry.start.max(self.start);
        while at < end {
            let index = (at - self.start) / self.cell;
            let next = (self.start + (index + 1) * self.cell).min(end);
            *self.cells[index as usize].entry((entry.depth, kind)).or_default() += next - at;
            at = next;
        }
    }

    /// The whole file.
    #[must_use]
    pub fn render(&self, format: PictureFormat) -> String {
        match format {
            PictureFormat::Svg => format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}", self.svg()),
            PictureFormat::Html => self.html(),
        }
    }

    fn html(&self) -> String {
        let title = escape(&self.title);
        let mut text = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>\
             body {{ font-family: sans-serif; margin: 2em; }} table {{ border-collapse: collapse; margin-top: 1em; }} \
             td, th {{ padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: left; }} \
             td.number {{ text-align: right; }} svg {{ max-width: 100%; height: auto; }}\
             </style>\n</head>\n<body>\n{}<table>\n<tr><th>layer</th><th>what</th><th>bytes</th><th>share</th></tr>\n",
            self.svg()
        );
        let all = (self.end - self.start).max(1) as f64;
        for (class, bytes) in self.sums() {
            let _ = writeln!(
                text,
                "<tr><td>{}</td><td>{}</td><td class=\"number\">{bytes}</td><td class=\"number\">{:.2}%</td></tr>",
                escape(&self.layer(class.0)),
                word(class.1),
                100.0 * bytes as f64 / all
            );
        }
        text + "</table>\n</body>\n</html>\n"
    }

    fn svg(&self) -> String {
        let sums = self.sums();
        let rows = (self.cells.len() as u64).div_ceil(COLUMNS);
        let (width, legend_at) = (LEFT + COLUMNS * CELL + 20, TOP + rows * CELL + 30);
        let height = legend_at + sums.len() as u64 * LEGEND_LINE + 10;
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<defs>\n"
        );
        for class in sums.keys().filter(|(_, kind)| *kind == Kind::Compressed) {
            let _ = writeln!(
                text,
                "<pattern id=\"c{}\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\">\
                 <rect width=\"4\" height=\"4\" fill=\"{}\"/><path d=\"M0 4L4 0\" stroke=\"#fff\"/></pattern>",
                class.0,
                hsl(class.0, 45, 45)
            );
        }
        let _ = write!(
            text,
            "</defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"10\" y=\"24\" font-size=\"16\">{}</text>\n<text x=\"10\" y=\"44\" fill=\"#555\">{}; {} a cell</text>\n",
            escape(&self.title),
            humanise_exactly(self.end - self.start),
            humanise(self.cell)
        );
        for row in 0..rows {
            self.row(&mut text, row);
        }
        for (number, (class, bytes)) in sums.iter().enumerate() {
            let y = legend_at + number as u64 * LEGEND_LINE;
            let _ = writeln!(
                text,
                "<rect x=\"10\" y=\"{}\" width=\"14\" height=\"14\" fill=\"{}\" stroke=\"#999\"/>\
                 <text x=\"32\" y=\"{}\">{}: {}, {}</text>",
                y - 11,
                fill(*class),
                y,
                escape(&self.layer(class.0)),
                word(class.1),
                humanise(*bytes)
            );
        }
        text + "</svg>\n"
    }

    /// One row: neighbouring cells that are alike all over become one shape.
    fn row(&self, text: &mut String, row: u64) {
        let y = TOP + row * CELL;
        let first = row * COLUMNS;
        let last = (first + COLUMNS).min(self.cells.len() as u64);
        if row.is_multiple_of(4) {
            let at = humanise(self.start + first * self.cell);
            let _ = writeln!(
                text,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#555\">{at}</text>",
                LEFT - 8,
                y + CELL - 1
            );
        }
        let mut at = first;
        while at < last {
            let cell = &self.cells[at as usize];
            let run =
                (at..last).take_while(|next| only(&self.cells[*next as usize]) == only(cell)).count() as u64;
            let x = LEFT + (at - first) * CELL;
            match only(cell) {
                Some(class) => {
                    let what = (self.start + at * self.cell, run * self.cell);
                    self.shape(text, (x as f64, y, (run * CELL) as f64), class, what);
                    at += run;
                }
                None => {
                    self.mixed(text, (x, y), at);
                    at += 1;
                }
            }
        }
    }

    /// A cell of several kinds: each takes its share of the width.
    fn mixed(&self, text: &mut String, (x, y): (u64, u64), index: u64) {
        let cell = &self.cells[index as usize];
        let all: u64 = cell.values().sum();
        let mut x = x as f64;
        for (class, bytes) in cell {
            let width = CELL as f64 * *bytes as f64 / all.max(1) as f64;
            self.shape(text, (x, y, width), *class, (self.start + index * self.cell, *bytes));
            x += width;
        }
    }

    fn shape(&self, text: &mut String, (x, y, width): (f64, u64, f64), class: Class, (at, len): (u64, u64)) {
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\">\
             <title>at {at}: {}, {}, {}</title></rect>",
            CELL - 1,
            fill(class),
            escape(&self.layer(class.0)),
            word(class.1),
            humanise(len)
        );
    }

    fn sums(&self) -> BTreeMap<Class, u64> {
        let mut sums = BTreeMap::new();
        for (class, bytes) in self.cells.iter().flatten() {
            *sums.entry(*class).or_default() += bytes;
        }
        sums
    }

    fn layer(&self, depth: u32) -> String {
        match self.layers.get(depth as usize) {
            Some(name) => format!("{depth} {name}"),
            None => depth.to_string(),
        }
    }
}

/// The class of a cell that is alike all over.
fn only(cell: &BTreeMap<Class, u64>) -> Option<Class> {
    let mut classes = cell.keys();
    classes.next().copied().filter(|_| classes.next().is_none())
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Data => "data",
        Kind::Compressed => "compressed data",
        Kind::Zero => "zeros",
        Kind::Nothing => "nothing",
    }
}

fn fill((depth, kind): Class) -> String {
    match kind {
        Kind::Data => hsl(depth, 65, 50),
        Kind::Compressed => format!("url(#c{depth})"),
        Kind::Zero => hsl(depth, 60, 85),
        Kind::Nothing => "#eee".into(),
    }
}

/// The colour of a layer, as the three numbers that every renderer knows.
fn hsl(depth: u32, saturation: u32, lightness: u32) -> String {
    let hue = f64::from(HUES[depth as usize % HUES.len()]);
    let (s, l) = (f64::from(saturation) / 100.0, f64::from(lightness) / 100.0);
    let channel = |n: f64| {
        let k = (n + hue / 30.0) % 12.0;
        let value = l - s * l.min(1.0 - l) * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        (255.0 * value).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", channel(0.0), channel(8.0), channel(4.0))
}

/// Text within an XML document, whatever a file is called.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(start: u64, length: u64, depth: u32, data: bool) -> MapEntry {
        MapEntry { start, length, depth, present: data, zero: !data, data, ..MapEntry::empty(start) }
    }

    #[test]
    fn the_size_of_a_picture_is_bounded() {
        let mut picture = Picture::new("t", vec!["t".into()], 0, 1 << 50);
        for n in 0..100_000 {
            picture.push(&entry(n << 33, 1 << 32, 0, true));
            picture.push(&entry((n << 33) + (1 << 32), 1 << 32, 1, false));
        }
        assert!(picture.cells.len() as u64 <= COLUMNS * ROWS_MAX);
        assert!(picture.render(PictureFormat::Svg).len() < 4 << 20);
    }

    #[test]
    fn bytes_are_counted_once() {
        let mut picture = Picture::new("t", vec!["t".into(), "b".into()], 1 << 20, 3 << 20);
        for (n, data) in [(0, true), (1, false), (2, true), (3, false)] {
            picture.push(&entry(n << 20, 1 << 20, (n % 2) as u32, data));
        }
        let sums: Vec<_> = picture.sums().into_iter().collect();
        assert_eq!(sums, [((0, Kind::Data), 1 << 20), ((1, Kind::Nothing), 1 << 20)]);
    }

    #[test]
    fn names_are_text() {
        let picture = Picture::new("<script>\u{1}&", vec!["\"x\"".into()], 0, 4096);
        let html = picture.render(PictureFormat::Html);
        assert!(html.contains("&lt;script&gt;\u{fffd}&amp;") && !html.contains("<script"));
    }

    #[test]
    fn nothing_at_all_is_a_picture_too() {
        assert!(Picture::new("t", Vec::new(), 5, 5).render(PictureFormat::Svg).ends_with("</svg>\n"));
    }
}
