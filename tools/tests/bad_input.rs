//! Bad input: one clear message with the file or key and what to do, exit code 2 for usage and 1 for failure, no panic, and
//! nothing half-written.

mod command;

use std::{collections::HashMap, fs};

use command::{Place, SMALL, base, jpeg, picture};
use safetensors::{Dtype, tensor::TensorView};

const USAGE: i32 = 2;
const FAILURE: i32 = 1;

/// A place with twelve images in `photos` and a base.
fn place() -> Place {
    let place = Place::new();
    place.images("photos", 0, 12);
    place.write("base.safetensors", &base().encoder);
    place
}

fn mae(rest: &str) -> String {
    format!("pretrain --method mae --data photos --out run {SMALL} --set optimizer.batch=8 {rest}")
}

fn tec(rest: &str) -> String {
    format!(
        "pretrain --base base.safetensors --data photos --out run {SMALL} --set optimizer.batch=8 --set objective.top_k=5 {rest}"
    )
}

/// A truncated JPEG.
fn half_a_jpeg() -> Vec<u8> {
    let mut bytes = jpeg(&picture(1, 64, 64).into());
    bytes.truncate(bytes.len() / 2);
    bytes
}

#[test]
fn missing_arguments_are_named() {
    let place = place();
    let nothing = place.tec("");
    assert_eq!(nothing.code, Some(USAGE), "{nothing}");
    assert!(nothing.stderr.contains("Usage: tec"), "{nothing}");
    place.refuses(
        "pretrain --method mae --out run",
        USAGE,
        &["--data", "folder of images"],
    );
    place.refuses("pretrain --data photos --out run", USAGE, &["--base", "--method mae"]);
    place.refuses(
        "pretrain --base no/such --data photos --out run",
        USAGE,
        &["no/such", "give a checkpoint"],
    );
    place.refuses("pretrain --method mae --data photos --resume", USAGE, &["--out"]);
    place.refuses("pretrain --method dino --data photos", USAGE, &["dino", "tec", "mae"]);
    place.refuses(&mae("--device cuda:0"), USAGE, &["--device cuda:0", "--device cpu"]);
    place.refuses(
        &mae("--base base.safetensors"),
        USAGE,
        &["--base", "no base", "init.path"],
    );
    place.refuses(&mae("--max-steps 0"), USAGE, &["--max-steps 0", "at least 1"]);
    place.refuses(&mae("--amp fp16"), USAGE, &["--amp", "none, bf16"]);
    place.refuses(
        &mae("--set optimizer.amp=fp16"),
        USAGE,
        &["optimizer.amp", "fp16", "bf16"],
    );
}

/// Many processes that know nothing of each other would all train the same run.
#[cfg(not(feature = "mpi"))]
#[test]
fn processes_that_cannot_find_each_other_are_refused() {
    let place = place();
    for (variables, words) in [
        (
            vec![("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")],
            ["mpirun started 2 processes", "mpirun -x MASTER_ADDR"],
        ),
        (
            vec![("RANK", "1"), ("WORLD_SIZE", "4")],
            ["torchrun started 4 processes", "set MASTER_ADDR"],
        ),
        (vec![("RANK", "1")], ["RANK is set without WORLD_SIZE", "set both"]),
    ] {
        let mut command = place.command(&mae(""));
        command.envs(variables);
        let outcome = command::Outcome::of(command, "pretrain, one of several");
        assert_eq!(outcome.code, Some(USAGE), "{outcome}");
        for word in words {
            assert!(outcome.stderr.contains(word), "{word}: {outcome}");
        }
        assert!(!place.path("run").exists());
    }
    // A job of one process is nothing special.
    let mut command = place.command(&mae(""));
    command.envs([("RANK", "0"), ("WORLD_SIZE", "1")]);
    command::Outcome::of(command, "pretrain, the only process").ok();
}

