//! A run as a picture: faults, leaders, throughput, waiting jobs and the time from acceptance to a worker, over time.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::summary::{completions, milliseconds, percentile};
use crate::history::{Act, History, Outcome, Request, Stage};

/// Width of the picture, and of what is left of the curves.
const WIDTH: f64 = 1000.0;
const LEFT: f64 = 120.0;
/// Height of one lane of bars, and of one curve.
const LANE: f64 = 16.0;
const CURVE: f64 = 70.0;
/// One colour per replica, in their order; told apart also without red and green.
const COLOURS: [&str; 5] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"];

/// A bar from one time to another, in microseconds.
struct Bar {
    from: u64,
    to: u64,
    label: String,
    colour: &'static str,
}

/// A value for each second.
struct Curve {
    name: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

/// Draws it.
pub(super) fn draw(history: &History) -> Markup {
    let end = history.stage(Stage::Over).into_iter().chain(history.acts.last().map(|act| act.0)).max();
    let end = end.unwrap_or(1).max(1);
    let x = |at: u64| LEFT + (WIDTH - LEFT) * milliseconds(at.min(end)) / milliseconds(end);
    let faults = lanes(fault_bars(history, end));
    let leaders = leader_bars(history, end);
    let curves = curves(history, end);
    let top = 20.0;
    let leader_y = top + LANE * count(faults.len());
    let curves_y = leader_y + LANE * 1.5;
    let height = curves_y + (CURVE + 14.0) * count(curves.len()) + 24.0;
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {WIDTH} {height:.0}"))
            role="img" aria-label="timeline of the run" font-family="sans-serif" font-size="11" {
            @for (stage, name) in [(Stage::Calm, "calm"), (Stage::Faults, "faults"), (Stage::Quiet, "quiet")] {
                @if let Some(at) = history.stage(stage) {
                    line x1=(n(x(at))) x2=(n(x(at))) y1="4" y2=(n(height - 18.0)) stroke="#bbb" stroke-dasharray="2 3" {}
                    text x=(n(x(at) + 3.0)) y="12" fill="#666" { (name) }
                }
            }
            text x="0" y=(n(top + 11.0)) { "faults" }
            @for (lane, bars) in faults.iter().enumerate() {
                @for bar in bars { (draw_bar(bar, top + LANE * count(lane), &x)) }
            }
            text x="0" y=(n(leader_y + 11.0)) { "leader, epoch" }
            @for bar in &leaders { (draw_bar(bar, leader_y, &x)) }
            @for (place, curve) in curves.iter().enumerate() {
                (draw_curve(curve, curves_y + (CURVE + 14.0) * count(place)))
            }
            @for tenth in 0..=10 {
                @let at = end / 10 * tenth;
                text x=(n(x(at))) y=(n(height - 4.0)) text-anchor=(if tenth == 10 { "end" } else { "start" }) fill="#666" {
                    (format!("{:.0} s", milliseconds(at) / 1000.0))
                }
            }
        }
    }
}

fn draw_bar(bar: &Bar, y: f64, x: &impl Fn(u64) -> f64) -> Markup {
    let (from, to) = (x(bar.from), x(bar.to));
    let width = (to - from).max(2.0);
    html! {
        g {
            title { (bar.label) }
            rect x=(n(from)) y=(n(y + 1.0)) width=(n(width)) height=(n(LANE - 2.0)) fill=(bar.colour) rx="2" {}
            // A label that does not fit is told by the title alone.
            @if width > 5.5 * count(bar.label.chars().count()) {
                text x=(n(from + 3.0)) y=(n(y + 12.0)) fill="#fff" { (bar.label) }
            }
        }
    }
}

fn draw_curve(curve: &Curve, y: f64) -> Markup {
    let most = curve.values.iter().copied().fold(0.0, f64::max);
    let step = (WIDTH - LEFT) / count(curve.values.len().max(1));
    let height = |value: f64| if most > 0.0 { (CURVE - 4.0) * value / most } else { 0.0 };
    let mut points = format!("{:.1},{:.1} ", LEFT, y + CURVE);
    for (second, value) in curve.values.iter().enumerate() {
        let (from, to, at) =
            (LEFT + step * count(second), LEFT + step * (count(second) + 1.0), y + CURVE - height(*value));
        points.push_str(&format!("{from:.1},{at:.1} {to:.1},{at:.1} "));
    }
    points.push_str(&format!("{WIDTH:.1},{:.1}", y + CURVE));
    html! {
        text x="0" y=(n(y + 14.0)) { (curve.name) }
        text x="0" y=(n(y + 28.0)) fill="#666" { (format!("up to {most:.0} {}", curve.unit)) }
        polygon points=(points) fill="#0072b2" fill-opacity="0.35" stroke="#0072b2" {}
    }
}

