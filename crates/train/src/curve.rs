//! The loss over the steps as an SVG picture.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 45.0;

/// Draws the losses of training, pale, with their running mean, and those of evaluations as dots.
/// Each point is (step, loss). What is not finite is left out.
pub fn svg(trained: &[(u64, f64)], evaluated: &[(u64, f64)]) -> String {
    let finite = |points: &[(u64, f64)]| -> Vec<(f64, f64)> {
        let all = points.iter().map(|&(step, loss)| (step as f64, loss));
        all.filter(|(_, loss)| loss.is_finite()).collect()
    };
    let (trained, evaluated) = (finite(trained), finite(evaluated));
    let all = || trained.iter().chain(&evaluated);
    let last = all().map(|(step, _)| *step).fold(1.0, f64::max);
    let low = all().map(|(_, loss)| *loss).fold(0.0, f64::min);
    let high = all().map(|(_, loss)| *loss).fold(0.0, f64::max);
    let tick = round_up((high - low).max(1e-3) / 5.0);
    let (low, high) = ((low / tick).floor() * tick, (high / tick).ceil() * tick);

    let x = |step: f64| LEFT + step / last * (WIDTH - LEFT - RIGHT);
    let y = |loss: f64| TOP + (high - loss) / (high - low).max(tick) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    // Writing to a String cannot fail.
    let mut put = |line: String| {
        let _ = writeln!(svg, "{line}");
    };
    let lines = ((high - low) / tick).round() as u32;
    for value in (0..=lines).map(|i| low + f64::from(i) * tick) {
        let (y, right) = (y(value), WIDTH - RIGHT);
        put(format!(
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + 4.0,
            trimmed(value)
        ));
    }
    for part in 0..=4 {
        let step = (last * f64::from(part) / 4.0).round();
        put(format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            x(step),
            HEIGHT - BOTTOM + 18.0
        ));
    }
    put(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\
         <text x=\"14\" y=\"{}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {})\">loss</text>",
        WIDTH / 2.0,
        HEIGHT - 8.0,
        HEIGHT / 2.0,
        HEIGHT / 2.0
    ));
    let path = |points: &[(f64, f64)]| -> String {
        let spots = points
            .iter()
            .map(|&(step, loss)| format!("{:.1},{:.1}", x(step), y(loss)));
        spots.collect::<Vec<_>>().join(" ")
    };
    put(format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#9ecae1\"/>",
        path(&trained)
    ));
    put(format!(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#08519c\" stroke-width=\"2\"/>",
        path(&running_mean(&trained))
    ));
    for &(step, loss) in &evaluated {
        put(format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"#d94801\"/>",
            x(step),
            y(loss)
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

/// An exponential mean over some 5 % of the points, without the pull of a made-up beginning.
fn running_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 20.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(step, loss)| {
            sum = keep * sum + loss;
            weight = keep * weight + 1.0;
            (step, sum / weight)
        })
        .collect()
}

/// The next of 1, 2, 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let enough = factors.iter().find(|factor| **factor * power >= value);
    enough.unwrap_or(&10.0) * power
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_where_the_axes_say() {
        let svg = svg(&[(1, 4.0), (2, 2.0), (3, f64::NAN), (4, 1.0)], &[(4, 2.0)]);
        // Four steps over 640 units, losses 0 to 4 over 335 units.
        assert!(
            svg.contains("points=\"220.0,20.0 380.0,187.5 700.0,271.2\""),
            "{svg}"
        );
        assert!(svg.contains("cx=\"700.0\" cy=\"187.5\""));
        assert!(svg.contains(">4</text>") && !svg.contains("NaN"));
    }

    #[test]
    fn no_points_make_a_picture_too() {
        assert!(svg(&[], &[]).ends_with("</svg>\n"));
    }

    #[test]
    fn the_running_mean_of_a_constant_is_the_constant() {
        let points: Vec<(f64, f64)> = (0..100).map(|i| (f64::from(i), 2.5)).collect();
        let mean = running_mean(&points);
        assert!(mean.iter().all(|(_, loss)| (loss - 2.5).abs() < 1e-12));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!([0.7, 0.11, 3.0, 12.0].map(round_up), [1.0, 0.2, 5.0, 20.0]);
    }
}
