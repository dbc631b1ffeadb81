"""An evaluation as a page of Markdown that stands by itself."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loopwise.evaluate.stats import FEW
from loopwise.report import evaluation_words as words
from loopwise.report import numbers

_NOTES = """\
Intervals are 95%: Wilson's where all scores are 0 or 1, else Student's t of fewer than {few} scores and bootstrap of
more; of a single one there is none. What could not be judged is left out and never a miss; n says what is left. pass@k
is the unbiased estimator of Chen et al. 2021."""
_PAIRED = """\
Both models were asked the same problems with the same random numbers. The interval of a difference is paired: Bonett
and Price's where all scores are 0 or 1, else Student's t. {held}"""
_SEVERAL = """\
Each stands by itself; better and worse are said only where Holm's correction over all {comparisons} comparisons agrees
(5%)."""
_SINGLE = "Better and worse are said only where its test agrees (5%)."
_CONTAMINATION = """\
A prompt was met exactly where training had the same problem, or a line of plain text or of a completion that begins
with it; by wording where 13 words in a row stand in both (of a prompt of 8 to 12 words all; Han characters count
singly), unless more than 10 texts have them. A verdict of better or worse leaves out what either model has met."""
_BIAS = """\
Each probe is a pair of prompts that differ in one word. The lean is how far the first word makes the better of two
given endings likelier than the second does, in nats; a flip is another answer (the likelier ending, or the greedy
answer with the words themselves put aside). A lean is named only where Holm's correction over all pairs agrees (5%).
These are a first look, not an audit."""


def evaluation_markdown(found: Mapping[str, Any], figure: str | None = None) -> str:
    """The page; ``figure`` is the file of the picture beside it."""
    parts = [f"# Evaluation of {code(found['model'])}", *_summary(found)]
    if figure:
        parts.append(f"![The figures with their intervals]({figure})")
    if found["results"]:
        parts += ["## Figures", _figures(found), *_curves(found), _NOTES.format(few=FEW)]
    if "baseline" in found:
        count = found["comparison"]["comparisons"]
        parts.append(_PAIRED.format(held=_SINGLE if count == 1 else _SEVERAL.format(comparisons=count)))
    for result in found["results"]:
        parts += _corpus(result)
    parts += [*_contamination(found), *_bias(found), *_harness(found), *_how(found)]
    return "\n\n".join(parts) + "\n"


def code(text: Any) -> str:
    """Text of anybody's as it is, in a span that nothing in it can end: on one line, no markup, no table's bar."""
    shown = json.dumps(str(text), ensure_ascii=False)[1:-1].replace('\\"', '"')
    shown = re.sub(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", "\ufffd", shown)
    return f"<code>{html.escape(shown).replace('|', '&#124;').replace('`', '&#96;')}</code>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table whose first ``left`` columns are text, the others figures."""
    marks = ["---" if place < left else "---:" for place in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, marks, *rows))


def _summary(found: Mapping[str, Any]) -> Iterator[str]:
    if "baseline" not in found:
        return
    yield f"Compared with {code(found['baseline']['model'])}:"
    yield "\n".join(f"- {words.sentence(result, code(result['name']))}" for result in found["results"])


def _figures(found: Mapping[str, Any]) -> str:
    other = "baseline" in found
    heads = ["", "measure", "value", "95% interval", "n"] + (
        ["baseline", "difference", "95% interval"] if other else []
    )
    rows = []
    for result in found["results"]:
        name = code(result["name"])
        for measure, figure in words.shown_figures(result):
            row = [name, words.name_of(measure, code), *_cells(measure, figure), numbers.whole(figure["n"])]
            if other:
                row += [words.value(measure, result["baseline"]["figures"][measure]["value"])]
                row += _gap_cells(measure, result["differences"].get(measure))
            rows.append(row)
            name = ""
    return table(heads, rows, left=2)


def _cells(measure: str, figure: Mapping[str, Any]) -> list[str]:
    return [words.value(measure, figure["value"]), words.interval(measure, figure["ci95"])]


def _gap_cells(measure: str, gap: Mapping[str, Any] | None) -> list[str]:
    if gap is None:
        return [numbers.DASH, numbers.DASH]
    return [words.signed(measure, gap["value"]), words.change_interval(measure, gap["ci95"])]


def _curves(found: Mapping[str, Any]) -> Iterator[str]:
    """What the completions were like."""
    told = [(result, side) for result in found["results"] for side in _sides(result) if "completions" in side]
    if not told:
        return
    rows = [
        [
            code(result["name"]),
            "baseline" if side is not result else "model",
            numbers.figure(numbers.finite(side["completions"].get("mean_length"))),
            numbers.percent(numbers.finite(side["completions"].get("clipped_ratio"))),
            numbers.percent(numbers.finite(side["completions"].get("distinct"))),
        ]
        for result, side in told
    ]
    yield table(["completions", "of", "tokens, mean", "cut off", "different in a group"], rows, left=2)