#[test]
fn folders_without_images_are_refused() {
    let place = place();
    fs::create_dir(place.path("empty")).unwrap();
    place.write("texts/a.txt", "no image");
    let with = |data: &str| mae("").replace("--data photos", &format!("--data {data}"));
    place.refuses(&with("nowhere"), FAILURE, &["nowhere", "give a folder"]);
    place.refuses(&with("empty"), FAILURE, &["empty", "put JPEG or PNG images into it"]);
    place.refuses(&with("texts"), FAILURE, &["texts", "no JPEG or PNG among 1 file"]);
    place.refuses(&with("texts/a.txt"), FAILURE, &["a.txt", "is no data set"]);
}

#[test]
fn three_images_among_a_thousand_texts_need_a_small_batch() {
    let place = Place::new();
    for n in 0..1000 {
        place.write(&format!("data/text-{n}.txt"), "words");
    }
    for n in 0..3 {
        place.write(&format!("data/{n}.jpg"), jpeg(&picture(n, 40, 30).into()));
    }
    place.refuses(
        "pretrain --method mae --data data --out run",
        USAGE,
        &[
            "3 images",
            "1000 other files ignored",
            "optimizer.batch = 256",
            "--batch 3",
        ],
    );
    place
        .tec(&format!(
            "pretrain --method mae --data data --out run --batch 3 {SMALL}"
        ))
        .ok();
    assert!(place.path("run/encoder.safetensors").is_file());
}

#[test]
fn what_cannot_be_read_is_skipped_counted_and_listed() {
    let place = Place::new();
    for n in 0..8 {
        place.write(&format!("data/{n}.jpg"), jpeg(&picture(n, 40, 30).into()));
    }
    place.write("data/half.jpg", half_a_jpeg());
    // One in nine is more than one in twenty, unless that is allowed.
    let run = format!("pretrain --method mae --data data --out run --batch 3 {SMALL}");
    let outcome = place.tec(&run);
    assert_eq!(outcome.code, Some(FAILURE), "{outcome}");
    for words in ["1 of 9 images", "half.jpg: ", "data.max_unreadable = 0.05"] {
        assert!(outcome.stderr.contains(words), "{words}: {outcome}");
    }
    let outcome = place
        .tec(&format!("{run} --overwrite --set data.max_unreadable=0.2"))
        .ok();
    assert!(
        outcome.stderr.contains("could not be read: 1; run/skipped.txt"),
        "{outcome}"
    );
    let listed = String::from_utf8(place.read("run/skipped.txt")).unwrap();
    assert_eq!(listed.lines().count(), 1, "{listed}");
    assert!(listed.starts_with("half.jpg\t"), "{listed}");

    // Nothing else at all: no run is left.
    place.write("broken/half.jpg", half_a_jpeg());
    place.write("broken/text.png", "text");
    let run = format!("pretrain --method mae --data broken --out other --batch 2 {SMALL}");
    let outcome = place.tec(&run);
    assert_eq!(outcome.code, Some(FAILURE), "{outcome}");
    assert!(
        outcome.stderr.contains("half.jpg") || outcome.stderr.contains("text.png"),
        "{outcome}"
    );
    assert!(!place.path("other").exists());
}

#[test]
fn damaged_images_are_used_counted_and_listed() {
    let place = Place::new();
    let sample = |name: &str| {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tec-image/tests/data");
        std::fs::read(path.join(name)).unwrap()
    };
    // Two of five would be far too many, if they counted as unreadable.
    for n in 0..3 {
        place.write(&format!("data/{n}.jpg"), jpeg(&picture(n, 40, 30).into()));
    }
    place.write("data/gap.jpg", sample("gap.jpg"));
    place.write("data/stops.jpg", sample("stops.jpg"));
    // Whole images, so that the damage is in the crop.
    let run = format!("pretrain --method mae --data data --out run --batch 5 {SMALL} --set data.scale=[1,1] --json");
    let outcome = place.tec(&run).ok();
    assert!(
        outcome.stderr.contains("damaged: 2; run/damaged.txt lists"),
        "{outcome}"
    );
    let end = outcome.json().pop().unwrap();
    assert_eq!((&end["damaged"], &end["skipped"]), (&2.into(), &0.into()));
    assert!(!place.path("run/skipped.txt").exists());
    let listed = String::from_utf8(place.read("run/damaged.txt")).unwrap();
    let mut names: Vec<&str> = listed.lines().map(|line| line.split('\t').next().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["gap.jpg", "stops.jpg"], "each once: {listed}");
    assert!(listed.lines().all(|line| line.contains("\tdamaged: ")), "{listed}");
}

