//! Parts that are chosen by name: policies, and any other kind of part that an experiment swaps.
//!
//! ```text
//!  "ttl,seconds=60" ── parse ──▶ Choice ─┐
//!                                        ├─ Catalog::maker ─▶ Maker ── make ──▶ Box<dyn KeepAlivePolicy>,
//!  Entry, Entry ───── register ▶ Catalog ┘                                      any number of them
//! ```
//!
//! A [`Catalog`] holds an [`Entry`] for each part of its kind, with the part's parameters. A [`Choice`]
//! is what a person wrote. Names are resolved at the edge, where a program reads its command line or a
//! file and can report an error; a configuration holds the resulting [`Maker`].
//!
//! A kind is a trait whose implementations are swapped. It can be any trait, also one of your own:
//!
//! ```
//! use openlambda_core::catalog::{Catalog, Entry, ParameterInfo};
//!
//! trait Greeting {
//!     fn greet(&self) -> String;
//! }
//!
//! struct Again(u32);
//!
//! impl Greeting for Again {
//!     fn greet(&self) -> String {
//!         vec!["hello"; self.0 as usize].join(" ")
//!     }
//! }
//!
//! fn again() -> Entry<dyn Greeting> {
//!     Entry {
//!         name: "again".to_owned(),
//!         about: "says it more than once".to_owned(),
//!         source: "the echo".to_owned(),
//!         parameters: vec![ParameterInfo::new("times", 2, "how often").within(1..=9)],
//!         build: Box::new(|given| Ok(Box::new(Again(given.whole("times")?)))),
//!     }
//! }
//!
//! let greetings = Catalog::of("greeting", [again()]);
//! let maker = greetings.maker_of("again,times=3")?;
//! assert_eq!(maker.make().greet(), "hello hello hello");
//!
//! let error = greetings.maker_of("again,time=3").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "greeting again: unknown parameter \"time\"; did you mean \"times\"?"
//! );
//! # Ok::<(), openlambda_core::config::ConfigError>(())
//! ```

mod choice;
mod maker;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Value;

pub use self::choice::Choice;
pub use self::maker::Maker;
use crate::config::{ConfigError, nearest};

/// The parts of one kind that can be chosen by name. A clone is cheap: it shares the entries.
pub struct Catalog<T: ?Sized> {
    kind: &'static str,
    entries: Vec<Arc<Entry<T>>>,
}

/// A part that can be chosen by name.
pub struct Entry<T: ?Sized> {
    /// Its name, as `bounded-load`.
    pub name: String,
    /// What it does, in a line.
    pub about: String,
    /// Where it comes from: a paper, a system.
    pub source: String,
    /// Its parameters.
    pub parameters: Vec<ParameterInfo>,
    /// Makes one from its parameters. Those that are not in `parameters` were refused before. The result
    /// must depend on the parameters alone: parameters that were valid once stay valid.
    pub build: Build<T>,
}

/// See [`Entry::build`].
pub type Build<T> = Box<dyn Fn(&Parameters<'_, T>) -> Result<Box<T>, ConfigError> + Send + Sync>;

/// A parameter of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterInfo {
    /// Its name.
    pub name: String,
    /// Its default, as a person would write it.
    pub default: String,
    /// The least and the greatest value of a number.
    pub bounds: Option<RangeInclusive<f64>>,
    /// What it does.
    pub about: String,
}

impl ParameterInfo {
    /// A parameter.
    pub fn new(name: &str, default: impl fmt::Display, about: &str) -> Self {
        ParameterInfo {
            name: name.to_owned(),
            default: default.to_string(),
            bounds: None,
            about: about.to_owned(),
        }
    }

    /// The same parameter, for a number within `bounds`.
    #[must_use]
    pub fn within<N: Into<f64>>(mut self, bounds: RangeInclusive<N>) -> Self {
        let (least, most) = bounds.into_inner();
        self.bounds = Some(least.into()..=most.into());
        self
    }
}

impl<T: ?Sized> Entry<T> {
    /// A part without parameters.
    pub fn new(
        name: &str,
        about: &str,
        source: &str,
        make: impl Fn() -> Box<T> + Send + Sync + 'static,
    ) -> Self {
        Entry {
            name: name.to_owned(),
            about: about.to_owned(),
            source: source.to_owned(),
            parameters: Vec::new(),
            build: Box::new(move |_| Ok(make())),
        }
    }
}

