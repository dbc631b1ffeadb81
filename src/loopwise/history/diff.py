"""Two runs side by side: what was set differently, and whether it mattered."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from loopwise.history.export import choose_run, flat
from loopwise.history.measured import BITS, Measured, measured_stages
from loopwise.history.past import open_run
from loopwise.report.measures import Standing, compare
from loopwise.report.numbers import DASH, amount, figure, fixed, known, percent, points
from loopwise.runs.journal import Journal
from loopwise.runs.rows import RunRow

CONTROLS = ("control", "control_unfiltered", "control_gold")
ORDER = ("untrained", "base", "ngram", *CONTROLS, "pretrained", "tuned", "improved")
RESULTS = ("improved", "tuned", "pretrained")
RESULT = "result"
PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class _Side:
    """One of the two runs."""

    run: RunRow
    stages: Mapping[tuple[str, str], Measured]
    budget: dict[str, float]

    @property
    def result(self) -> str | None:
        """The name of the stage that the run ended with."""
        return next((name for name in RESULTS if any(stage == name for stage, _ in self.stages)), None)


def diff_runs(first: Path, second: Path, name: str | None = None) -> dict[str, Any]:
    """Compare the runs in two folders: ``a``, ``b``, ``config``, ``data``, ``versions``, ``stages``, ``budget``.

    Config, data and versions hold only what differs, as pairs. A stage on a split has its ``measure``, ``a`` and ``b``
    (value, 95% interval, n) and, where both were measured alike on the same problems, ``difference`` (b minus a) with
    its paired 95% interval ``ci95`` over ``n`` problems; where not, ``unpaired`` says why. Of a folder with several
    runs the stages of all are compared, or those of the run ``name`` alone. Raises ResumeError where there is none.
    """
    with ExitStack() as stack:
        journals = [stack.enter_context(closing(open_run(out))) for out in (first, second)]
        a, b = (_side(journal, out, name) for journal, out in zip(journals, (first, second), strict=True))
    return {
        "a": {"folder": str(first), "run": a.run.run_id, "status": a.run.status},
        "b": {"folder": str(second), "run": b.run.run_id, "status": b.run.status},
        "config": _changed(dict(flat(a.run.config)), dict(flat(b.run.config))),
        "data": _changed(a.run.fingerprint, b.run.fingerprint),
        "versions": _changed(a.run.versions, b.run.versions),
        "stages": list(_stages(a, b)),
        "budget": {name: [a.budget.get(name), b.budget.get(name)] for name in a.budget | b.budget},
    }


def diff_tables(found: Mapping[str, Any]) -> Iterator[Table | Text]:
    """``diff_runs`` for the terminal."""
    names = ["a", "b"]
    for side in names:
        yield Text(f"{side}: {found[side]['folder']} ({found[side]['run']}, {found[side]['status']})")
    for title in ("config", "data", "versions"):
        yield Text(f"\n{title}" + ("" if found[title] else ": the same"), style="bold")
        if found[title]:
            yield _pairs(names, {name: list(map(_setting, pair)) for name, pair in found[title].items()})
    yield Text("\nheld-out figures" + ("" if found["stages"] else ": none in common"), style="bold")
    if found["stages"]:
        yield _stage_table(names, found["stages"])
    yield Text("\nbudget", style="bold")
    yield _pairs(
        names, {name: [DASH if v is None else amount(v) for v in pair] for name, pair in found["budget"].items()}
    )


def _side(journal: Journal, out: Path, name: str | None) -> _Side:
    run = choose_run(journal, out, name)
    runs = [run] if name else journal.runs()
    stages = {key: measured for one in runs for key, measured in measured_stages(journal, out, one)}
    rounds = journal.rounds(run.run_id)
    return _Side(run, stages, asdict(rounds[-1].budget) if rounds else {})


def _stages(a: _Side, b: _Side) -> Iterator[dict[str, Any]]:
    shared = [stage for stage in ORDER if any(name == stage for name, _ in a.stages.keys() & b.stages.keys())]
    pairs = [(stage, stage, stage) for stage in shared]
    if a.result and b.result and a.result != b.result:
        pairs.append((RESULT, a.result, b.result))
    for title, ours, theirs in pairs:
        for split in sorted({split for stage, split in a.stages if stage == ours}):
            before, after = a.stages[ours, split], b.stages.get((theirs, split))
            if after is not None:
                yield from ({"stage": title, "split": split, **entry} for entry in _compared(before, after))


def _compared(before: Measured, after: Measured) -> Iterator[dict[str, Any]]:
    """Two runs' figures of a stage on a split; of plain text also the perplexities, where the tokens are the same."""
    entry: dict[str, Any] = {
        "measure": " / ".join(dict.fromkeys((before.measure, after.measure))),
        "share": before.standing.is_share and after.standing.is_share,
        "a": _figures(before.standing),
        "b": _figures(after.standing),
    }
    reason = _unpaired(before, after)
    found = None if reason else compare(after.standing, before.standing)
    if found:
        yield entry | {"difference": found.difference, "ci95": [found.low, found.high], "n": found.n}
    else:
        yield entry | {"unpaired": reason or "not the same problems"}
    if before.perplexity and after.perplexity and before.way[0] == after.way[0]:
        sides = {"a": _figures(before.perplexity), "b": _figures(after.perplexity)}
        yield {"measure": PERPLEXITY, "share": False, **sides}


