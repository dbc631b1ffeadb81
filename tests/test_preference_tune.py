"""``loopwise tune`` on rows with a chosen and a rejected completion."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.stopping import CutShortError, StopAt

from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import TuneRecipe
from loopwise.errors import ConfigError, DataError
from loopwise.evaluate.likelihood import mean_logps
from loopwise.models.folders import load_policy
from loopwise.models.policy import Policy
from loopwise.runs.journal import Journal
from loopwise.runtime import Runtime
from loopwise.stages.finetune import Prepared, prepare, tune
from loopwise.types import Problem
from loopwise.update.pairs import LabelledPairs

pytestmark = pytest.mark.usefixtures("no_report")
ROWS = [{"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + 1)} for a in range(6) for b in range(5)]

SIDES = ("chosen", "rejected")
NOTHING = 1e-5
"""What two readings of one model differ by at most."""


def rows(folder: Path, content: Sequence[Any] = ROWS, name: str = "rows.jsonl") -> Path:
    """A file of rows."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def recipe(base: Path, train: Path | list[str], method: str = "dpo", **changes: Any) -> TuneRecipe:
    update = {"method": method, "steps": 6, "batch_size": 4, "optimizer": {"lr": 3e-3}, **changes.pop("update", {})}
    found = train if isinstance(train, list) else str(train)
    content = {
        "model": str(base),
        "data": {"train": found, "dev": 5, "test": 0, **changes.pop("data", {})},
        "update": update,
        "rounds": 1,
        "gate": {"metric": "likelihood", "enabled": False},
        "runtime": {"threads": 1},
    }
    return parse_recipe(TuneRecipe, content | changes)


def prepared(recipe: TuneRecipe) -> Prepared:
    """A recipe, resolved."""
    with ExitStack() as stack:
        return prepare(stack, recipe)


def steps(out: Path, name: str) -> list[float]:
    """A metric, step by step."""
    with Journal.open(out / "journal.db", read_only=True) as journal:
        return [row.metrics[name] for row in journal.steps("tune")]


def lead(policy: Policy, runtime: Runtime) -> float:
    """How much likelier a token of the chosen completions is than one of the rejected, in nats."""
    problems = [Problem(row["prompt"], row["prompt"]) for row in ROWS]
    chosen, rejected = (mean_logps(policy, problems, [row[side] for row in ROWS], runtime) for side in SIDES)
    return float((chosen - rejected).mean())


@pytest.mark.parametrize("method", ["dpo", "ipo", "slic", "margin"])
def test_pairs_are_learned_by_each_method(folder: Path, tmp_path: Path, runtime: Runtime, method: str) -> None:
    result = tune(recipe(folder, rows(tmp_path), method, update={"steps": 12}), tmp_path / "out")
    assert lead(result.policy, runtime) > lead(load_policy(folder, runtime), runtime) + 0.05
    assert len(steps(tmp_path / "out", "logps/chosen")) == 12
    assert result.summary["rows"]["rows.jsonl"]["rows"] == 25
    assert result.summary["stages"]["base"]["dev"]["accuracy"] < 0


@pytest.mark.parametrize("reference", ["base", "accepted"])
def test_the_reference_is_the_base_or_the_last_accepted(folder: Path, tmp_path: Path, reference: str) -> None:
    tune(recipe(folder, rows(tmp_path), update={"reference": reference, "steps": 3}, rounds=2), tmp_path / "out")
    margins = steps(tmp_path / "out", "rewards/margins")
    assert margins[0] == pytest.approx(0, abs=NOTHING)
    assert (abs(margins[3]) < NOTHING) == (reference == "accepted")


def test_adapters_are_compared_with_the_weights_below(folder: Path, tmp_path: Path) -> None:
    lora = {"path": str(folder), "lora": {"rank": 2}}
    data = rows(tmp_path)
    tune(recipe(folder, data, model=lora, update={"reference": "adapters_off"}), tmp_path / "out")
    margins = steps(tmp_path / "out", "rewards/margins")
    assert margins[0] == pytest.approx(0, abs=NOTHING)
    assert abs(margins[-1]) > NOTHING
    with pytest.raises(ConfigError, match=r'key "update\.reference": adapters_off .* this model has none'):
        tune(recipe(folder, data, update={"reference": "adapters_off"}), tmp_path / "none")


def test_resumed_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    chosen = recipe(
        folder,
        rows(tmp_path),
        update={"reference": "accepted", "steps": 4},
        rounds=2,
        runtime={"threads": 1, "checkpoint_steps": 2},
    )
    whole = tune(chosen, tmp_path / "whole")
    with pytest.raises(CutShortError):
        tune(chosen, tmp_path / "cut", observer=StopAt(7))
    assert tune(chosen, tmp_path / "cut", resume=True).policy.id == whole.policy.id


def test_the_prompt_may_be_what_both_sides_begin_with(folder: Path, tmp_path: Path) -> None:
    implicit = [{side: row["prompt"] + row[side] for side in SIDES} for row in ROWS]
    explicit = prepared(recipe(folder, rows(tmp_path, ROWS[:12], "explicit.jsonl")))
    found = prepared(recipe(folder, rows(tmp_path, implicit[:12], "implicit.jsonl")))
    # A sum under ten has no digit in common with the next one.
    assert found.update.labelled == explicit.update.labelled


def test_files_are_mixed_and_rows_changed_as_for_fine_tuning(folder: Path, tmp_path: Path) -> None:
    function = tmp_path / "mine.py"
    function.write_text("def louder(row, generator):\n    return {**row, 'rejected': row['rejected'] * 2}\n")
    first, second = rows(tmp_path, ROWS[:15], "one.jsonl"), rows(tmp_path, ROWS[15:], "two.jsonl")
    update = prepared(recipe(folder, [str(first), str(second)], data={"augment": f"{function}:louder"})).update
    assert isinstance(update, LabelledPairs)
    assert update.sources == ((12, 1.0), (13, 1.0))
    assert update.changed is not None
    for place, pair in enumerate(update.labelled):
        chosen, rejected = update.changed(place, 0).rows
        assert chosen == pair.rows[0]
        *digits, end = pair.rows[1].token_ids
        assert rejected.token_ids == (*digits, *digits, end)


def test_pairs_with_a_side_that_is_too_long_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    data = rows(tmp_path, [*ROWS, *({**row, "prompt": "0" + row["prompt"], "rejected": "1" * 60} for row in ROWS[:5])])
    with pytest.raises(DataError, match=r"rows\.jsonl line 3\d: 66 tokens, over the limit of 48"):
        prepared(recipe(folder, data, data={"dev": 0}))
    found = prepared(recipe(folder, data, data={"dev": 0}, update={"too_long": "drop"}))
    assert found.encodings["rows.jsonl"].dropped == 5
    assert len(found.update.labelled) == len(ROWS)


def test_rows_without_a_rejected_side_are_refused(folder: Path, tmp_path: Path) -> None:
    data = rows(tmp_path, [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS])
    wanted = r'rows\.jsonl line \d+, column "rejected": missing\. dpo learns from .*, or set update\.method: sft'
    with pytest.raises(DataError, match=wanted):
        tune(recipe(folder, data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", [{"threshold": 0.5}, {"pairs": {"take": "all"}}])
def test_keys_that_would_do_nothing_are_refused(folder: Path, tmp_path: Path, key: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf'key "update\.{next(iter(key))}": .* does nothing here\. Leave it out'):
        tune(recipe(folder, rows(tmp_path), update=key), tmp_path / "out")