impl<T: ?Sized> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized> Catalog<T> {
    /// An empty catalogue. `kind` is the word for a part in its errors, such as `keep-alive policy`; errors
    /// begin with the words before the last, if there are any: `keep-alive: unknown policy "tt"`.
    pub fn new(kind: &'static str) -> Self {
        Catalog { kind, entries: Vec::new() }
    }

    /// A catalogue of these.
    pub fn of(kind: &'static str, entries: impl IntoIterator<Item = Entry<T>>) -> Self {
        let mut catalog = Catalog::new(kind);
        entries.into_iter().for_each(|entry| catalog.register(entry));
        catalog
    }

    /// Adds a part. One of the same name is replaced.
    pub fn register(&mut self, entry: Entry<T>) {
        let entry = Arc::new(entry);
        match self.entries.iter_mut().find(|known| known.name == entry.name) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }

    /// The parts, in the order in which they were registered.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<T>> {
        self.entries.iter().map(|entry| &**entry)
    }

    /// Makes the part that is chosen, once.
    ///
    /// # Errors
    ///
    /// An unknown name or parameter, with the nearest known one, and a value that is out of range.
    pub fn build(&self, choice: &Choice) -> Result<Box<T>, ConfigError> {
        let entry = self.entries().find(|entry| entry.name == choice.name).ok_or_else(|| {
            let (origin, what) = self.words();
            let known: Vec<&str> = self.entries().map(|entry| &*entry.name).collect();
            let message = match cut_name(&choice.name, &known) {
                Some((name, rest)) => format!(
                    "unknown {what} \"{}\"; parameters follow commas, as in {name},{rest}",
                    choice.name
                ),
                None => unknown(what, &choice.name, known),
            };
            ConfigError::new(origin, message)
        })?;
        let given = Parameters { choice, entry, catalog: self };
        let known = |name: &String| entry.parameters.iter().any(|known| known.name == *name);
        if let Some(name) = choice.parameters.keys().find(|name| !known(name)) {
            let known = entry.parameters.iter().map(|known| &*known.name).collect();
            return Err(given.refuse(unknown("parameter", name, known)));
        }
        (entry.build)(&given)
    }

    /// What errors begin with, and what they call a part.
    fn words(&self) -> (&'static str, &'static str) {
        self.kind.rsplit_once(' ').unwrap_or((self.kind, self.kind))
    }
}

impl<T: ?Sized + 'static> Catalog<T> {
    /// The maker of the part that is chosen. An invalid choice is refused here; the maker itself never
    /// fails.
    ///
    /// # Errors
    ///
    /// As [`Catalog::build`].
    pub fn maker(&self, choice: &Choice) -> Result<Maker<T>, ConfigError> {
        self.build(choice)?;
        let (catalog, choice) = (self.clone(), choice.clone());
        Ok(Maker::new(choice.to_string(), move || {
            catalog.build(&choice).expect("it was built before, from the same parameters")
        }))
    }

    /// The maker of what `text` names: `ttl,seconds=60`.
    ///
    /// # Errors
    ///
    /// The text is not a [`Choice`]; otherwise as [`Catalog::build`].
    pub fn maker_of(&self, text: &str) -> Result<Maker<T>, ConfigError> {
        self.maker(&text.parse()?)
    }
}

impl<T: ?Sized> Clone for Catalog<T> {
    fn clone(&self) -> Self {
        Catalog { kind: self.kind, entries: self.entries.clone() }
    }
}

impl<T: ?Sized> fmt::Debug for Catalog<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog").field("kind", &self.kind).field("entries", &self.entries).finish()
    }
}

/// A known name, and what else was written behind it, without a comma between the two.
fn cut_name<'a>(written: &'a str, known: &[&str]) -> Option<(&'a str, &'a str)> {
    let end = written.find(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_')))?;
    let (name, rest) =
        (&written[..end], written[end..].trim_start_matches([':', ';', ' ', '=', '(']));
    known.contains(&name).then_some((name, rest.trim_end_matches(')')))
}

fn unknown(what: &str, name: &str, known: Vec<&str>) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown {what} \"{name}\"; did you mean \"{near}\"?"),
        None if known.is_empty() => format!("unknown {what} \"{name}\"; it takes none"),
        None => format!("unknown {what} \"{name}\"; known are {}", known.join(", ")),
    }
}

