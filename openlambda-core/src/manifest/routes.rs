//! Templates of paths, as API Gateway's REST APIs have them: `/items/{id}`, `/files/{path+}`.
//!
//! They route nothing here, since a function is one handler: with `event = "http-v1"` they say which resource a
//! call is of, and which parts of its path are parameters.

/// The most templates of one function, as many resources as an API has there.
const MOST_ROUTES: usize = 300;

/// A template that a path is like.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteMatch<'a> {
    /// The template.
    pub route: &'a str,
    /// Its parameters, in their order: the name, and what of the path it stands for, which is not decoded.
    pub parameters: Vec<(&'a str, &'a str)>,
}

/// The template that `path` is like. Where several are, it is the one that is closest from the left: a part of its
/// own goes before a parameter, and that before one that takes all the rest. A `/` at the path's end does not
/// count.
pub fn match_route<'a>(routes: &'a [String], path: &'a str) -> Option<RouteMatch<'a>> {
    let path = match path.strip_suffix('/') {
        Some(shorter) if !shorter.is_empty() => shorter,
        _ => path,
    };
    let matches = routes.iter().filter_map(|route| like(route, path));
    let (_, parameters, route) = matches.min_by(|a, b| a.0.cmp(&b.0))?;
    Some(RouteMatch { route, parameters })
}

/// What a part of a template stands for; the closest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Literal(&'a str),
    Parameter(&'a str),
    Rest(&'a str),
}

impl<'a> Part<'a> {
    fn of(text: &'a str) -> Self {
        match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(name) => name.strip_suffix('+').map_or(Part::Parameter(name), Part::Rest),
            None => Part::Literal(text),
        }
    }
}

type Like<'a> = (Vec<u8>, Vec<(&'a str, &'a str)>, &'a str);

/// How close a template is to the path, part by part, with its parameters; `None`: the path is not like it.
fn like<'a>(route: &'a str, path: &'a str) -> Option<Like<'a>> {
    let mut rest = Some(path.strip_prefix('/')?);
    let (mut kinds, mut parameters) = (Vec::new(), Vec::new());
    for part in route.strip_prefix('/')?.split('/').map(Part::of) {
        let all = rest?;
        let (first, others) = match all.split_once('/') {
            Some((first, others)) => (first, Some(others)),
            None => (all, None),
        };
        rest = others;
        match part {
            Part::Literal(text) if text != first => return None,
            Part::Literal(_) => kinds.push(0),
            Part::Parameter(_) if first.is_empty() => return None,
            Part::Parameter(name) => {
                kinds.push(1);
                parameters.push((name, first));
            }
            Part::Rest(_) if all.is_empty() => return None,
            Part::Rest(name) => {
                kinds.push(2);
                parameters.push((name, all));
                rest = None;
            }
        }
    }
    rest.is_none().then_some((kinds, parameters, route))
}

/// What is wrong with a manifest's templates.
pub(super) fn fault(routes: &[String]) -> Option<String> {
    if routes.len() > MOST_ROUTES {
        return Some(format!("routes is too long; use at most {MOST_ROUTES}"));
    }
    let wrong = routes.iter().find(|route| !is_valid(route))?;
    let shown: String = wrong.escape_debug().take(80).collect();
    Some(format!(
        "route \"{shown}\" is not valid; write it as \"/items/{{id}}\", or as \"/files/{{path+}}\" where the last \
         parameter takes all the rest, each parameter with a name of its own"
    ))
}

fn is_valid(route: &str) -> bool {
    let Some(below) = route.strip_prefix('/') else { return false };
    if below.is_empty() {
        return true;
    }
    let parts: Vec<_> = below.split('/').map(Part::of).collect();
    let mut names = Vec::new();
    parts.iter().enumerate().all(|(place, part)| match part {
        Part::Literal(text) => {
            !text.is_empty() && !text.contains(|c: char| "{}?#".contains(c) || c.is_control())
        }
        Part::Parameter(name) | Part::Rest(name) => {
            let is_last = place + 1 == parts.len();
            let once = !names.contains(name);
            names.push(*name);
            once && !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:$".contains(&b))
                && (is_last || !matches!(part, Part::Rest(_)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_template_is_found() {
        let routes = [
            "/",
            "/items",
            "/items/{id}",
            "/items/new",
            "/items/{id}/parts/{part}",
            "/{any}/new/x",
            "/files/{path+}",
            "/{all+}",
        ]
        .map(str::to_owned);
        for (path, route, parameters) in [
            ("/", Some("/"), &[][..]),
            ("/items", Some("/items"), &[]),
            ("/items/", Some("/items"), &[]),
            ("/items/new", Some("/items/new"), &[]),
            ("/items/a%2Fb", Some("/items/{id}"), &[("id", "a%2Fb")]),
            ("/items/5/parts/6/", Some("/items/{id}/parts/{part}"), &[("id", "5"), ("part", "6")]),
            ("/items/5/parts", Some("/{all+}"), &[("all", "items/5/parts")]),
            ("/items/new/x", Some("/{any}/new/x"), &[("any", "items")]),
            ("/files/a/b//c", Some("/files/{path+}"), &[("path", "a/b//c")]),
            ("/files", Some("/{all+}"), &[("all", "files")]),
            ("/files/", Some("/{all+}"), &[("all", "files")]),
            ("//", Some("/"), &[]),
        ] {
            let found = match_route(&routes, path);
            assert_eq!(found.as_ref().map(|found| found.route), route, "{path}");
            assert_eq!(found.unwrap().parameters, parameters, "{path}");
        }
        assert_eq!(match_route(&routes[1..3], "/other"), None);
        assert_eq!(match_route(&[], "/"), None);
        assert_eq!(match_route(&["/{all+}".to_owned()], "/"), None);
    }

    #[test]
    fn templates_that_cannot_be_meant_are_refused() {
        for wrong in [
            "",
            "items",
            "//",
            "/a/",
            "/a//b",
            "/{}",
            "/{+}",
            "/{a",
            "/a}",
            "/x{a}",
            "/{a}x",
            "/{a}/{a}",
            "/{a+}/b",
            "/a?b",
            "/{a b}",
            "/{a+}/{b+}",
        ] {
            let fault = fault(&[wrong.to_owned()]).unwrap_or_else(|| panic!("{wrong} is taken"));
            assert!(fault.contains("is not valid; write it as"), "{fault}");
        }
        assert_eq!(fault(&["/", "/a.b/{c-d}/{e+}", "/ü"].map(str::to_owned)), None);
        assert!(fault(&vec!["/".to_owned(); 301]).unwrap().contains("at most 300"));
    }
}