#[test]
fn batches_of_which_nothing_can_be_read_are_passed_over() {
    let place = Place::new();
    for n in 0..3 {
        place.write(&format!("data/{n}.jpg"), jpeg(&picture(n, 40, 30).into()));
        place.write(&format!("data/broken-{n}.jpg"), half_a_jpeg());
    }
    let any = "--set data.max_unreadable=1";
    let run = format!("pretrain --method mae --data data --out run --batch 1 {SMALL} {any}");
    let outcome = place.tec(&run).ok();
    assert!(outcome.stderr.contains("could not be read: 3; "), "{outcome}");
    // The step counts, read or not, and the last one leaves its checkpoint.
    assert!(place.path("run/checkpoints/step-00000012.safetensors").is_file());
    assert!(place.path("run/encoder.safetensors").is_file());
}

#[test]
fn an_image_of_one_pixel_is_an_image() {
    let place = place();
    picture(0, 1, 1).save(place.path("photos/disc/pixel.png")).unwrap();
    let outcome = place.tec(&mae("--set optimizer.batch=13")).ok();
    assert!(!place.path("run/skipped.txt").exists(), "{outcome}");
    let embedded = place.tec("embed photos/disc/pixel.png --encoder run --json").ok();
    assert_eq!(embedded.json()[0]["embedding"].as_array().unwrap().len(), 32);
}

#[test]
fn recipes_are_checked_key_by_key() {
    let place = place();
    place.write("typo.toml", "[optimizer]\nlearning_rate = 1.0\n");
    place.write("broken.toml", "[optimizer\n");
    place.refuses(
        &mae("--recipe typo.toml"),
        USAGE,
        &["typo.toml", "line 2", "learning_rate", "expected"],
    );
    place.refuses(&mae("--recipe broken.toml"), USAGE, &["broken.toml", "line 1"]);
    place.refuses(
        &mae("--recipe none.toml"),
        USAGE,
        &["none.toml", "give a TOML file", "mae-300ep-b", "ibot-b"],
    );
    place.refuses(
        &mae("--set optimizer.learning_rate=1"),
        USAGE,
        &["--set", "learning_rate"],
    );
    place.refuses(&mae("--set optimiser.lr=1"), USAGE, &["--set", "optimiser"]);
    place.refuses(&mae("--set optimizer.lr"), USAGE, &["--set optimizer.lr", "KEY=VALUE"]);
    place.refuses(&mae("--set optimizer.lr=fast"), USAGE, &["--set optimizer.lr=fast"]);
}

