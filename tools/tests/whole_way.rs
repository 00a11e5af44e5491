//! The whole way on small images: a base, a new model from it, evaluation, export, quantization, embeddings; and that
//! stopping, killing and the number of threads leave no trace in the weights.

mod command;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::Stdio,
};

use command::{Outcome, Place, SMALL, base};
use serde_json::Value;

/// Keys of every line of `metrics.jsonl`.
const METRICS: [&str; 10] = [
    "data_wait",
    "epoch",
    "grad_norm",
    "images_per_s",
    "loss",
    "loss_feature",
    "loss_relation",
    "lr",
    "peak_bytes",
    "step",
];

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"))
}

/// The lines of a run's `metrics.jsonl`.
fn metrics(place: &Place, run: &str) -> Vec<Value> {
    let text = String::from_utf8(place.read(&format!("{run}/metrics.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What of the metrics must be the same for the same weights.
fn computed(place: &Place, run: &str) -> Vec<Vec<Value>> {
    let kept = |line: Value| {
        [
            "step",
            "epoch",
            "loss",
            "loss_feature",
            "loss_relation",
            "lr",
            "grad_norm",
        ]
        .map(|key| line[key].clone())
    };
    metrics(place, run)
        .into_iter()
        .map(|line| kept(line).to_vec())
        .collect()
}

/// Asserts that a finished run has the documented files, and no others.
fn assert_shape(place: &Place, run: &str, checkpoints: &[&str]) {
    let files = place.files(run);
    let (events, others): (Vec<_>, Vec<_>) = files.iter().partition(|f| f.starts_with("events.out.tfevents."));
    assert!(!events.is_empty(), "{files:?}");
    let mut expected: Vec<String> = checkpoints
        .iter()
        .map(|c| format!("checkpoints/{c}.safetensors"))
        .collect();
    expected.extend(
        [
            "encoder.safetensors",
            "lock",
            "metrics.jsonl",
            "recipe.toml",
            "report/index.html",
        ]
        .map(String::from),
    );
    let others: Vec<String> = others.into_iter().cloned().collect();
    assert_eq!(others, expected);
}

fn cosine(a: &Value, b: &Value) -> f64 {
    let values = |v: &Value| -> Vec<f64> {
        let list = v["embedding"].as_array().unwrap();
        list.iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let (a, b) = (values(a), values(b));
    assert_eq!((a.len(), b.len()), (32, 32));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn from_images_to_a_device() {
    let place = Place::new();
    place.images("photos", 0, 40);
    place.images("others", 40, 20);

    let run = place.tec(&format!(
        "pretrain --method mae --data photos --out runs/base --batch 8 --json {SMALL}"
    ));
    let lines = run.ok().json();
    assert_eq!(lines.len(), 11, "a line a step and one for the run");
    // The images have classes, so that the last step has a probe.
    assert!(lines[..9].iter().all(|line| keys(line) == METRICS));
    assert!(lines[..10].iter().all(|line| line["loss_relation"].is_null()));
    assert!((0.0..=1.0).contains(&number(&lines[9], "knn_top1")), "{}", lines[9]);
    assert_eq!(
        keys(&lines[10]),
        ["damaged", "data_wait", "loss", "run", "skipped", "step"]
    );
    assert_eq!((&lines[10]["step"], &lines[10]["skipped"]), (&10.into(), &0.into()));
    assert_shape(&place, "runs/base", &["step-00000005", "step-00000010"]);

    // The base by its run's path; geometry follows from it.
    let small =
        "--epochs 2 --batch 8 --set decoder.dim=32 --set decoder.depth=1 --set decoder.heads=2 --set optimizer.lr=1e-3";
    let run = place
        .tec(&format!("pretrain --base runs/base --data photos --out new {small}"))
        .ok();
    assert_eq!(run.stdout, "new\n");
    assert_shape(&place, "new", &["step-00000005", "step-00000010"]);
    let lines = metrics(&place, "new");
    assert_eq!(lines.len(), 10);
    for (line, step) in lines.iter().zip(1..) {
        let all: Vec<&str> = keys(line).into_iter().filter(|k| *k != "knn_top1").collect();
        assert_eq!(all, METRICS);
        assert_eq!(line.get("knn_top1").is_some(), step == 10, "{line}");
        assert_eq!(line["step"], step);
        assert_eq!(number(line, "epoch"), step as f64 / 5.0);
        let total = number(line, "loss_feature") + number(line, "loss_relation");
        assert!((number(line, "loss") - total).abs() < 1e-6 * total, "{line}");
        assert!(number(line, "grad_norm") > 0.0 && number(line, "lr") >= 0.0, "{line}");
    }
    assert!(
        number(&lines[9], "loss") < number(&lines[0], "loss"),
        "nothing was learned"
    );
    let report = String::from_utf8(place.read("new/report/index.html")).unwrap();
    for section in ["Attention of the selected queries", "k-NN probe", "Best checkpoint"] {
        assert!(report.contains(section), "no {section}");
    }

    // The resolved recipe alone repeats the run; so does the base by its name.
    place.tec("pretrain --recipe new/recipe.toml --out again").ok();
    place
        .tec(&format!("pretrain --base base --data photos --out named {small}"))
        .ok();
    for run in ["again", "named"] {
        assert!(
            place.read(&format!("{run}/encoder.safetensors")) == place.read("new/encoder.safetensors"),
            "{run}"
        );
    }

    let knn = |encoder: &str| {
        let found = place
            .tec(&format!("eval knn {encoder} --train photos --test others --k 5 --json"))
            .ok()
            .json();
        assert_eq!(
            keys(&found[0]),
            [
                "classes",
                "encoder",
                "k",
                "metric",
                "pool",
                "temperature",
                "test_images",
                "train_images",
                "value"
            ]
        );
        assert_eq!(
            (&found[0]["metric"], &found[0]["classes"]),
            (&"knn_top1".into(), &3.into())
        );
        assert_eq!(
            (&found[0]["train_images"], &found[0]["test_images"]),
            (&40.into(), &20.into())
        );
        number(&found[0], "value")
    };
    // Stripes, discs and checks in three classes: any encoder of pixels does better than chance.
    let float = knn("new");
    assert!((0.34..=1.0).contains(&float), "{float}");

    let exported = place.tec("export new --out exported.safetensors --json").ok().json();
    assert_eq!(
        (&exported[0]["step"], &exported[0]["config"]["dim"]),
        (&10.into(), &32.into())
    );
    assert!(place.read("exported.safetensors") == place.read("new/encoder.safetensors"));
    place
        .tec("export new --checkpoint new/checkpoints/step-00000005.safetensors --out half.safetensors")
        .ok();
    assert!(place.read("half.safetensors") != place.read("exported.safetensors"));

    let quantized = place.tec("quantize new --data photos --images 16 --json").ok().json();
    assert_eq!(quantized[0]["encoder"], "new/encoder.tec");
    assert_eq!(quantized[0]["bytes"], place.read("new/encoder.tec").len());
    assert_eq!(
        (&quantized[0]["calibration_images"], &quantized[0]["compared_images"]),
        (&16.into(), &16.into())
    );
    assert_eq!(quantized[0]["compared_on_other_images"], true);
    let (int8, int4) = (&quantized[0]["rows"][0], &quantized[0]["rows"][1]);
    assert_eq!((&int8["written"], &int4["written"]), (&true.into(), &false.into()));
    assert!(number(&int8["cosine_mean"], "worst") > 0.99, "{quantized:?}");
    assert!(number(&int4["cosine_mean"], "mean") > 0.9, "{quantized:?}");
    assert!(int4["bytes"].as_u64() < int8["bytes"].as_u64());
    assert_eq!(keys(&int8["signal_to_noise_db"]).len(), 5);
    for found in [
        &quantized[0]["f32"]["knn_top1"],
        &int8["knn_top1"],
        &int8["same_neighbor"],
    ] {
        assert!((0.0..=1.0).contains(&found.as_f64().unwrap()), "{quantized:?}");
    }
    // For people: two tables and where it is.
    let lines = place
        .tec("quantize new --data photos --images 16 --bits 4 --group 16 --out four.tec")
        .ok();
    for words in [
        "blocks.1.mlp",
        "int8",
        "int4, groups of 16",
        "four.tec: int4, groups of 16",
    ] {
        assert!(lines.stdout.contains(words), "{words}: {}", lines.stdout);
    }
    assert!(place.read("four.tec").len() < place.read("new/encoder.tec").len());
    place.tec("embed others --encoder four.tec").ok();
    let int8 = knn("new/encoder.tec");
    assert!((int8 - float).abs() <= 0.15, "int8 {int8}, f32 {float}");

    let embed = |encoder: &str, pool: &str| {
        let images = "others photos/disc/001.jpg";
        let found = place
            .tec(&format!("embed {images} --encoder {encoder} --pool {pool} --json"))
            .ok()
            .json();
        assert_eq!(found.len(), 21);
        found
    };
    for pool in ["mean", "cls"] {
        for (float, int8) in embed("new", pool).iter().zip(embed("new/encoder.tec", pool)) {
            assert_eq!((&float["image"], &float["pool"]), (&int8["image"], &pool.into()));
            let cosine = cosine(float, &int8);
            assert!(cosine > 0.99, "{} {pool}: {cosine}", float["image"]);
        }
    }

    inspected(&place);
}

/// `tec inspect` of everything there is.
fn inspected(place: &Place) {
    let about = |path: &str| {
        let facts = place.tec(&format!("inspect {path} --json")).ok().json();
        assert_eq!(facts.len(), 1);
        // For people: a line a fact.
        let lines = place.tec(&format!("inspect {path}")).ok().stdout.lines().count();
        assert_eq!(lines, keys(&facts[0]).len());
        facts[0].clone()
    };
    let image = about("photos/disc/004.png");
    assert_eq!((&image["kind"], &image["decoded"]), (&"image".into(), &true.into()));
    assert_eq!((&image["width"], &image["height"]), (&48.into(), &24.into()));
    let run = about("new");
    assert_eq!((&run["kind"], &run["method"]), (&"run".into(), &"tec".into()));
    assert_eq!(
        (&run["finished"], &run["step"], &run["checkpoints"]),
        (&true.into(), &10.into(), &2.into())
    );
    let checkpoint = about("new/checkpoints/step-00000010.safetensors");
    assert_eq!(
        (&checkpoint["kind"], &checkpoint["step"]),
        (&"training checkpoint".into(), &10.into())
    );
    let encoders = [
        ("new/encoder.safetensors", "f32"),
        ("new/encoder.tec", "int8"),
        ("four.tec", "int4, groups of 16"),
    ];
    for (path, precision) in encoders {
        let encoder = about(path);
        assert_eq!(
            (&encoder["kind"], &encoder["precision"]),
            (&"encoder".into(), &precision.into())
        );
        let sizes = ["image_size", "patch_size", "channels", "dim", "depth", "heads"].map(|key| encoder[key].as_u64());
        assert_eq!(sizes, [32, 8, 3, 32, 2, 2].map(Some), "{path}");
        if precision != "f32" {
            let layers = encoder["layer_bytes"].as_object().unwrap();
            assert_eq!(layers.len(), 3, "{layers:?}");
            assert_eq!(encoder["scratch_bytes"], encoder["scratch_bytes_by_back_end"]["scalar"]);
        }
    }
    let rust = place.tec("inspect new/encoder.tec --constants rust").ok().stdout;
    assert!(
        rust.contains("pub const MEAN_SCRATCH_LEN_DSP: usize = ") && rust.contains("pub const CLASS_LEN: usize = 32;")
    );
    let c = place.tec("inspect new/encoder.tec --constants c").ok().stdout;
    assert!(c.contains("#define TEC_IMAGE_LEN 3072u") && !c.contains("LOGITS"));
    place.refuses("inspect new --constants c", 2, &["--constants", "no encoder.tec"]);
}

#[test]
fn recipes_that_ship_are_found_by_name() {
    let place = Place::new();
    place.images("photos", 0, 12);
    place.write("base.safetensors", &base().encoder);
    let printed = place
        .tec("pretrain --recipe mae-l --print-recipe --batch 64 --accumulate 8")
        .ok();
    let recipe: toml::Table = printed.stdout.parse().unwrap();
    assert_eq!(recipe["decoder"]["dim"].as_integer(), Some(768));
    assert_eq!(recipe["optimizer"]["accumulate"].as_integer(), Some(8));
    assert_eq!(recipe["optimizer"]["batch"].as_integer(), Some(64));
    // A size on top of it, and a key on top of that.
    let small = "--size small --set model.depth=6";
    let printed = place
        .tec(&format!("pretrain --recipe mae-b --print-recipe {small}"))
        .ok();
    let recipe: toml::Table = printed.stdout.parse().unwrap();
    let geometry = ["dim", "depth", "heads"].map(|key| recipe["model"][key].as_integer());
    assert_eq!(geometry, [384, 6, 6].map(Some));
    // It trains: a published recipe, made small enough for a test.
    let flags =
        "--batch 12 --accumulate 3 --set objective.adapters=1 --set objective.top_k=5 --set optimizer.warmup_epochs=1";
    let run = format!("pretrain --recipe mae-b --base base.safetensors --data photos --out run {SMALL} {flags}");
    let outcome = place.tec(&run).ok();
    assert!(
        outcome.stderr.contains("effective batch 12 (3 × 4 images)"),
        "{outcome}"
    );
    place.refuses(&format!("{run} --resume"), 2, &["--recipe", "leave --recipe out"]);
}

/// A place with 40 images, a base, and the undisturbed run `whole`; and the command line of such runs without `--out`.
fn undisturbed(rest: &str) -> (Place, String) {
    let place = Place::new();
    place.images("photos", 0, 40);
    place.write("base.safetensors", &base().encoder);
    let pretrain = format!("pretrain --base base.safetensors --data photos --batch 8 {SMALL} {rest}");
    place.tec(&format!("{pretrain} --out whole")).ok();
    (place, pretrain)
}

fn assert_same(place: &Place, run: &str) {
    assert_eq!(computed(place, run), computed(place, "whole"), "{run}");
    let encoder = |run: &str| place.read(&format!("{run}/encoder.safetensors"));
    assert!(encoder(run) == encoder("whole"), "{run}: another encoder");
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_not() {
    let (place, pretrain) = undisturbed("");
    // In the middle of an epoch, with a checkpoint at every step; twice, once within a step of the end.
    let every_step = "--set checkpoint.every_steps=1 --set checkpoint.keep=3";
    let stopped = place
        .tec(&format!("{pretrain} --out run {every_step} --max-steps 3"))
        .ok();
    assert!(
        stopped.stderr.contains("go on with: tec pretrain --out run --resume"),
        "{stopped}"
    );
    assert!(!place.path("run/encoder.safetensors").exists());
    place.refuses(
        "eval knn run --train photos --test photos",
        1,
        &["has not finished", "--resume"],
    );
    place.tec("pretrain --out run --resume --max-steps 9").ok();
    assert_eq!(metrics(&place, "run").len(), 9);
    place.tec("pretrain --out run --resume").ok();
    assert_same(&place, "run");
    assert_shape(&place, "run", &["step-00000008", "step-00000009", "step-00000010"]);

    // On the boundary of two epochs, with the checkpoints of every epoch; and a finished run has nothing left to do.
    place.tec(&format!("{pretrain} --out other --max-steps 5")).ok();
    place.tec("pretrain --out other --resume --threads 1").ok();
    assert_same(&place, "other");
    let report = place.read("other/report/index.html");
    let finished = place.tec("pretrain --out other --resume --json").ok().json();
    assert_eq!((finished.len(), &finished[0]["step"]), (1, &10.into()));
    assert!(finished[0]["loss"].is_number());
    assert_same(&place, "other");
    assert!(!report.is_empty() && place.files("other/report") == ["index.html"]);
}

#[test]
fn a_damaged_newest_checkpoint_costs_a_few_steps() {
    let (place, pretrain) = undisturbed("--set checkpoint.every_steps=2");
    place.tec(&format!("{pretrain} --out run --max-steps 7")).ok();
    let newest = "run/checkpoints/step-00000007.safetensors";
    let mut bytes = place.read(newest);
    bytes.truncate(bytes.len() / 3);
    place.write(newest, bytes);
    let resumed = place.tec("pretrain --out run --resume").ok();
    assert!(resumed.stderr.contains("step-00000007.safetensors"), "{resumed}");
    assert_same(&place, "run");
}

#[test]
fn a_killed_run_goes_on_as_if_it_had_not() {
    let (place, pretrain) = undisturbed("--set optimizer.epochs=12 --set checkpoint.every_steps=3");
    let args = format!("{pretrain} --out run --json");
    let mut command = place.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // A line of step 5 means that the checkpoint of step 3 is whole and that the metrics are ahead of it.
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen = lines.map_while(Result::ok).take(5).count();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, 5);
    assert!(
        !place.path("run/encoder.safetensors").exists(),
        "it ended before it was killed"
    );
    // A process killed while it writes leaves such a file.
    place.write("run/checkpoints/.writing-abc", "half");
    place.tec("pretrain --out run --resume").ok();
    assert_same(&place, "run");
    let files: BTreeSet<String> = place.files("run").into_iter().filter(|f| f.contains("/.")).collect();
    assert_eq!(files, BTreeSet::new());
}

#[test]
fn threads_change_speed_only() {
    let (place, pretrain) = undisturbed("");
    for threads in ["1", "3"] {
        let args = format!("{pretrain} --out threads-{threads} --threads {threads}");
        let mut command = place.command(&args);
        command.env("RAYON_NUM_THREADS", threads);
        Outcome::of(command, &args).ok();
        assert_same(&place, &format!("threads-{threads}"));
    }
}
