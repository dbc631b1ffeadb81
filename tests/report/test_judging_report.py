"""The report on a judge: what it says, that it shows what was measured, and that a resumed run has the same."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.judging import FAST, labelled, preferred, recipe, write_rows
from tests.report.test_report import outline
from tests.test_judge import Interrupting
from typer.testing import CliRunner

from loopwise.cli import app
from loopwise.evaluate.sources import Surroundings, sources
from loopwise.evaluate.stats import mean_interval
from loopwise.report.judging_classes import MOST_CLASSES, classes
from loopwise.report.judging_words import Evidence, judge_verdict, tempered
from loopwise.report.measures import Measure, Standing
from loopwise.report.numbers import percent
from loopwise.stages.judging import train_judge

EVIL = "<script>alert(1)</script><img src=x>\"'&{{ 7*7001 }}"


def doubtful(count: int = 160) -> list[dict[str, Any]]:
    """Labelled rows of which every eighth has a label by chance, so that something is judged wrong."""
    coin = random.Random(0)
    rows: list[dict[str, Any]] = [dict(row) for row in labelled(count)]
    return [row | {"label": coin.choice(("calm", "loud"))} if n % 8 == 0 else row for n, row in enumerate(rows)]


def trained(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> tuple[dict[str, Any], str, str]:
    """Summary, words and HTML of the report on a judge of these rows."""
    write_rows(folder / "rows.jsonl", rows)
    result = train_judge(recipe(folder, **changes), folder / "out")
    path = folder / "out" / "report.html"
    return json.loads((result.out / "summary.json").read_text()), outline(path).text, path.read_text()


def recipes_in(page: str) -> list[dict[str, Any]]:
    """Every reward that the page tells how to use, as its YAML reads."""
    found = re.findall(r"<code>(rewards:.*?)</code>", page, flags=re.DOTALL)
    return [yaml.safe_load(re.sub("&#39;", "'", text))["rewards"][0] for text in found]


def test_a_classifier_is_told_at_a_glance(tmp_path: Path) -> None:
    masked = {"steps": 4, "batch_size": 8, "rounds": 1, "optimizer": FAST}
    summary, text, page = trained(tmp_path, doubtful(), masked=masked)
    found = summary["judge"]["test"]
    share = percent(found["accuracy"])
    assert f"The judge learned its task. It is right on {share} of {found['n']} texts it had never seen;" in text
    assert re.search(r"Change: \+[\d.]+ points \(95% interval \+[\d.]+ to \+[\d.]+ points\)", text)
    low, high = (percent(bound) for bound in found["ci95"])
    assert f"right on {low} to {high} of such texts (Wilson’s 95% interval)" in text
    assert "Always saying “" in text
    calm = found["classes"]["calm"]
    assert f"calm {calm['n']} {percent(calm['precision'])} {percent(calm['recall'])}" in text
    mistake = found["mistakes"][0]
    assert f"{mistake['truth']} taken for {mistake['found']} ×{mistake['count']}" in text
    assert mistake["rows"][0]["texts"][0] in text
    assert mistake["rows"][0]["place"] in text
    assert "learning to read" in text
    assert f"Temperature {summary['judge']['temperature']:.3f}" in text
    assert page.count("<svg") >= 6
    assert not re.search(r"#0102|NaN|nan%|None", page)


def test_every_recipe_that_it_tells_makes_a_reward(tmp_path: Path) -> None:
    _, _, labels = trained(tmp_path, doubtful(80), rounds=1)
    (pairs := tmp_path / "pairs").mkdir()
    _, _, scores = trained(pairs, list(preferred(60)), rounds=1)
    for folder, page, options in (
        (tmp_path, labels, [{"label"}, {"column"}]),
        (pairs, scores, [set(), {"scale"}]),
    ):
        told = recipes_in(page)
        assert [set(one["options"]) - {"path"} for one in told] == options
        for one in told:
            path = str(folder / one["options"]["path"])
            sources()[one["use"]].make(Surroundings(), {**one["options"], "path": path})


def test_the_command_tells_where_the_report_is(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", doubtful(40))
    made = recipe(tmp_path, rounds=1, update={"steps": 1, "batch_size": 4})
    (tmp_path / "judge.yaml").write_text(json.dumps(made.model_dump(mode="json", exclude_unset=True)))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["judge", str(tmp_path / "judge.yaml"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    (out / "report.html").unlink()
    again = CliRunner().invoke(app, ["runs", "resume", str(out)])
    assert again.exit_code == 0, again.output
    for told in (done.output, again.output):
        assert f"Report: {out / 'report.html'}" in told
        reward = yaml.safe_load(told.split("Reward: ")[1])
        sources()[reward["use"]].make(Surroundings(), reward["options"])
    assert (out / "report.html").is_file()


def test_pairs_have_margins_and_no_classes(tmp_path: Path) -> None:
    rows = [
        row if n % 6 else {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        for n, row in enumerate(preferred())
    ]
    summary, text, _ = trained(tmp_path, rows, rounds=1)
    found = summary["judge"]["test"]
    assert f"tells {percent(found['accuracy'])} of {found['n']} pairs apart that it had never seen" in text
    assert sum(found["margins"]["counts"]) == found["n"]
    wrong = found["mistakes"][0]
    assert wrong["count"] == round((1 - found["accuracy"]) * found["n"])
    assert f"{wrong['count']} of {found['n']} pairs ranked wrong" in text
    shown = wrong["rows"][0]
    assert f"{shown['prompt']} chosen {shown['texts'][0].strip()} rejected {shown['texts'][1].strip()}" in text
    assert "Precision" not in text
    assert "Tossing a coin would be right on half of the pairs." in text


def test_a_resumed_judge_has_the_same_report(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", doubtful(60))
    masked = {"steps": 4, "batch_size": 8, "rounds": 1, "optimizer": FAST}
    update = {"steps": 6, "batch_size": 8, "optimizer": FAST}
    runtime = {"device": "cpu", "threads": 1, "checkpoint_steps": 3}
    made = recipe(tmp_path, masked=masked, update=update, runtime=runtime)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    train_judge(made, tmp_path / "whole" / "out")
    # In the second round: what the first one measured is known to the second process from the journal alone.
    with pytest.raises(KeyboardInterrupt):
        train_judge(made, tmp_path / "cut" / "out", observer=Interrupting("judge", 11))
    train_judge(made, tmp_path / "cut" / "out", resume=True)
    first, second = (_timeless((tmp_path / name / "out" / "report.html").read_text()) for name in ("whole", "cut"))
    assert "seconds" in first
    assert first == second


def _timeless(page: str) -> str:
    """A page without dates and durations."""
    page = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|\d\d:\d\d:\d\d UTC", "then", page)
    return re.sub(r"[\d.]+ (?:s|min|h)\b", "seconds", page)


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    rows = [{"text": f"{EVIL} {row['text']}", "label": f"{row['label']}{EVIL}"} for row in doubtful(80)]
    model = {"create": "bert", "depth": 1, "width": 16, "heads": 2, "context": 128, "tokenizer": "byte"}
    _, text, page = trained(tmp_path, rows, rounds=1, model=model, update={"steps": 2, "batch_size": 4})
    parsed = outline(tmp_path / "out" / "report.html")
    assert not {"script", "img", "link", "iframe"} & parsed.seen
    assert EVIL in text
    assert "49007" not in text
    assert "default-src 'none'" in page
    assert all(link.startswith("#") for link in re.findall(r'(?:href|src)="([^"]*)"', page))


def test_a_judge_that_nobody_measured_has_no_verdict(tmp_path: Path) -> None:
    data = {"train": "rows.jsonl", "dev": 0, "test": 0}
    _, text, _ = trained(tmp_path, doubtful(40), rounds=1, data=data, update={"steps": 2, "batch_size": 4})
    assert "No verdict: no rows were held out" in text
    assert "How sure it is" not in text
    assert "its temperature is 1" in text


def test_likelihood_is_told_with_the_share_that_is_right(tmp_path: Path) -> None:
    data = {"train": "rows.jsonl", "dev": 0.3, "test": 0}
    summary, text, _ = trained(tmp_path, doubtful(), gate={"metric": "likelihood"}, data=data)
    assert f"right on {percent(summary['judge']['dev']['accuracy'])} of" in text
    assert "Change of the mean log-probability of the right judgement: +" in text
    assert "These are dev texts, which the gate chose rounds by" in text


def test_of_many_labels_the_worst_stand_alone() -> None:
    entries = {
        f"label {n:02}": {"precision": n / 77, "recall": n / 77, "f1": n / 77, "n": 2 if n else 0} for n in range(77)
    }
    found = classes({"classes": entries, "macro_f1": 0.5}, 80)
    assert found is not None
    assert [row.name.whole for row in found.rows] == [f"label {n:02}" for n in range(1, MOST_CLASSES + 1)]
    assert found.others is not None
    assert found.others.name.whole == "the 56 others, on average"
    assert found.others.n == "112"
    assert found.others.f1 == percent(float(np.mean(np.arange(21, 77))) / 77)
    assert found.absent == 4
    few = classes({"classes": dict(list(entries.items())[1 : MOST_CLASSES + 2]), "macro_f1": 0.5}, MOST_CLASSES + 1)
    assert few is not None
    assert few.others is None
    assert len(few.rows) == MOST_CLASSES + 1


def judged(before: int, after: int, *, common: int = 50, best: int = 1) -> Evidence:
    """A judge right on so many of 100 texts, of which ``common`` have one label."""

    def standing(right: int) -> Standing:
        scores = np.array([1.0] * right + [0.0] * (100 - right))
        return Standing(right / 100, *mean_interval(scores), 100, scores)

    figures = {
        "accuracy": after / 100,
        "ci95": list(mean_interval([1.0] * after + [0.0] * (100 - after))),
        "n": 100,
        "classes": {"a": {"n": common}, "b": {"n": 100 - common}},
    }
    measure = Measure("share", "right", "texts")
    return Evidence("labels", "test", figures, measure, standing(before), standing(after), before / 100, best)


@pytest.mark.parametrize(
    ("evidence", "kind", "words"),
    [
        (judged(50, 90), "gain", "The judge learned its task. It is right on 90.0% of 100 texts"),
        (judged(50, 52), "none", "Not seen to be better than before training. The judge is right on 52.0%"),
        (judged(10, 90, common=90), "none", "Better than before training, but not seen to beat one that cannot read"),
        (judged(90, 50), "loss", "The judge got worse. It is right on 50.0% of 100 texts"),
        (judged(90, 90, best=0), "none", "Nothing gained: no round beat the judge it started from"),
    ],
)
def test_the_verdict_is_no_kinder_than_the_figures(evidence: Evidence, kind: str, words: str) -> None:
    verdict = judge_verdict(evidence)
    assert verdict.kind == kind
    assert verdict.headline.startswith(words)


def test_what_a_temperature_did() -> None:
    assert "surer than it was right" in tempered(2.0, fitted=True)
    assert "less sure than it may be" in tempered(0.5, fitted=True)
    assert "next to nothing" in tempered(1.01, fitted=True)
    assert "No temperature was fitted" in tempered(1.0, fitted=False)