#[test]
fn impossible_values_are_refused() {
    let place = place();
    for (setting, words) in [
        ("objective.mask_ratio=1.5", ["objective.mask_ratio", "below 1"]),
        (
            "objective.mask_ratio=0.99",
            ["objective.mask_ratio", "none would be left"],
        ),
        ("model.patch_size=5", ["patch_size", "choose sizes that divide"]),
        ("model.patch_size=32", ["patch_size", "choose a smaller"]),
        ("model.heads=3", ["heads", "choose sizes that divide"]),
        ("model.dim=30", ["dim", "multiple of 4"]),
        ("decoder.heads=5", ["decoder.heads", "choose sizes that divide"]),
        ("optimizer.batch=0", ["optimizer.batch", "at least 1"]),
        ("optimizer.batch=13", ["12 images", "--batch 12"]),
        (
            "optimizer.accumulate=3",
            ["optimizer.accumulate = 3", "optimizer.batch = 8"],
        ),
        ("optimizer.accumulate=0", ["optimizer.accumulate = 0", "divisor"]),
        ("optimizer.clip_grad=0.0", ["optimizer.clip_grad", "above 0"]),
        ("optimizer.ema=1.0", ["optimizer.ema", "below 1"]),
        ("model.size=giant", ["giant", "huge"]),
        ("data.max_unreadable=2.0", ["data.max_unreadable", "between 0 and 1"]),
        ("probe.k=0", ["probe.k", "probe.train_images"]),
        ("optimizer.epochs=0", ["optimizer.epochs", "at least 1"]),
        ("optimizer.lr=-1.0", ["optimizer.lr", "above 0"]),
        ("data.channels=2", ["data.channels", "1 (grey) or 3 (RGB)"]),
        ("data.scale=[0.5,0.2]", ["data.scale", "rising"]),
        ("data.threads=0", ["data.threads", "between 1"]),
    ] {
        place.refuses(&mae(&format!("--set {setting}")), USAGE, &words);
    }
    for (setting, words) in [
        ("objective.top_k=17", ["objective.top_k", "16 patches"]),
        ("objective.last_layers=3", ["objective.last_layers", "2 blocks"]),
        ("objective.adapters=3", ["adapters", "choose sizes that divide"]),
        ("objective.att_tau=0.0", ["objective.att_tau", "above 0"]),
        ("data.channels=1", ["data.channels", "--set data.channels=3"]),
    ] {
        place.refuses(&tec(&format!("--set {setting}")), USAGE, &words);
    }
}

#[test]
fn files_that_are_no_base_are_refused() {
    let place = place();
    let encoder = &base().encoder;
    place.write("text.safetensors", "this is a text, and no checkpoint at all");
    place.write("half.safetensors", &encoder[..encoder.len() / 2]);
    place.write("empty.safetensors", "");
    fs::create_dir(place.path("folder")).unwrap();
    let values = [0u8; 64];
    let view = TensorView::new(Dtype::F32, vec![4, 4], &values).unwrap();
    let other = safetensors::serialize([("fc.weight", view)], None::<HashMap<String, String>>).unwrap();
    place.write("other.safetensors", other);
    for (file, word) in [
        ("text.safetensors", "is no safetensors file"),
        ("half.safetensors", "only part of it was downloaded"),
        ("empty.safetensors", "it is empty"),
        ("other.safetensors", "is no vision transformer"),
        ("folder", "no recipe.toml"),
    ] {
        let run = tec("").replace("base.safetensors", file);
        place.refuses(&run, FAILURE, &[file, word]);
    }
}

#[test]
fn weights_of_another_shape_are_no_start() {
    let place = place();
    place.write("start.safetensors", &base().checkpoint);
    place.refuses(
        &mae("--set init.path=start.safetensors --set model.dim=64 --set model.heads=4"),
        FAILURE,
        &["start.safetensors", "init.path", "another encoder", "give weights"],
    );
    place.refuses(
        &mae("--set init.path=base.safetensors"),
        FAILURE,
        &["base.safetensors", "no training checkpoint"],
    );
    place.refuses(&mae("--set init.path=photos"), FAILURE, &["photos", "no recipe.toml"]);
    place.refuses(&mae("--set init.path=nowhere"), FAILURE, &["nowhere"]);
    place.tec(&mae("--set init.path=start.safetensors --max-steps 1")).ok();
}

