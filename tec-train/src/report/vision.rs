//! What the models see: masked images, and attention maps over images.

use super::{
    html::{Escaped, Html, markup},
    picture::{Canvas, Grid, Picture, brightness, heat, mix},
};
use crate::{Error, Result};

/// Removed patches: a grey that is hardly an image's own, thanks to a touch of blue.
const REMOVED: [u8; 3] = [124, 130, 142];
/// Lines between removed patches.
const REMOVED_EDGE: [u8; 3] = [108, 114, 126];
/// The frame of a query's patch: a color that viridis does not have.
const QUERY: [u8; 3] = [255, 59, 48];
/// Longest side of a masked image and of an attention map, of which there are many more.
const IMAGE_SIDE: usize = 224;
const MAP_SIDE: usize = 168;
/// Share of the heat map over the image.
const OVERLAY: f32 = 0.62;

/// An image and what was removed of it before the new model saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskedImage {
    /// What to call it, such as its class; may be empty.
    pub name: String,
    /// The image as it was cropped for the model.
    pub picture: Picture,
    /// Side of a patch, in pixels of `picture`.
    pub patch_size: usize,
    /// `[L]`, by rows: whether the patch was removed.
    pub removed: Vec<bool>,
}

/// Images beside themselves with the removed patches in grey.
///
/// # Errors
/// [`Error::Data`] if patches do not divide an image, or `removed` has another length than there are patches.
pub fn masked_images(images: &[MaskedImage]) -> Result<Html> {
    let mut html = Html::new();
    markup!(html, "<div class=\"pairs\">\n");
    for image in images {
        let grid = image.picture.grid(image.patch_size)?;
        expect_patches("the mask", grid, image.removed.len())?;
        let original = Canvas::new(&image.picture, IMAGE_SIDE);
        let mut masked = original.clone();
        masked.paint_patches(grid, |patch, pixel, edge| match (image.removed[patch], edge) {
            (false, _) => pixel,
            (true, false) => REMOVED,
            (true, true) => REMOVED_EDGE,
        });
        let removed = image.removed.iter().filter(|&&removed| removed).count();
        markup!(html, "<figure><div class=\"pair\">");
        push_image(&mut html, &original, &format!("{}, whole", or_image(&image.name)))?;
        push_image(&mut html, &masked, &format!("{}, masked", or_image(&image.name)))?;
        markup!(html, "</div><figcaption>");
        if !image.name.is_empty() {
            markup!(html, "{} ", Escaped(&image.name));
        }
        markup!(
            html,
            "<span class=\"note\">{} of {} visible</span>",
            grid.patches() - removed,
            grid.patches()
        );
        markup!(html, "</figcaption></figure>\n");
    }
    markup!(html, "</div>\n");
    Ok(html)
}

/// The attention of the base and of the new model over one image: the class token's, then that of some queries.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionMaps {
    /// What to call the image, such as its class; may be empty.
    pub name: String,
    /// The image as it was cropped for the models.
    pub picture: Picture,
    /// Side of a patch, in pixels of `picture`.
    pub patch_size: usize,
    /// The queries' patch numbers, in rank order; as many as are to be shown.
    pub queries: Vec<usize>,
    /// The base's maps `[1 + queries][L]`: the class token's first. Any scale: each map is stretched to its own range.
    pub base: Vec<Vec<f32>>,
    /// The new model's maps, likewise.
    pub new_model: Vec<Vec<f32>>,
}

/// The base's maps above the new model's, a table an image: a column for the class token and for each query, whose
/// patch is framed.
///
/// # Errors
/// [`Error::Data`] if patches do not divide an image, a query is no patch of it, a map is missing, has another length
/// than there are patches, or holds values that are not finite.
pub fn attention_maps(images: &[AttentionMaps]) -> Result<Html> {
    let mut html = Html::new();
    let scale = Canvas::heat_scale().data_uri()?;
    markup!(
        html,
        "<p class=\"heat note\">least <img src=\"{scale}\" alt=\"dark violet to green to yellow\"> most, each map \
         stretched to its own range; the <span class=\"query\">framed</span> patch is the one that looks.</p>\n"
    );
    for image in images {
        let grid = image.picture.grid(image.patch_size)?;
        if let Some(query) = image.queries.iter().find(|&&query| query >= grid.patches()) {
            return Err(Error::Data(format!(
                "attention maps of the report: query {query} is no patch of an image with {}",
                grid.patches()
            )));
        }
        let canvas = Canvas::new(&image.picture, MAP_SIDE);
        markup!(html, "<figure class=\"attention\">\n<div class=\"looked-at\">");
        push_image(&mut html, &canvas, or_image(&image.name))?;
        markup!(
            html,
            "<figcaption>{}</figcaption></div>\n<div class=\"scroll\"><table>\n",
            Escaped(or_image(&image.name))
        );
        markup!(html, "<thead><tr><td></td><th scope=\"col\">class token</th>");
        for rank in 1..=image.queries.len() {
            markup!(html, "<th scope=\"col\">query {rank}</th>");
        }
        markup!(html, "</tr></thead>\n<tbody>\n");
        for (model, maps) in [("base", &image.base), ("new model", &image.new_model)] {
            if maps.len() != 1 + image.queries.len() {
                return Err(Error::Data(format!(
                    "attention maps of the report: the {model} has {} maps, expected {} (class token and queries)",
                    maps.len(),
                    1 + image.queries.len()
                )));
            }
            markup!(html, "<tr><th scope=\"row\">{model}</th>");
            for (i, map) in maps.iter().enumerate() {
                let query = i.checked_sub(1).map(|i| image.queries[i]);
                let drawn = overlay(&canvas, grid, map, query)?;
                let whose = query.map_or_else(|| "the class token".to_owned(), |patch| format!("patch {patch}"));
                markup!(html, "<td>");
                push_image(&mut html, &drawn, &format!("{model}: attention of {whose}"))?;
                markup!(html, "</td>");
            }
            markup!(html, "</tr>\n");
        }
        markup!(html, "</tbody></table></div>\n</figure>\n");
    }
    Ok(html)
}