/// What an [`Entry`] is made from: the parameters that were given, and the defaults of the others.
pub struct Parameters<'a, T: ?Sized> {
    choice: &'a Choice,
    entry: &'a Entry<T>,
    catalog: &'a Catalog<T>,
}

impl<T: ?Sized> Parameters<'_, T> {
    /// A parameter's value, whatever it is.
    ///
    /// # Errors
    ///
    /// The entry's `parameters` do not list this name.
    pub fn get(&self, name: &str) -> Result<Value, ConfigError> {
        match self.choice.parameters.get(name) {
            Some(given) => Ok(given.clone()),
            None => self.info(name).map(|info| choice::scalar(&info.default)),
        }
    }

    /// A number within the parameter's bounds.
    ///
    /// # Errors
    ///
    /// The value is not a number within the bounds.
    pub fn number(&self, name: &str) -> Result<f64, ConfigError> {
        let bounds = self.bounds_within(name, f64::MIN..=f64::MAX)?;
        let wanted = format!("a number from {} to {}", bounds.start(), bounds.end());
        self.number_where(name, &wanted, |number| bounds.contains(&number))
    }

    /// A number that is `valid`; the error for an invalid one says to use `wanted`.
    ///
    /// # Errors
    ///
    /// The value is not a number, or is not `valid`.
    pub fn number_where(
        &self,
        name: &str,
        wanted: &str,
        valid: impl Fn(f64) -> bool,
    ) -> Result<f64, ConfigError> {
        let value = self.get(name)?;
        let number = match value {
            Value::Integer(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        };
        number
            .filter(|number| valid(*number))
            .ok_or_else(|| self.refuse(format!("{name} = {value} is not valid; use {wanted}")))
    }

    /// A whole number within the parameter's bounds, and within the range of the result's type.
    ///
    /// # Errors
    ///
    /// The value is not a whole number within the bounds.
    pub fn whole(&self, name: &str) -> Result<u32, ConfigError> {
        let bounds = self.bounds_within(name, 0.0..=f64::from(u32::MAX))?;
        let wanted = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        let valid = |number: f64| number.fract() == 0.0 && bounds.contains(&number);
        Ok(self.number_where(name, &wanted, valid)? as u32)
    }

    /// A time within the parameter's bounds, which are in seconds, of a century at most.
    ///
    /// # Errors
    ///
    /// The value is not a number of seconds within the bounds.
    pub fn seconds(&self, name: &str) -> Result<Duration, ConfigError> {
        let bounds = self.bounds_within(name, 0.0..=CENTURY)?;
        let wanted = format!("a number of seconds from {} to {}", bounds.start(), bounds.end());
        let seconds = self.number_where(name, &wanted, |number| bounds.contains(&number))?;
        Ok(Duration::from_secs_f64(seconds))
    }

    /// One of a few words; returns its place among them.
    ///
    /// # Errors
    ///
    /// The value is not one of the words; the error names the nearest.
    pub fn word(&self, name: &str, words: &[&str]) -> Result<usize, ConfigError> {
        let value = self.get(name)?;
        let place = value.as_str().and_then(|value| words.iter().position(|word| *word == value));
        place.ok_or_else(|| {
            let near = value.as_str().and_then(|value| nearest(value, words.iter().copied()));
            let hint = match near {
                Some(near) => format!("did you mean {near}?"),
                None => format!("use {}", words.join(" or ")),
            };
            self.refuse(format!("{name} = {value} is not valid; {hint}"))
        })
    }

    /// Another part of the same catalogue, in any form that a [`Choice`] has.
    ///
    /// # Errors
    ///
    /// The value is not a choice; otherwise as [`Catalog::build`].
    pub fn nested(&self, name: &str) -> Result<(Choice, Box<T>), ConfigError> {
        let choice = Choice::try_from(self.get(name)?)?;
        let part = self.catalog.build(&choice)?;
        Ok((choice, part))
    }

    /// An error that begins with the entry's name.
    pub fn refuse(&self, message: impl Into<String>) -> ConfigError {
        let (origin, _) = self.catalog.words();
        ConfigError::new(format!("{origin} {}", self.entry.name), message)
    }

    /// The parameter's bounds, cut to `widest`.
    fn bounds_within(
        &self,
        name: &str,
        widest: RangeInclusive<f64>,
    ) -> Result<RangeInclusive<f64>, ConfigError> {
        let Some(bounds) = &self.info(name)?.bounds else { return Ok(widest) };
        Ok(bounds.start().max(*widest.start())..=bounds.end().min(*widest.end()))
    }

    fn info(&self, name: &str) -> Result<&ParameterInfo, ConfigError> {
        let info = self.entry.parameters.iter().find(|info| info.name == name);
        info.ok_or_else(|| self.refuse(format!("its entry has no parameter \"{name}\"")))
    }
}

