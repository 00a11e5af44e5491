//! Short facts about a run, and the images it could not read.

use super::html::{Escaped, Html, markup};

/// Skipped images that are named on the page; a folder can hold thousands.
const NAMED: usize = 200;

/// A list of facts, such as recipe, seed and device: (name, value).
pub fn facts<N: AsRef<str>, V: AsRef<str>>(list: impl IntoIterator<Item = (N, V)>) -> Html {
    let mut html = Html::new();
    markup!(html, "<dl>\n");
    for (name, value) in list {
        markup!(
            html,
            "<div><dt>{}</dt><dd>{}</dd></div>\n",
            Escaped(name.as_ref()),
            Escaped(value.as_ref())
        );
    }
    markup!(html, "</dl>\n");
    html
}

/// The images that were skipped, as (name, reason): how many, and the first two hundred of them by name.
pub fn skipped_images<N: AsRef<str>, R: AsRef<str>>(list: &[(N, R)]) -> Html {
    let count = match list.len() {
        0 => return Html::paragraph("No image was skipped."),
        1 => "1 image was skipped".to_owned(),
        n => format!("{n} images were skipped"),
    };
    let mut html = Html::new();
    markup!(html, "<details><summary>{count}</summary>\n<ul class=\"skipped\">\n");
    for (name, reason) in list.iter().take(NAMED) {
        let (name, reason) = (Escaped(name.as_ref()), Escaped(reason.as_ref()));
        markup!(
            html,
            "<li><code>{name}</code> <span class=\"note\">{reason}</span></li>\n"
        );
    }
    markup!(html, "</ul>\n");
    if list.len() > NAMED {
        markup!(html, "<p class=\"note\">and {} more</p>\n", list.len() - NAMED);
    }
    markup!(html, "</details>\n");
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::assert_well_formed;

    #[test]
    fn facts_are_escaped() {
        let html = facts([("data", "/tmp/<a> & \"b\""), ("seed", "7")]);
        assert_well_formed(html.as_str());
        assert!(html.as_str().contains("<dd>/tmp/&lt;a&gt; &amp; &quot;b&quot;</dd>"));
    }

    #[test]
    fn many_skipped_images_are_counted_and_some_named() {
        assert_eq!(
            skipped_images::<&str, &str>(&[]),
            Html::paragraph("No image was skipped.")
        );
        let list: Vec<_> = (0..NAMED + 5)
            .map(|i| (format!("<{i}>.jpg"), "ends too early"))
            .collect();
        let html = skipped_images(&list);
        assert_well_formed(html.as_str());
        assert!(html.as_str().contains("205 images were skipped") && html.as_str().contains("and 5 more"));
        assert_eq!(html.as_str().matches("<li>").count(), NAMED);
        assert!(html.as_str().contains("&lt;0&gt;.jpg"));
    }
}