fn overlay(canvas: &Canvas, grid: Grid, map: &[f32], query: Option<usize>) -> Result<Canvas> {
    expect_patches("an attention map", grid, map.len())?;
    let low = map.iter().copied().fold(f32::INFINITY, f32::min);
    let high = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !map.iter().all(|value| value.is_finite()) {
        return Err(Error::Data(
            "an attention map of the report holds values that are not finite".to_owned(),
        ));
    }
    // A map that prefers nothing is shown in the middle of the scale. Halves keep the widest range finite.
    let height = high / 2.0 - low / 2.0;
    let shade = |value: f32| {
        if height > 0.0 {
            (value / 2.0 - low / 2.0) / height
        } else {
            0.5
        }
    };
    let mut drawn = canvas.clone();
    drawn.paint_patches(grid, |patch, pixel, _| {
        mix([brightness(pixel); 3], heat(shade(map[patch])), OVERLAY)
    });
    if let Some(query) = query {
        drawn.outline(grid, query, QUERY);
    }
    Ok(drawn)
}

fn expect_patches(what: &str, grid: Grid, length: usize) -> Result<()> {
    if length == grid.patches() {
        return Ok(());
    }
    Err(Error::Data(format!(
        "{what} of the report has {length} patches, its image {} ({}×{})",
        grid.patches(),
        grid.columns,
        grid.rows
    )))
}

fn or_image(name: &str) -> &str {
    if name.is_empty() { "image" } else { name }
}

fn push_image(html: &mut Html, canvas: &Canvas, description: &str) -> Result<()> {
    let uri = canvas.data_uri()?;
    let (width, height, description) = (canvas.width, canvas.height, Escaped(description));
    let class = if canvas.enlarged { " class=\"enlarged\"" } else { "" };
    markup!(
        html,
        "<img{class} src=\"{uri}\" width=\"{width}\" height=\"{height}\" alt=\"{description}\">"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::assert_well_formed;

    fn picture() -> Picture {
        Picture::new(28, 28, 1, (0..784).map(|i| (i / 4) as u8).collect()).expect("a picture")
    }

    fn masked() -> MaskedImage {
        MaskedImage {
            name: "<b>coat</b> & 'hat'".to_owned(),
            picture: picture(),
            patch_size: 4,
            removed: (0..49).map(|i| i % 4 != 0).collect(),
        }
    }

    fn maps() -> AttentionMaps {
        let map = |at: usize| (0..49).map(|i| if i == at { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
        AttentionMaps {
            name: "<b>".to_owned(),
            picture: picture(),
            patch_size: 4,
            queries: vec![0, 48],
            base: vec![map(3), map(0), map(48)],
            new_model: vec![
                vec![0.25; 49],
                vec![f32::MIN; 49],
                (0..49).map(|i| if i < 9 { f32::MIN } else { f32::MAX }).collect(),
            ],
        }
    }

    #[test]
    fn pages_show_every_picture() {
        let html = masked_images(&[masked(), masked()]).expect("draws");
        assert_well_formed(html.as_str());
        assert_eq!(html.as_str().matches("<img").count(), 4);
        assert!(html.as_str().contains("13 of 49 visible") && !html.as_str().contains("<b>"));
        let html = attention_maps(&[maps()]).expect("draws");
        assert_well_formed(html.as_str());
        // The scale, the image, and two rows of three maps.
        assert_eq!(html.as_str().matches("<img").count(), 8);
        assert!(
            html.as_str().contains("query 2") && !html.as_str().contains("query 3") && !html.as_str().contains("<b>")
        );
        assert_well_formed(masked_images(&[]).expect("nothing").as_str());
        assert_well_formed(attention_maps(&[]).expect("nothing").as_str());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let bad = MaskedImage {
            removed: vec![true; 48],
            ..masked()
        };
        assert!(
            masked_images(&[bad])
                .expect_err("48 patches")
                .to_string()
                .contains("48 patches, its image 49 (7×7)")
        );
        assert!(
            masked_images(&[MaskedImage {
                patch_size: 5,
                ..masked()
            }])
            .is_err()
        );
        for (bad, says) in [
            (
                AttentionMaps {
                    queries: vec![0, 49],
                    ..maps()
                },
                "query 49",
            ),
            (
                AttentionMaps {
                    queries: vec![0],
                    ..maps()
                },
                "expected 2",
            ),
            (
                AttentionMaps {
                    base: vec![vec![0.0; 50]; 3],
                    ..maps()
                },
                "50 patches",
            ),
            (
                AttentionMaps {
                    new_model: vec![vec![f32::NAN; 49]; 3],
                    ..maps()
                },
                "not finite",
            ),
        ] {
            let error = attention_maps(&[bad]).expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn brightest_where_attention_is_highest() {
        let black = Picture::new(28, 28, 1, vec![0; 784]).expect("a picture");
        let grid = black.grid(4).expect("divides");
        let map: Vec<f32> = (0..49).map(|i| i as f32).collect();
        let drawn = overlay(&Canvas::new(&black, MAP_SIDE), grid, &map, None).expect("draws");
        let shades: Vec<u8> = (0..49)
            .map(|patch| brightness(drawn.pixel(patch % 7 * 16, patch / 7 * 16)))
            .collect();
        assert!(shades.is_sorted() && shades[48] > shades[0] + 100, "{shades:?}");
    }
}
