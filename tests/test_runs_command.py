"""``loopwise runs export`` and ``diff`` on small real runs."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from tests.bad_inputs import IMPROVE, ROWS, TUNE, lines, save_model
from tests.command_line import contents, loopwise, refused, strict

from loopwise.evaluate.stats import difference
from loopwise.runs.journal import Journal

PRETRAIN = """\
model: {create: gpt2, depth: 1, context: 16, tokenizer: char}
data: {train: here/text.txt, dev: 0.2, deduplicate: none}
update: {steps: 2, batch_size: 2}
rounds: 1
prompts: []
runtime: {threads: 1}
"""
FORMATS = ("jsonl", "csv", "parquet")
OVER = "def over(prompts, completions, **c):\n    return [float(b > a) for a, b in zip(prompts, completions)]\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the runs a and b (of one recipe with another rate), other (of other rows) and tuned, unchanged."""
    folder = tmp_path_factory.mktemp("finished")
    save_model(folder / "model")
    (folder / "rows.jsonl").write_text(lines(*ROWS))
    (folder / "others.jsonl").write_text(lines(*({**row, "prompt": f"0{row['prompt']}"} for row in ROWS)))
    (folder / "mine.py").write_text(OVER)
    (folder / "improve.yaml").write_text(IMPROVE)
    (folder / "tune.yaml").write_text(TUNE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loopwise.results.write_report", lambda *_: None)
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        improve = ["improve", folder / "improve.yaml", "rewards=['mine.py:over']", "gate.enabled=false"]
        loopwise(*improve, "--out", folder / "a")
        loopwise(*improve, "update.optimizer.lr=0.3", "update.steps=2", "--out", folder / "b")
        loopwise(*improve, "data.train=others.jsonl", "--out", folder / "other")
        loopwise("tune", folder / "tune.yaml", "--out", folder / "tuned")
        loopwise("tune", folder / "tune.yaml", "update.steps=2", "--out", folder / "tuned2")
        (folder / "moved").mkdir()
        shutil.copy(folder / "rows.jsonl", folder / "moved" / "renamed.jsonl")
        loopwise("tune", folder / "tune.yaml", f"data.train={folder}/moved/renamed.jsonl", "--out", folder / "tuned3")
        for name, file in (("wider", "mine.py"), ("harder", "hard.py")):
            (folder / name).mkdir()
            (folder / name / file).write_text(OVER if name == "wider" else OVER.replace("b > a", "b < a"))
            loopwise(*improve, f"rewards=['{name}/{file}:over']", "--out", folder / name / "run")
        loopwise(*improve, "controls=[unfiltered]", "--out", folder / "controlled")
        _pretrain(folder)
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def test_show_has_columns_for_what_a_run_has(finished: Path) -> None:
    assert loopwise("runs", "show", finished / "a").stdout.splitlines()[2].split() == [
        "round", "samples", "kept", "reward", "dev", "gate",
    ]  # fmt: skip
    assert loopwise("runs", "show", finished / "tuned").stdout.splitlines()[2].split() == ["round", "dev", "gate"]


def _pretrain(folder: Path) -> None:
    """Runs first and again (of the same text elsewhere), pairs (other tokens), apart (other text)."""
    text = "".join(f"{a}+{b}={a + b}\n" for a in range(20) for b in range(8))
    for name in ("here", "there"):
        (folder / name).mkdir()
        (folder / name / "text.txt").write_text(text)
    (folder / "here" / "other.txt").write_text(text[::-1])
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    train = ["pretrain", folder / "pretrain.yaml"]
    loopwise(*train, "--out", folder / "first")
    loopwise(*train, "seed=1", f"data.train={folder}/there/text.txt", "--out", folder / "again")
    loopwise(*train, "model.tokenizer={kind: bpe, vocabulary: 280}", "--out", folder / "pairs")
    loopwise(*train, "data.train=here/other.txt", "--out", folder / "apart")


def parsed(file: Path) -> list[dict[str, Any]]:
    """The rows of an exported file, nulls left out, everything as text."""
    if file.suffix == ".jsonl":
        rows = [strict(line) for line in file.read_text().splitlines()]
    elif file.suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(file.read_text(), newline="")))
    else:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    return [{name: str(value) for name, value in row.items() if value not in (None, "")} for row in rows]


@pytest.mark.parametrize("what", ["samples", "metrics"])
def test_every_format_holds_the_same(what: str, finished: Path, tmp_path: Path) -> None:
    for format in FORMATS:
        loopwise("runs", "export", finished / "a", "--what", what, "--to", tmp_path / f"out.{format}")
    tables = [parsed(tmp_path / f"out.{format}") for format in FORMATS]
    assert tables[0] == tables[1]
    assert [sorted(row) for row in tables[0]] == [sorted(row) for row in tables[2]]
    assert len(tables[0]) == (sum(1 for _ in samples(finished / "a")) if what == "samples" else 3)


