//! Awkward real files, where the shared data are at hand.

use std::path::Path;

use tec_image::{decode, inspect};

/// The manifest's "ok" is of a second attempt on the same object: PIL's first refuses it, as we do.
const REFUSED: &str = "pillow_broken_data_stream.png";

/// PIL's view of awkward real files, where the shared data are at hand.
#[test]
fn awkward_files_decode_as_in_pil() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/decoder_edge_cases");
    let Ok(manifest) = std::fs::read_to_string(folder.join("MANIFEST.tsv")) else {
        println!("not run: there is no {}", folder.display());
        return;
    };
    for line in manifest.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (name, mode, size, decodes) = (fields[0], fields[3], fields[4], fields[8] == "ok");
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let decoded = decode(&bytes);
        assert_eq!(decoded.is_ok(), decodes && name != REFUSED, "{name}");
        let info = inspect(&bytes).unwrap();
        assert_eq!(
            (info.mode, format!("{}x{}", info.width, info.height)),
            (mode, size.to_string()),
            "{name}"
        );
        let orientation = fields[6].parse().unwrap_or(1);
        assert_eq!(info.orientation, orientation, "{name}");
        if let Ok(image) = decoded {
            let turned = if orientation > 4 {
                (info.height, info.width)
            } else {
                (info.width, info.height)
            };
            assert_eq!((image.width, image.height), turned, "{name}");
        }
    }
}