/// In seconds; longer than any time that is set or waited for.
pub(crate) const CENTURY: f64 = 100.0 * 365.0 * 86_400.0;

impl<T: ?Sized> fmt::Debug for Parameters<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Parameters").field(self.choice).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    trait Shape {
        fn text(&self) -> String;
    }

    impl Shape for String {
        fn text(&self) -> String {
            self.clone()
        }
    }

    type ShapeEntry = Entry<dyn Shape>;

    fn shapes() -> Catalog<dyn Shape> {
        Catalog::of(
            "flat shape",
            [
                ShapeEntry::new("point", "no size", "Euclid", || Box::new("point".to_owned())),
                ShapeEntry {
                    name: "circle".to_owned(),
                    about: "one size".to_owned(),
                    source: "Euclid".to_owned(),
                    parameters: vec![
                        ParameterInfo::new("radius", 0.5, "its size").within(0..=10),
                        ParameterInfo::new("corners", 3, "of its outline").within(3..=9),
                        ParameterInfo::new("fill", "solid", "its inside: solid or hollow"),
                        ParameterInfo::new("turn", 1.5, "how long it takes to turn"),
                        ParameterInfo::new("places", 0, "of its radius").within(-1.0..=1e12),
                        ParameterInfo::new("rest", 1, "between two turns").within(-1.0..=1e300),
                    ],
                    build: Box::new(|given| {
                        let fill = given.word("fill", &["solid", "hollow"])?;
                        let (radius, corners) = (given.number("radius")?, given.whole("corners")?);
                        let turn = given.seconds("turn")?;
                        given.whole("places")?;
                        given.seconds("rest")?;
                        Ok(Box::new(format!("circle {radius} {corners} {fill} {turn:?}")))
                    }),
                },
                ShapeEntry {
                    name: "twice".to_owned(),
                    about: "another shape, two times".to_owned(),
                    source: "Escher".to_owned(),
                    parameters: vec![ParameterInfo::new("of", "point", "which shape")],
                    build: Box::new(|given| {
                        let (choice, shape) = given.nested("of")?;
                        if choice.name == "twice" {
                            return Err(given.refuse("it is twice already"));
                        }
                        Ok(Box::new(format!("2 × {}", shape.text())))
                    }),
                },
            ],
        )
    }

    fn made(text: &str) -> String {
        shapes().maker_of(text).unwrap().make().text()
    }

    fn error(text: &str) -> String {
        shapes().maker_of(text).unwrap_err().to_string()
    }

    #[test]
    fn a_part_is_made_from_what_is_given_and_the_defaults() {
        assert_eq!(made("point"), "point");
        assert_eq!(made("circle"), "circle 0.5 3 0 1.5s");
        assert_eq!(made("circle,fill=hollow,radius=2,turn=.25"), "circle 2 3 1 250ms");
        assert_eq!(made("twice"), "2 × point");
        assert_eq!(made("twice,of=circle"), "2 × circle 0.5 3 0 1.5s");
        assert_eq!(made("twice,of={ name = \"circle\", corners = 4 }"), "2 × circle 0.5 4 0 1.5s");
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest() {
        assert_eq!(error("circel"), "flat: unknown shape \"circel\"; did you mean \"circle\"?");
        assert_eq!(error("zzz"), "flat: unknown shape \"zzz\"; known are point, circle, twice");
        let near = "flat circle: unknown parameter \"radios\"; did you mean \"radius\"?";
        assert_eq!(error("circle,radios=2"), near);
        let known = "flat twice: unknown parameter \"zzz\"; known are of";
        assert_eq!(error("twice,zzz=2"), known);
        assert_eq!(error("point,x=1"), "flat point: unknown parameter \"x\"; it takes none");
        for text in
            ["circle:corners=5", "circle corners=5", "circle;corners=5", "circle(corners=5)"]
        {
            let cut = format!(
                "flat: unknown shape \"{text}\"; parameters follow commas, as in circle,corners=5"
            );
            assert_eq!(error(text), cut);
        }
        // What is inside is looked for in the same catalogue.
        assert!(error("twice,of=circel").contains("did you mean \"circle\"?"));
        assert_eq!(error("twice,of=twice"), "flat twice: it is twice already");
    }

    #[test]
    fn values_that_are_not_valid_are_refused() {
        for (text, expected) in [
            ("circle,radius=-1", "radius = -1 is not valid; use a number from 0 to 10"),
            ("circle,radius=nan", "radius = nan is not valid; use a number from 0 to 10"),
            ("circle,radius=big", "radius = \"big\" is not valid; use a number from 0 to 10"),
            ("circle,corners=3.5", "corners = 3.5 is not valid; use a whole number from 3 to 9"),
            ("circle,fill=hallow", "fill = \"hallow\" is not valid; did you mean hollow?"),
            ("circle,fill=3", "fill = 3 is not valid; use solid or hollow"),
            (
                "circle,turn=-1",
                "turn = -1 is not valid; use a number of seconds from 0 to 3153600000",
            ),
            // Wider bounds than a result can have do not count.
            (
                "circle,places=4294967296",
                "places = 4294967296 is not valid; use a whole number from 0 to 4294967295",
            ),
            (
                "circle,places=-1",
                "places = -1 is not valid; use a whole number from 0 to 4294967295",
            ),
            (
                "circle,rest=-1",
                "rest = -1 is not valid; use a number of seconds from 0 to 3153600000",
            ),
            (
                "circle,rest=4000000000",
                "rest = 4000000000 is not valid; use a number of seconds from 0 to 3153600000",
            ),
        ] {
            assert_eq!(error(text), format!("flat circle: {expected}"));
        }
    }

    #[test]
    fn a_part_of_ones_own_joins_and_may_take_another_s_place() {
        let mut shapes = shapes();
        let before = shapes.clone();
        let square =
            |about| ShapeEntry::new("square", about, "me", || Box::new("square".to_owned()));
        shapes.register(square("four sides"));
        shapes.register(square("four of them, alike"));
        shapes.register(ShapeEntry::new("point", "a dot", "me", || Box::new("dot".to_owned())));
        let told: Vec<&str> = shapes.entries().map(|entry| &*entry.about).collect();
        let expected = ["a dot", "one size", "another shape, two times", "four of them, alike"];
        assert_eq!(told, expected);
        assert_eq!(shapes.maker_of("twice,of=square").unwrap().make().text(), "2 × square");
        assert_eq!(before.entries().count(), 3, "a clone has its own list");
    }

    #[test]
    fn a_maker_keeps_what_it_was_made_of() {
        let shapes = shapes();
        let maker = shapes.maker_of("circle, radius = 2").unwrap();
        drop(shapes);
        assert_eq!(maker.text(), "circle,radius=2");
        assert_eq!(format!("{:?}", maker.clone()), "Maker(\"circle,radius=2\")");
        assert_eq!(maker.make().text(), maker.clone().make().text());
    }

    #[test]
    fn an_entry_that_asks_for_what_it_does_not_tell_of_is_found_out() {
        let shapes: Catalog<dyn Shape> = Catalog::of(
            "shape",
            [ShapeEntry {
                build: Box::new(|given| Ok(Box::new(given.number("size")?.to_string()))),
                ..ShapeEntry::new("blob", "any form", "me", || Box::new(String::new()))
            }],
        );
        let error = shapes.maker_of("blob").unwrap_err().to_string();
        assert_eq!(error, "shape blob: its entry has no parameter \"size\"");
    }
}
