//! Progress of a training run: a bar on a terminal, plain lines elsewhere, JSON lines for scripts.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tec_train::{
    pretrain::{Plan, Progress},
    run_dir::StepMetrics,
};

use crate::{interrupt, output};

/// Seconds between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A bar on standard error if that is a terminal, plain lines there if not.
    People,
    /// One JSON object a step on standard output.
    Json,
}

/// Shows one run's progress.
pub struct Reporter {
    style: Style,
    label: String,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    started: Instant,
    first_step: usize,
    /// The last accuracy of the k-NN probe.
    knn: Option<f64>,
}

impl Reporter {
    /// A reporter whose lines begin with `label`.
    pub fn new(style: Style, label: &str) -> Self {
        Self {
            style,
            label: label.into(),
            bar: None,
            last_line: None,
            started: Instant::now(),
            first_step: 0,
            knn: None,
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Seconds left at the pace so far, once there is a pace.
    fn left(&self, step: usize, total: usize) -> Option<f64> {
        let done = step.checked_sub(self.first_step).filter(|d| *d >= 3)?;
        Some(self.started.elapsed().as_secs_f64() / done as f64 * (total - step.min(total)) as f64)
    }
}

impl Progress for Reporter {
    fn begin(&mut self, plan: &Plan) {
        self.started = Instant::now();
        self.first_step = plan.first_step;
        if self.style == Style::Json {
            return;
        }
        self.say(&format!(
            "{}: {} images, {} epochs of {} steps, effective batch {} ({} × {} images{}), peak learning rate {:.3e}, {} parameters in the \
             encoder, {} trained",
            self.label,
            plan.images,
            plan.epochs,
            plan.steps_per_epoch,
            plan.batch,
            plan.accumulate,
            plan.batch / plan.accumulate.max(1),
            match plan.ranks {
                1 => String::new(),
                ranks => format!(" on {ranks} processes"),
            },
            plan.peak_lr,
            plan.encoder_parameters,
            plan.trained_parameters
        ));
        if let Some(probe) = &plan.probe {
            self.note(&format!("k-NN probe: {probe}"));
        }
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(plan.total_steps as u64), ProgressDrawTarget::stderr());
            let style =
                ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} [{elapsed} + {eta}]\n  {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(self.label.clone());
            bar.set_position(plan.first_step as u64);
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn step(&mut self, m: &StepMetrics, plan: &Plan) {
        if self.style == Style::Json {
            if let Ok(value) = serde_json::to_value(m) {
                output::json(&value);
            }
            return;
        }
        let parts = match m.loss_relation {
            Some(relation) => format!(
                "loss {:.4} (feature {:.4}, relation {relation:.4})",
                m.loss, m.loss_feature
            ),
            None => format!("loss {:.4}", m.loss),
        };
        if m.knn_top1.is_some() {
            self.knn = m.knn_top1;
        }
        let knn = self
            .knn
            .map_or_else(String::new, |a| format!("  k-NN {:.1}%", 100.0 * a));
        let memory = m
            .peak_bytes
            .map_or_else(String::new, |b| format!("  {}", output::bytes(b)));
        let text = format!(
            "epoch {:.2}  {parts}  gradient {:.3}  lr {:.2e}  {:.0} images/s  waiting {:.0}%{memory}{knn}",
            m.epoch,
            m.grad_norm,
            m.lr,
            m.images_per_s,
            100.0 * m.data_wait
        );
        match &self.bar {
            Some(bar) => {
                bar.set_message(text);
                bar.set_position(m.step as u64);
            }
            None => {
                let due = self.last_line.is_none_or(|t| t.elapsed() >= LINE_EVERY)
                    || m.step == plan.total_steps
                    || m.knn_top1.is_some();
                if due {
                    self.last_line = Some(Instant::now());
                    let left = self.left(m.step, plan.total_steps);
                    let left = left.map_or_else(String::new, |s| format!("  {} left", output::seconds(s)));
                    eprintln!("{}: step {}/{}  {text}{left}", self.label, m.step, plan.total_steps);
                }
            }
        }
    }

    fn note(&mut self, text: &str) {
        self.say(&format!("{}: {text}", self.label));
    }

    fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn stop_requested(&self) -> bool {
        interrupt::requested()
    }
}

/// Counts images while they are embedded; silent off a terminal.
pub struct Counter {
    bar: ProgressBar,
}

impl Counter {
    /// A counter up to `total`.
    pub fn new(what: &str, total: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} [{elapsed} + {eta}]");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what.to_string());
        Self { bar }
    }

    /// `done` are done.
    pub fn at(&self, done: usize) {
        self.bar.set_position(done as u64);
    }

    /// All are done.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
