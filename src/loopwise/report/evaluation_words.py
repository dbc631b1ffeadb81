"""What an evaluation found, in words: figures with their units, and a plain sentence for each comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from loopwise.report import numbers

MEASURES = {
    "accuracy": "accuracy",
    "reward": "mean reward",
    "likelihood": "log-probability a token of the right answers",
    "bits_per_byte": "bits per byte",
    "nats_per_token": "nats per token",
}
_MAIN = ("accuracy", "pass@1", "reward", "likelihood")
LESS_IS_BETTER = ("perplexity", "bits_per_byte", "nats_per_token")
_UNITS = {
    "reward": "mean reward",
    "likelihood": "log-probability a token",
    "bits_per_byte": "bits a byte",
    "nats_per_token": "nats a token",
}
_DECIMALS = 3
ALIKE = "all alike"
"""In the place of an interval without width: what did not vary on the problems asked may on others."""


def name_of(measure: str, quoted: Callable[[str], str] = str) -> str:
    """A figure's name for a reader; ``reward/NAME`` is one of several rewards, whose name is written ``quoted``."""
    whole, _, part = measure.partition("/")
    return f"{MEASURES[whole]} of {quoted(part)}" if part else MEASURES.get(measure, measure)


def is_share(measure: str) -> bool:
    """Whether a figure is a share of problems."""
    return measure == "accuracy" or measure.startswith("pass@")


def value(measure: str, figure: float | None) -> str:
    """A figure with its unit."""
    if is_share(measure):
        return numbers.percent(numbers.finite(figure))
    return numbers.figure(numbers.finite(figure)) if measure == "perplexity" else _fixed(figure)


def interval(measure: str, ends: tuple[float, float] | list[float] | None) -> str:
    """An interval of a figure; a dash where there is none."""
    if ends is None or not all(map(numbers.known, ends)):
        return numbers.DASH
    return ALIKE if ends[0] == ends[1] else f"{value(measure, ends[0])} to {value(measure, ends[1])}"


def change(measure: str, gap: float) -> str:
    """A signed difference with its unit."""
    figure = signed(measure, gap)
    if is_share(measure):
        return figure
    unit = _UNITS[measure]
    return f"{unit} {figure}" if measure in ("reward", "likelihood") else f"{figure} {unit}"


def signed(measure: str, gap: float) -> str:
    """A signed difference, of shares in points."""
    return f"{_points(gap, signed=True)} points" if is_share(measure) else numbers.fixed(gap, _DECIMALS, signed=True)


def change_interval(measure: str, ends: tuple[float, float] | list[float] | None) -> str:
    """The ends of a difference's interval, without its unit; a dash where there is none."""
    if ends is None or not all(map(numbers.known, ends)):
        return numbers.DASH
    show = _points if is_share(measure) else _fixed
    return ALIKE if ends[0] == ends[1] else f"{show(ends[0])} to {show(ends[1])}"


def sentence(result: Mapping[str, Any], name: str | None = None) -> str:
    """A comparison in a sentence: ``better on addition: +84.6 points, 95% interval 82.1 to 87.0``.

    ``name`` is how the result's is written there.
    """
    name, measure = name or result["name"], result["measure"]
    gap = deciding(result, measure)
    if result["verdict"] == "same":
        return f"no difference on {name}: both are the same model"
    if gap["ci95"] is None:
        sides = [value(measure, side["figures"][measure]["value"]) for side in (result, result["baseline"])]
        why = "read in different tokens or windows, or in one window alone, so there is no interval"
        return f"{name}: {sides[0]} {_UNITS[measure]} against {sides[1]} ({why})"
    of_all = ""
    if "clean" in result:
        name = f"{name} without what was met in training"
        of_all = f"; of all problems {change(measure, result['differences'][measure]['value'])}"
    if not gap["n"]:
        return f"{name}: not compared, for there is no problem that both were judged on{of_all}"
    words = change(measure, gap["value"])
    if gap["n"] == 1 or not all(map(numbers.known, gap["ci95"])):
        return f"{name}: {words}, of a single problem, which shows nothing{of_all}"
    low, high = gap["ci95"]
    if low == high:
        verdict = "no difference seen" if result["verdict"] == "none" else result["verdict"]
        return f"{verdict} on {name}: {words} on each of {gap['n']:,} problems{of_all}"
    ends = change_interval(measure, gap["ci95"])
    if result["verdict"] == "none":
        chance = "" if low <= 0 <= high else f"; by chance among several comparisons: Holm's p {result['p_holm']:.2f}"
        return f"no difference seen on {name} ({words}, 95% interval {ends}{chance}{of_all})"
    if measure in LESS_IS_BETTER:
        ours, theirs = (side["figures"]["perplexity"]["value"] for side in (result, result["baseline"]))
        words = f"perplexity {numbers.figure(ours)} against {numbers.figure(theirs)}, {words}"
    return f"{result['verdict']} on {name}: {words}, 95% interval {ends}{of_all}"