def _sides(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [result, *([result["baseline"]] if "baseline" in result else [])]


def _corpus(result: Mapping[str, Any]) -> Iterator[str]:
    """Figures of all answers together, by reward."""
    for side in _sides(result):
        for part, figures in side.get("corpus", {}).items():
            whose = "" if side is result else ", baseline"
            yield f"### {code(part)} over all answers to {code(result['name'])}{whose}"
            plain = {name: value for name, value in figures.items() if name not in _CONFUSION}
            yield table(["figure", "value"], [[code(name), _any(value)] for name, value in plain.items()])
            if all(name in figures for name in _CONFUSION) and len(figures["labels"]) <= _MOST_LABELS:
                yield _confusion(figures["labels"], figures["confusion"])


_CONFUSION = ("labels", "confusion")
_MOST_LABELS = 20


def _confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    rows = [[code(label), *map(numbers.whole, row)] for label, row in zip(labels, counts, strict=True)]
    return table(["truth, answered", *map(code, labels), "none of them"], rows)


def _any(value: Any) -> str:
    return numbers.figure(value) if isinstance(value, int | float) else code(value)


def _contamination(found: Mapping[str, Any]) -> Iterator[str]:
    if "training" not in found:
        return
    yield "## Met in training"
    for side in found["training"]:
        yield "\n".join(_known(side))
    if not any(side["known"] for side in found["training"]):
        return
    checked = [(result, one) for result in found["results"] for one in result.get("contamination", ()) if one["known"]]
    rows = [
        [code(result["name"]), code(one["model"]), *(numbers.whole(one[key]) for key in _COUNTS)]
        for result, one in checked
    ]
    yield table(["prompts of", "model", "prompts", "met exactly", "met by wording"], rows, left=2)
    yield _CONTAMINATION
    for result, one in checked:
        if one["examples"]:
            yield f"Of {code(result['name'])}, {code(one['model'])} has met, for example:"
            yield "\n".join(map(_example, one["examples"]))
    for result in found["results"]:
        yield from _clean(result)


_COUNTS = ("problems", "exact", "wording")


def _known(side: Mapping[str, Any]) -> Iterator[str]:
    if not side["known"]:
        yield f"Nothing is known of what {code(side['model'])} was trained on: it is no run of loopwise."
        return
    yield f"{code(side['model'])} was trained on:\n"
    for source, count in side["sources"].items():
        yield f"- {code(source)}: {numbers.whole(count)}"
    for gap in side["unknown"]:
        yield f"- not known: {code(gap)}"


def _example(one: Mapping[str, Any]) -> str:
    how = "exactly" if one["kind"] == "exact" else f"by {code(one['shared'])}"
    return f"- {code(one['prompt'])}: {how}, in {code(one['source'])}: {code(one['seen'])}"


def _clean(result: Mapping[str, Any]) -> Iterator[str]:
    """The figures without what was met."""
    if "clean" not in result:
        return
    clean = result["clean"]
    left = numbers.whole(clean["problems"])
    yield f"{code(result['name'])} without what was met, {left} of {numbers.whole(result['problems'])} problems:"
    rows = []
    for measure, figure in words.shown_figures(clean):
        row = [
            words.name_of(measure, code),
            *_cells(measure, figure),
            words.value(measure, result["figures"][measure]["value"]),
        ]
        if "differences" in clean:
            row += _gap_cells(measure, clean["differences"].get(measure))
        rows.append(row)
    more = ["difference from the baseline", "95% interval"] if "differences" in clean else []
    yield table(["measure", "value", "95% interval", "of all", *more], rows)


def _bias(found: Mapping[str, Any]) -> Iterator[str]:
    if "bias" not in found:
        return
    bias = found["bias"]
    yield f"## Bias: {code(bias['name'])}, {numbers.whole(bias['probes'])} probes"
    for side in bias["subjects"]:
        flips = side["flips"]
        ends = words.interval("accuracy", flips["ci95"])
        yield f"{code(side['model'])}: {numbers.percent(flips['value'])} of all answers flip (95% interval {ends})."
        rewarded = any("reward" in pair for pair in side["pairs"])
        heads = ["words", "probes", "lean (nats)", "95% interval", "leans to", "flips", "95% interval"]
        heads += ["reward, first above second", "95% interval"] if rewarded else []
        yield table(heads, [_pair(pair, rewarded) for pair in side["pairs"]])
    yield _BIAS


def _pair(pair: Mapping[str, Any], rewarded: bool) -> list[str]:
    row = [f"{code(pair['a'])} / {code(pair['b'])}", numbers.whole(pair["probes"])]
    lean = pair.get("leaning")
    row += [*_gap(lean), code(lean["shows"]) if lean and lean["shows"] else numbers.DASH]
    row += _cells("accuracy", pair["flips"])
    return row + (_gap(pair.get("reward")) if rewarded else [])


def _gap(gap: Mapping[str, Any] | None) -> list[str]:
    if gap is None or not gap["n"]:
        return [numbers.DASH, numbers.DASH]
    return [numbers.fixed(gap["value"], 3, signed=True), words.interval("reward", gap["ci95"])]


def _harness(found: Mapping[str, Any]) -> Iterator[str]:
    if "harness" not in found:
        return
    yield "## lm-evaluation-harness"
    for side in found["harness"]:
        rows = [[code(name), _any(value)] for name, value in side.items() if name != "model"]
        yield f"{code(side['model'])}:"
        yield table(["figure", "value"], rows)


def _how(found: Mapping[str, Any]) -> Iterator[str]:
    sampling = found["sampling"]
    told = ", ".join(f"{name} {value}" for name, value in sampling.items() if value not in (None, (), []))
    yield "## How it was measured"
    rows = [["model", code(found["policy_id"])]]
    if "baseline" in found:
        rows.append(["baseline", code(found["baseline"]["policy_id"])])
    rows += [
        ["seed", str(found["seed"])],
        ["samples of each problem", str(found["samples"])],
        ["sampling", code(told)],
        ["seconds", numbers.figure(found["seconds"])],
    ]
    yield table(["", ""], rows, left=2)