#[test]
fn an_output_that_exists_is_kept() {
    let place = place();
    place.write("thesis/chapter.txt", "years of work");
    let into = |out: &str, rest: &str| mae(rest).replace("--out run", &format!("--out {out}"));
    place.refuses(
        &into("thesis", ""),
        USAGE,
        &["--out thesis", "exists", "choose another"],
    );
    place.refuses(
        &into("thesis", "--overwrite"),
        USAGE,
        &["--out thesis", "is no run", "choose another"],
    );
    place.refuses(&into("thesis", "--resume"), USAGE, &["--out thesis", "no run"]);
    place.refuses(
        &into("nothing", "--resume"),
        USAGE,
        &["--out nothing", "no run to resume"],
    );
    place.refuses(
        &into("run", "--resume --overwrite"),
        USAGE,
        &["--resume", "--overwrite"],
    );

    place.tec(&mae("")).ok();
    place.refuses(&mae(""), USAGE, &["--out run", "--resume", "--overwrite"]);
    place.refuses(
        &mae("--resume --seed 3"),
        USAGE,
        &["seed (0 in the run, 3 now)", "leave them out"],
    );
    place.refuses(
        &mae("--overwrite --set objective.mask_ratio=2.0"),
        USAGE,
        &["objective.mask_ratio"],
    );
    let of_itself = tec("--overwrite").replace("base.safetensors", "run");
    place.refuses(&of_itself, USAGE, &["--overwrite", "base.path", "choose another --out"]);
    let before = place.read("run/encoder.safetensors");
    place.tec(&mae("--overwrite --seed 1")).ok();
    assert_ne!(place.read("run/encoder.safetensors"), before);

    // Other data cannot continue it.
    place.images("more", 0, 24);
    let other = mae("--resume").replace("--data photos", "--data more");
    place.refuses(&other, FAILURE, &["12 images", "24 images", "give the same data"]);
}

#[test]
fn nearest_neighbors_need_an_encoder_and_classes() {
    let place = place();
    let knn = |encoder: &str, rest: &str| format!("eval knn {encoder} --train photos --test photos {rest}");
    place.refuses(
        &knn("base.safetensors", "--k 20"),
        USAGE,
        &["12 training images", "--k between 1 and 12"],
    );
    place.refuses(&knn("base.safetensors", "--k 0"), USAGE, &["--k between 1 and 12"]);
    place.refuses(
        &knn("base.safetensors", "--k 3 --temperature 0"),
        USAGE,
        &["temperature", "above 0"],
    );
    place.refuses(&knn("nowhere", ""), USAGE, &["nowhere", "give a checkpoint"]);
    place.write("text.tec", "this is a text, and no encoder at all");
    place.refuses(&knn("text.tec", ""), FAILURE, &["text.tec", "is no safetensors file"]);
    place.refuses(&knn("photos", ""), FAILURE, &["photos", "no recipe.toml"]);
    for n in 0..4 {
        place.write(&format!("flat/{n}.jpg"), jpeg(&picture(n, 40, 30).into()));
    }
    let flat = knn("base.safetensors", "--k 3").replace("--test photos", "--test flat");
    place.refuses(&flat, FAILURE, &["flat", "one subfolder for each class"]);
    let missing = knn("base.safetensors", "--k 3").replace("--train photos", "--train nowhere");
    place.refuses(&missing, FAILURE, &["nowhere", "give a folder"]);
    place.images("unknown", 0, 3);
    fs::rename(place.path("unknown/disc"), place.path("unknown/cube")).unwrap();
    let unknown = knn("base.safetensors", "--k 3").replace("--test photos", "--test unknown");
    place.refuses(&unknown, FAILURE, &["\"cube\"", "use the same class names"]);
}