def deciding(result: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    """The difference that a verdict is taken from: where either model met problems in training, of the others."""
    gap: Mapping[str, Any] = result.get("clean", result)["differences"][measure]
    return gap


def met(summary: Mapping[str, Any]) -> str:
    """What is known of the problems that a model has met in training."""
    count, all_ = summary["met"], summary["problems"]
    if not count:
        return f"none of {all_:,} prompts met in training"
    exact, wording = summary["exact"], summary["wording"]
    return f"{count:,} of {all_:,} prompts met in training ({exact:,} exactly, {wording:,} by wording)"


def shown_figures(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A result's figures, without a mean reward that is the share of passes over again."""
    for measure, figure in result["figures"].items():
        if measure != "reward" or not repeats_share(result):
            yield measure, figure


def repeats_share(result: Mapping[str, Any]) -> bool:
    """Whether the mean reward is the share of passes over again, for the model and the baseline."""
    sides = [result["figures"], *([result["baseline"]["figures"]] if "baseline" in result else [])]
    names = [name for name in ("accuracy", "pass@1") if name in sides[0]]
    if not names or any(measure.startswith("reward/") for measure in sides[0]):
        return False
    return all(side["reward"]["value"] == side[name]["value"] for side in sides for name in names)


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """What an evaluation found beside its figures, a line each."""
    if "comparison" in found:
        yield from (result["sentence"] for result in found["results"])
    for result in found["results"]:
        for part, figures in result.get("corpus", {}).items():
            yield f"{result['name']}, {part} over all answers: {_plain(figures)}"
        for one in result.get("contamination", ()):
            if one["known"] and one["met"]:
                yield f"{result['name']}, {one['model']}: {met(one)}{_clean(result)}"
    for side in found.get("training", ()):
        if not side["known"]:
            yield f"{side['model']}: nothing is known of what it was trained on"
        yield from (f"{side['model']}: not known: {gap}" for gap in side["unknown"] if side["known"])
    for side in found.get("bias", {}).get("subjects", ()):
        yield from _leans(side)
    for side in found.get("harness", ()):
        yield f"{side['model']}, lm-evaluation-harness: {_plain(side)}"


def _plain(figures: Mapping[str, Any]) -> str:
    """The numbers among some figures."""
    return ", ".join(f"{name} {numbers.figure(x)}" for name, x in figures.items() if isinstance(x, int | float))


def _clean(result: Mapping[str, Any]) -> str:
    """The main figure without what was met."""
    figures = result["clean"]["figures"]
    measure = next((name for name in _MAIN if name in figures), None)
    if measure is None or not figures[measure]["n"]:
        return ""
    figure = figures[measure]
    shown = f"{value(measure, figure['value'])}, 95% interval {interval(measure, figure['ci95'])}"
    return f"; without them {name_of(measure)} {shown}"


def _leans(side: Mapping[str, Any]) -> Iterator[str]:
    """What a model makes of the probes of bias."""
    flips = side["flips"]
    yield (
        f"{side['model']}, bias: {value('accuracy', flips['value'])} of {flips['n']:,} answers flip, "
        f"95% interval {interval('accuracy', flips['ci95'])}"
    )
    for pair in side["pairs"]:
        for measure, unit in (("leaning", "nats"), ("reward", "reward")):
            gap = pair.get(measure)
            if gap is None or not gap["n"]:
                continue
            size = numbers.fixed(gap["value"], _DECIMALS, signed=True)
            shown = f"({size} {unit}, 95% interval {interval('reward', gap['ci95'])})"
            if gap["shows"]:
                rest = pair["b"] if gap["shows"] == pair["a"] else pair["a"]
                yield f"  leans to {gap['shows']} over {rest} {shown}"
            else:
                low, high = gap["ci95"]
                chance = "" if low <= 0 <= high else f", by chance among several pairs: Holm's p {gap['p_holm']:.2f}"
                yield f"  no lean seen between {pair['a']} and {pair['b']} {shown}{chance}"


def _points(share: float | None, *, signed: bool = False) -> str:
    return numbers.fixed(100 * numbers.finite(share), 1, signed=signed)


def _fixed(figure: float | None) -> str:
    return numbers.fixed(numbers.finite(figure), _DECIMALS)
