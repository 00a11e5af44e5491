//! Markup that is known to be safe to put into a page.

use std::fmt::{self, Write};

/// A piece of markup whose text was escaped when it was made.
///
/// Only this module's siblings make markup from tags; everyone else makes it from text, which is escaped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Html(String);

impl Html {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A paragraph of plain text.
    pub fn paragraph(text: &str) -> Self {
        Self(format!("<p>{}</p>\n", Escaped(text)))
    }

    /// A heading below the section's own.
    pub fn heading(text: &str) -> Self {
        Self(format!("<h3>{}</h3>\n", Escaped(text)))
    }

    /// This, then `next`.
    #[must_use]
    pub fn then(mut self, next: Html) -> Self {
        self.0.push_str(&next.0);
        self
    }

    /// The markup.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn push(&mut self, arguments: fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(arguments);
    }
}

/// Appends markup to an [`Html`]; text goes through [`Escaped`].
macro_rules! markup {
    ($html:expr, $($argument:tt)*) => { $html.push(format_args!($($argument)*)) };
}
pub(super) use markup;

/// Text, escaped for an element's content and for an attribute in either kind of quote.
///
/// Control characters other than tab and line ends, which HTML does not allow, are shown as U+FFFD.
pub(super) struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\t' | '\n' | '\r' => f.write_char(c)?,
                c if c.is_control() => f.write_char('\u{FFFD}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Panics unless every element that is opened is closed in order and every attribute is quoted. Markup only, no
    /// script and no comments: that is all a report contains.
    pub(in crate::report) fn assert_well_formed(markup: &str) {
        const VOID: [&str; 4] = ["meta", "img", "br", "link"];
        let mut open: Vec<&str> = Vec::new();
        let mut rest = markup;
        while let Some(start) = rest.find('<') {
            assert!(!rest[..start].contains('>'), "stray > in {:?}", &rest[..start]);
            rest = &rest[start + 1..];
            let end = rest.find('>').expect("a tag that ends");
            let tag = &rest[..end];
            rest = &rest[end + 1..];
            assert!(!tag.contains('<'), "stray < in <{tag}>");
            assert!(
                tag.matches('"').count().is_multiple_of(2),
                "unbalanced quotes in <{tag}>"
            );
            if tag.starts_with('!') || tag.starts_with('?') {
                continue;
            }
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "</{name}> closes another element");
                continue;
            }
            let name = tag.split([' ', '\n', '/']).next().expect("a name");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "odd element <{tag}>");
            if name == "style" {
                let end = rest.find("</style>").expect("a style sheet that ends");
                rest = &rest[end + "</style>".len()..];
            } else if !tag.ends_with('/') && !VOID.contains(&name) {
                open.push(name);
            }
        }
        assert!(open.is_empty(), "left open: {open:?}");
    }

    #[test]
    fn text_cannot_become_markup() {
        let hostile = "<script>alert('x' & \"y\")</script>\u{0}";
        let escaped = Escaped(hostile).to_string();
        assert_eq!(
            escaped,
            "&lt;script&gt;alert(&#39;x&#39; &amp; &quot;y&quot;)&lt;/script&gt;\u{FFFD}"
        );
        assert_eq!(Escaped("Größe 図 é\n").to_string(), "Größe 図 é\n");
        let html = Html::paragraph(hostile).then(Html::heading(hostile));
        assert_well_formed(html.as_str());
        assert!(!html.as_str().contains("<script"));
    }

    #[test]
    #[should_panic(expected = "closes another element")]
    fn crossed_tags_are_noticed() {
        assert_well_formed("<p><b>x</p></b>");
    }

    #[test]
    #[should_panic(expected = "left open")]
    fn an_open_tag_is_noticed() {
        assert_well_formed("<p><img src=\"x\">");
    }
}