#[test]
fn other_verbs_refuse_wrong_files() {
    let place = place();
    place.write("text.safetensors", "this is a text, and no encoder at all");
    place.write("notes.txt", "words");
    place.write("half.jpg", half_a_jpeg());

    place.refuses(
        "quantize nowhere --data photos",
        USAGE,
        &["nowhere", "give a checkpoint"],
    );
    place.refuses(
        "quantize text.safetensors --data photos",
        FAILURE,
        &["text.safetensors", "is no safetensors"],
    );
    place.refuses(
        "quantize base.safetensors --data nowhere",
        FAILURE,
        &["nowhere", "give a folder"],
    );
    place.refuses(
        "quantize base.safetensors --data photos --images 0",
        USAGE,
        &["--images", "at least 1"],
    );
    place.refuses(
        "quantize base.safetensors --data photos --out a/b/c.tec",
        USAGE,
        &["a/b", "create it first"],
    );
    place.refuses(
        "quantize base.safetensors --data photos --out notes.txt",
        USAGE,
        &["notes.txt", "--overwrite"],
    );
    place.refuses(
        "quantize base.safetensors --data photos --bits 4 --group 6",
        USAGE,
        &["--group 6", "multiple of 4"],
    );
    place
        .tec("quantize base.safetensors --data photos --out small.tec")
        .ok();
    place.refuses(
        "quantize small.tec --data photos --out again.tec",
        USAGE,
        &["small.tec", "give the f32 encoder"],
    );

    let mut cut = place.read("small.tec");
    cut.truncate(cut.len() / 2);
    place.write("half.tec", &cut);
    place.refuses("inspect half.tec", FAILURE, &["half.tec"]);
    place.refuses("embed photos --encoder half.tec", FAILURE, &["half.tec"]);
    let mut flipped = place.read("small.tec");
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    place.write("flipped.tec", &flipped);
    place.refuses("embed photos --encoder flipped.tec", FAILURE, &["flipped.tec"]);

    place.refuses("inspect nowhere", USAGE, &["nowhere", "no such file"]);
    place.refuses("inspect notes.txt", FAILURE, &["notes.txt", "is no image"]);
    place.refuses("inspect photos", FAILURE, &["photos", "no recipe.toml"]);
    place.refuses(
        "inspect text.safetensors",
        FAILURE,
        &["text.safetensors", "is no safetensors"],
    );
    let broken = place.tec("inspect half.jpg --json");
    assert_eq!(broken.code, Some(FAILURE), "{broken}");
    assert_eq!(broken.json()[0]["decoded"], false, "{broken}");

    place.refuses(
        "export nowhere",
        FAILURE,
        &["nowhere", "give a directory that `tec pretrain` wrote"],
    );
    place.refuses("export photos", FAILURE, &["photos", "no recipe.toml"]);
    place.tec(&mae("")).ok();
    place.refuses("export run --out notes.txt", USAGE, &["--out notes.txt", "--overwrite"]);
    place.refuses("export run --out a/b.safetensors", USAGE, &["create it first"]);
    place.refuses(
        "export run --checkpoint notes.txt",
        FAILURE,
        &["notes.txt", "is no safetensors"],
    );
}

#[test]
fn images_that_cannot_be_embedded_are_named() {
    let place = place();
    place.write("half.jpg", half_a_jpeg());
    place.refuses(
        "embed half.jpg --encoder base.safetensors",
        FAILURE,
        &["half.jpg", "give JPEG or PNG"],
    );
    place.refuses(
        "embed nowhere.jpg --encoder base.safetensors",
        FAILURE,
        &["nowhere.jpg"],
    );
    place.refuses(
        "embed half.jpg --encoder nowhere",
        USAGE,
        &["--encoder nowhere", "give a checkpoint"],
    );
    place.refuses("embed --encoder base.safetensors", USAGE, &["IMAGE"]);
    fs::create_dir(place.path("empty")).unwrap();
    place.refuses(
        "embed empty --encoder base.safetensors",
        FAILURE,
        &["empty", "put JPEG or PNG"],
    );
    // The good ones are embedded all the same, and the exit code tells of the other.
    let mixed = place.tec("embed half.jpg photos/disc --encoder base.safetensors --json");
    assert_eq!(mixed.code, Some(FAILURE), "{mixed}");
    assert_eq!(mixed.json().len(), 4);
    assert!(mixed.stderr.contains("left out: half.jpg: "), "{mixed}");
    // A folder without a readable one is left out like a file.
    place.write("broken/half.jpg", half_a_jpeg());
    let mixed = place.tec("embed broken photos/disc --encoder base.safetensors --json");
    assert_eq!((mixed.code, mixed.json().len()), (Some(FAILURE), 4), "{mixed}");
    assert!(mixed.stderr.contains("left out: broken: "), "{mixed}");
    // In a folder as by name.
    fs::copy(place.path("half.jpg"), place.path("photos/disc/half.jpg")).unwrap();
    let folder = place.tec("embed photos/disc --encoder base.safetensors --json");
    assert_eq!((folder.code, folder.json().len()), (Some(FAILURE), 4), "{folder}");
}