def _unpaired(before: Measured, after: Measured) -> str | None:
    """Why the scores of two runs say nothing about each other problem by problem; None where they do."""
    if before.measure != after.measure:
        return "not the same measure"
    if before.problems != after.problems:
        return "not the same text" if before.measure == BITS else "not the same problems"
    if before.way != after.way:
        return "not the same tokens or windows" if before.measure == BITS else "not the same measure"
    return None


def _figures(standing: Standing) -> dict[str, Any]:
    return {"value": standing.value, "ci95": [standing.low, standing.high], "n": standing.n}


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The entries that differ, as pairs; None where one side has none."""
    return {name: [a.get(name), b.get(name)] for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)}


def _pairs(names: list[str], rows: Mapping[str, list[str]]) -> Table:
    table = Table(box=None, padding=(0, 2))
    for title in ("", *names):
        table.add_column(Text(title), overflow="fold")
    for name, pair in rows.items():
        table.add_row(Text(name), *map(Text, pair))
    return table


def _stage_table(names: list[str], stages: list[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2))
    for title in ("stage", "split", "measure", *names, "b − a, 95% interval"):
        table.add_column(Text(title), overflow="fold")
    for entry in stages:
        table.add_row(*map(Text, (entry["stage"], entry["split"], entry["measure"], *_stage_cells(entry))))
    return table


def _stage_cells(entry: Mapping[str, Any]) -> Iterator[str]:
    shown = (_bits, _signed_bits) if entry["measure"] == BITS else (figure, _signed)
    show, differ = (percent, points) if entry["share"] else shown
    for side in ("a", "b"):
        low, high = entry[side]["ci95"]
        yield f"{show(entry[side]['value'])} [{show(low)}, {show(high)}]"
    if "difference" not in entry:
        yield entry.get("unpaired", DASH)
        return
    low, high = entry["ci95"]
    interval = f" [{differ(low).removesuffix(' points')}, {differ(high).removesuffix(' points')}]" if known(low) else ""
    yield f"{differ(entry['difference']) if entry['difference'] else 'no difference'}{interval}"


def _signed(value: float) -> str:
    return figure(value, signed=True)


def _bits(value: float) -> str:
    return fixed(value, 3)


def _signed_bits(value: float) -> str:
    return fixed(value, 4, signed=True)


def _setting(value: Any) -> str:
    """A setting as YAML would have it; a fingerprint by its first digits."""
    text = DASH if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{text[:12]}…" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