/// Puts bars that overlap into lanes of their own.
fn lanes(bars: Vec<Bar>) -> Vec<Vec<Bar>> {
    let mut lanes: Vec<Vec<Bar>> = Vec::new();
    for bar in bars {
        match lanes.iter_mut().find(|lane| lane.last().is_none_or(|last| last.to <= bar.from)) {
            Some(lane) => lane.push(bar),
            None => lanes.push(vec![bar]),
        }
    }
    lanes
}

fn fault_bars(history: &History, end: u64) -> Vec<Bar> {
    let bar = |fault: &crate::history::FaultRun| Bar {
        from: fault.begun,
        to: fault.over.unwrap_or(end),
        label: fault.name.clone(),
        colour: if fault.proof.is_some() { "#d55e00" } else { "#999" },
    };
    history.faults.iter().map(bar).collect()
}

/// Who led when: by the views of those that said so of themselves.
fn leader_bars(history: &History, end: u64) -> Vec<Bar> {
    let mut bars: Vec<(usize, Option<u64>, Bar)> = Vec::new();
    for (at, replica, _, view) in &history.views {
        if view.role != "leader" || bars.last().is_some_and(|last| (last.0, last.1) == (*replica, view.epoch))
        {
            continue;
        }
        if let Some((_, _, last)) = bars.last_mut() {
            last.to = *at;
        }
        let label = format!("{}, {}", view.id, view.epoch.unwrap_or(0));
        bars.push((
            *replica,
            view.epoch,
            Bar { from: *at, to: end, label, colour: COLOURS[replica % COLOURS.len()] },
        ));
    }
    bars.into_iter().map(|(_, _, bar)| bar).collect()
}

fn curves(history: &History, end: u64) -> Vec<Curve> {
    let seconds = usize::try_from(end / 1_000_000 + 1).unwrap_or(1);
    let second = |at: u64| usize::try_from(at / 1_000_000).unwrap_or(0).min(seconds - 1);
    let mut accepted = vec![0.0; seconds];
    let mut accepted_at: BTreeMap<u64, u64> = BTreeMap::new();
    for call in &history.calls {
        let (Request::Submit { numbers, .. }, Outcome::Ok { .. }, Some(at)) =
            (&call.request, &call.outcome, call.end)
        else {
            continue;
        };
        accepted[second(at)] += count(numbers.len());
        for number in numbers {
            accepted_at.entry(*number).or_insert(at);
        }
    }
    let mut completed = vec![0.0; seconds];
    completions(history).for_each(|at| completed[second(at)] += 1.0);
    let mut waits: Vec<Vec<f64>> = vec![Vec::new(); seconds];
    for (at, _, act) in &history.acts {
        let Act::Start { number, attempt: 1, .. } = act else { continue };
        if let Some(accepted) = accepted_at.get(number) {
            waits[second(*at)].push(milliseconds(at.saturating_sub(*accepted)));
        }
    }
    let mut waiting = vec![0.0_f64; seconds];
    for (at, [_, queued, ..]) in &history.depths {
        let place = &mut waiting[second(*at)];
        *place = place.max(count(usize::try_from(*queued).unwrap_or(0)));
    }
    let p99 = waits.iter().map(|waits| percentile(waits, 99.0).unwrap_or(0.0)).collect();
    vec![
        Curve { name: "accepted", unit: "jobs/s", values: accepted },
        Curve { name: "completed", unit: "jobs/s", values: completed },
        Curve { name: "waiting", unit: "jobs", values: waiting },
        Curve { name: "to a worker, p99", unit: "ms", values: p99 },
    ]
}

fn n(value: f64) -> String {
    format!("{value:.1}")
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(value: usize) -> f64 {
    value as f64
}