def samples(out: Path) -> Iterator[Any]:
    with Journal.open(out / "journal.db", read_only=True) as journal:
        yield from journal.all_samples("improve")


def test_samples_are_those_of_the_run(finished: Path, tmp_path: Path) -> None:
    shown = loopwise("runs", "export", finished / "a", "--to", tmp_path / "s.jsonl")
    rows = [strict(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert f"{len(rows)} samples of run improve." in shown.stderr
    assert rows[0]["over"] in (0.0, 1.0)
    assert [row["completion"] for row in rows] == [row.sample.text for row in samples(finished / "a")]
    parquet = pyarrow.parquet.read_table(finished / "a" / "samples.parquet").to_pylist()
    assert rows == parquet


def test_metrics_are_flat_in_a_table(finished: Path, tmp_path: Path) -> None:
    loopwise("runs", "export", finished / "a", "--what", "metrics", "--format", "csv", "--to", tmp_path / "m")
    start, step, end = parsed((tmp_path / "m").rename(tmp_path / "m.csv"))
    assert (start["kind"], step["kind"], end["kind"]) == ("round", "step", "round")
    assert "loss" in step
    assert end["decision.reason"]
    assert float(end["budget.tokens_generated"]) > 0


def test_a_model(finished: Path, tmp_path: Path) -> None:
    loopwise("runs", "export", finished / "a", "--what", "model", "--to", tmp_path / "mine")
    assert contents(tmp_path / "mine") == contents(finished / "a" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


BAD_EXPORTS = [
    (["nowhere", "--to", "x.csv"], ("nowhere: no run here",)),
    (["a", "--to", "x.txt"], ("its name does not tell the format", "--format jsonl, csv, parquet")),
    (["a", "--to", "x", "--format", "cvs"], ('--format "cvs": not known. Did you mean "csv"?',)),
    (["a", "--to", "x.csv", "--what", "sample"], ('--what "sample"', 'Did you mean "samples"?')),
    (["a", "--to", "x.csv", "--run", "improved"], ('there is no run "improved". Did you mean "improve"?',)),
    (["a", "--to", "rows.jsonl"], ("rows.jsonl: exists already", "another --to")),
    (["a", "--to", "no/where.csv"], ("there is no folder no", "Make it first")),
    (["a", "--what", "model", "--to", "x", "--format", "csv"], ("--format says nothing about a model", "Leave it out")),
    (["a", "--what", "model", "--to", "model"], ("model: exists already",)),
    (["a", "--to", "a/model/x.csv"], ("in the run's own folder", "another --to")),
    (["a", "--what", "model", "--to", "a/checkpoints/x"], ("in the run's own folder",)),
    (["unfinished", "--what", "model", "--to", "x"], ("no model yet", "loopwise runs resume")),
    (["empty", "--to", "x.csv"], ("stopped before it began",)),
    (["a"], ("Missing option '--to'",)),
]


@pytest.mark.parametrize(("arguments", "says"), BAD_EXPORTS, ids=lambda part: " ".join(part)[:60])
def test_bad_exports(
    arguments: list[str], says: tuple[str, ...], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").symlink_to(finished / "a")
    (tmp_path / "model").symlink_to(finished / "model")
    (tmp_path / "rows.jsonl").touch()
    for name in ("unfinished", "empty"):
        (tmp_path / name).mkdir()
    shutil.copy(finished / "a" / "journal.db", tmp_path / "unfinished")
    Journal.open(tmp_path / "empty" / "journal.db", create=True).close()
    before = contents(tmp_path)
    message = refused("runs", "export", *arguments)
    assert all(words in message for words in says)
    assert contents(tmp_path) == before


def diff(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = strict(loopwise("runs", "diff", *arguments, "--json").stdout)
    return found


def test_a_run_and_itself(finished: Path) -> None:
    found = diff(finished / "a", finished / "a")
    assert found["config"] == found["data"] == found["versions"] == {}
    assert [entry["difference"] for entry in found["stages"]] == [0.0] * 4
    shown = loopwise("runs", "diff", finished / "a", finished / "a").stdout
    assert "config: the same" in shown
    assert "no difference" in shown


def test_what_was_set_differently_and_what_came_of_it(finished: Path) -> None:
    found = diff(finished / "a", finished / "b")
    assert found["config"] == {"update.optimizer.lr": [1e-5, 0.3], "update.steps": [1, 2]}
    assert found["data"] == {}
    assert found["budget"]["tokens_trained"][1] > found["budget"]["tokens_trained"][0]
    entries = {(entry["stage"], entry["split"]): entry for entry in found["stages"]}
    assert set(entries) == {(stage, split) for stage in ("base", "improved") for split in ("dev", "test")}
    scores = [scores_of(finished / name, "improved", "dev") for name in "ab"]
    compared, entry = difference(scores[1], scores[0]), entries["improved", "dev"]
    assert entry["difference"] == pytest.approx(compared.value)
    assert entry["a"]["value"] == pytest.approx(scores[0].mean())
    assert entry["n"] == 8
    assert entry["ci95"] == pytest.approx([compared.low, compared.high])
    assert "points" in loopwise("runs", "diff", finished / "a", finished / "b").stdout


def scores_of(out: Path, stage: str, split: str) -> Any:
    with Journal.open(out / "journal.db", read_only=True) as journal:
        rows = journal.evaluations("improve")
    return next(row.evaluation.scores for row in rows if (row.stage, row.evaluation.split) == (stage, split))


def test_other_problems_are_not_compared(finished: Path) -> None:
    found = diff(finished / "a", finished / "other")
    assert list(found["data"]) == ["train"]
    assert all("difference" not in entry for entry in found["stages"])
    assert "not the same problems" in loopwise("runs", "diff", finished / "a", finished / "other").stdout


def test_likelihoods_of_the_same_rows_are_compared(finished: Path) -> None:
    found = diff(finished / "tuned", finished / "tuned2")
    entry = next(entry for entry in found["stages"] if (entry["stage"], entry["split"]) == ("tuned", "test"))
    assert entry["difference"] != 0
    assert not entry["share"]
    moved = diff(finished / "tuned", finished / "tuned3")
    assert list(moved["config"]) == ["data.train"]
    assert [entry["difference"] for entry in moved["stages"]] == [0.0] * 4


def test_results_of_runs_of_two_kinds(finished: Path) -> None:
    found = diff(finished / "a", finished / "tuned")
    assert found["config"]["samples"] == [2, None]
    assert {entry["stage"] for entry in found["stages"]} >= {"result"}
    assert all("difference" not in entry for entry in found["stages"])


def test_other_rewards_are_another_measure(finished: Path) -> None:
    same = diff(finished / "a", finished / "wider" / "run")
    assert all("difference" in entry for entry in same["stages"])
    found = diff(finished / "a", finished / "harder" / "run")
    assert {entry.get("unpaired") for entry in found["stages"]} == {"not the same measure"}
    shown = loopwise("runs", "diff", finished / "a", finished / "harder" / "run").stdout
    assert "not the same measure" in shown
    assert "points" not in shown


def test_likelihood_and_rewards_are_not_compared(finished: Path) -> None:
    found = diff(finished / "a", finished / "tuned")
    assert {entry["measure"] for entry in found["stages"]} == {"reward / likelihood"}
    assert {entry["unpaired"] for entry in found["stages"]} == {"not the same measure"}


def test_one_run_of_a_folder(finished: Path) -> None:
    whole = diff(finished / "controlled", finished / "controlled")
    assert {entry["stage"] for entry in whole["stages"]} == {"base", "control_unfiltered", "improved"}
    one = diff(finished / "controlled", finished / "controlled", "--run", "control-unfiltered")
    assert {entry["stage"] for entry in one["stages"]} == {"base", "control_unfiltered"}


def test_pretraining_is_compared_in_bits_per_byte(finished: Path) -> None:
    found = diff(finished / "first", finished / "again")
    assert list(found["config"]) == ["data.train", "seed"]
    entries = {(entry["stage"], entry["measure"]): entry for entry in found["stages"]}
    assert [key[0] for key in entries] == [name for name in ("untrained", "ngram", "pretrained") for _ in range(2)]
    entry, perplexity = (entries["pretrained", name] for name in ("bits a byte", "perplexity"))
    sides = [strict((finished / name / "summary.json").read_text()) for name in ("first", "again")]
    told = [side["stages"]["pretrained"]["dev"] for side in sides]
    for side, figures in zip("ab", told, strict=True):
        assert entry[side]["value"] == pytest.approx(figures["bits_per_byte"])
        assert perplexity[side]["value"] == pytest.approx(figures["perplexity"])
        assert entry[side]["ci95"][0] < figures["bits_per_byte"] < entry[side]["ci95"][1]
    assert entry["difference"] == pytest.approx(told[1]["bits_per_byte"] - told[0]["bits_per_byte"], abs=0.02)
    assert entries["ngram", "bits a byte"]["difference"] == 0.0


def test_other_tokens_and_other_text_are_not_paired(finished: Path) -> None:
    found = diff(finished / "first", finished / "pairs")
    assert {entry["measure"] for entry in found["stages"]} == {"bits a byte"}
    assert {entry["unpaired"] for entry in found["stages"]} == {"not the same tokens or windows"}
    other = diff(finished / "first", finished / "apart")
    assert {entry["unpaired"] for entry in other["stages"] if "unpaired" in entry} == {"not the same text"}
    assert all("difference" not in entry for entry in other["stages"])


def test_bad_diffs(finished: Path) -> None:
    assert "nowhere: no run here" in refused("runs", "diff", finished / "a", "nowhere")
    assert 'there is no run "tune"' in refused("runs", "diff", finished / "a", finished / "a", "--run", "tune")
