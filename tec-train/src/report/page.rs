//! The page itself.

use super::html::{Escaped, Html, markup};
use crate::{Error, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The report of a run: a title, a sentence, and sections.
#[derive(Debug, Clone, Default)]
pub struct Report {
    title: String,
    lead: String,
    sections: Vec<Section>,
}

#[derive(Debug, Clone)]
struct Section {
    title: String,
    text: String,
    body: Html,
}

impl Report {
    /// A report without sections; `lead` is the sentence below the title that says what came out.
    pub fn new(title: impl Into<String>, lead: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            lead: lead.into(),
            sections: Vec::new(),
        }
    }

    /// Adds a section; `text` says how to read what is in it, and may be empty.
    pub fn section(&mut self, title: impl Into<String>, text: impl Into<String>, body: Html) -> &mut Self {
        self.sections.push(Section {
            title: title.into(),
            text: text.into(),
            body,
        });
        self
    }

    /// The whole page, which needs no other file.
    pub fn to_html(&self) -> String {
        let mut html = Html::new();
        let title = Escaped(&self.title);
        markup!(
            html,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{}</style>\n</head>\n\
             <body>\n<main>\n<header>\n<h1>{title}</h1>\n",
            include_str!("style.css")
        );
        if !self.lead.is_empty() {
            markup!(html, "<p class=\"lead\">{}</p>\n", Escaped(&self.lead));
        }
        markup!(html, "<nav>");
        for (i, section) in self.sections.iter().enumerate() {
            markup!(html, "<a href=\"#section-{}\">{}</a> ", i + 1, Escaped(&section.title));
        }
        markup!(html, "</nav>\n</header>\n");
        for (i, section) in self.sections.iter().enumerate() {
            markup!(
                html,
                "<section id=\"section-{}\">\n<h2>{}</h2>\n",
                i + 1,
                Escaped(&section.title)
            );
            if !section.text.is_empty() {
                markup!(html, "<p class=\"text\">{}</p>\n", Escaped(&section.text));
            }
            markup!(html, "{}</section>\n", section.body.as_str());
        }
        markup!(html, "</main>\n</body>\n</html>\n");
        html.as_str().to_owned()
    }

    /// Writes `index.html` into `folder`, which is made if it is not there, and returns the file's path. A report that
    /// is there is replaced at once, never half.
    ///
    /// # Errors
    /// [`Error::File`] if the folder or the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join("index.html");
        let partial = folder.join("index.html.partial");
        let written = fs::create_dir_all(folder)
            .and_then(|()| fs::write(&partial, self.to_html()))
            .and_then(|()| fs::rename(&partial, &path));
        match written {
            Ok(()) => Ok(path),
            Err(error) => Err(Error::File {
                path,
                reason: format!("the report cannot be written: {error}; free space or choose another --out"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{MaskedImage, Picture, Plot, Series, html::tests::assert_well_formed, masked_images};

    #[test]
    fn a_page_needs_nothing_beside_it() {
        let mut report = Report::new("run <1>", "It's \"done\" & well");
        report
            .section("First", "", Html::paragraph("a"))
            .section("Second <2>", "how & why", Html::new());
        let page = report.to_html();
        assert_well_formed(&page);
        for outside in ["http://", "https://", "src=\"/", "<script", "<link", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("<title>run &lt;1&gt;</title>") && page.contains("Second &lt;2&gt;"));
    }

    #[test]
    fn plots_and_pictures_are_inside() {
        let picture = Picture::new(32, 32, 3, vec![200; 32 * 32 * 3]).expect("a picture");
        let removed = (0..64).map(|patch| patch % 4 != 0).collect();
        let image = MaskedImage {
            name: String::new(),
            picture,
            patch_size: 4,
            removed,
        };
        let plot = Plot::new("loss", "step").series(Series::new("total", (0..300).map(|i| (i.into(), 1.0))));
        let mut report = Report::new("run", "");
        report.section("Seen", "", plot.to_html().then(masked_images(&[image]).expect("draws")));
        let page = report.to_html();
        assert_well_formed(&page);
        assert_eq!(
            page.matches(" src=\"").count(),
            page.matches(" src=\"data:image/png;base64,").count()
        );
        assert_eq!((page.matches(" src=\"").count(), page.matches("<svg ").count()), (2, 2));
        assert!(!page.contains(" href=\"http"), "a link out of the page");
    }

    #[test]
    fn writing_replaces_the_page_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let inside = folder.path().join("run/report");
        Report::new("old", "").write(&inside).expect("writes");
        let path = Report::new("new", "").write(&inside).expect("writes again");
        assert!(fs::read_to_string(&path).expect("reads").contains("<h1>new</h1>"));
        assert_eq!(fs::read_dir(&inside).expect("lists").count(), 1);
        // A file where the folder should be.
        let error = Report::new("x", "").write(&path).expect_err("not a folder");
        assert!(error.to_string().contains("index.html"), "{error}");
    }
}
