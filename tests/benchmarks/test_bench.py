"""The benchmarks' arithmetic, their JSON, and their workers at tiny sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import main
from benchmarks.harness import (
    Benchmark,
    BenchmarkError,
    Figure,
    Measurement,
    Rival,
    Section,
    Settings,
    Spread,
    as_content,
    ratio,
    run_alternating,
    table,
)

WORKERS = """
import os, pathlib

def count(options):
    with open(options["log"], "a") as log:
        log.write(f"{options['name']}{options['repeat']} ")
    return {
        "value": options["factor"] * (options["repeat"] + 1),
        "passive": float(os.environ["OMP_WAIT_POLICY"] == "PASSIVE"),
        "threads": float(os.environ["OMP_NUM_THREADS"]),
        "writable": float(pathlib.Path(options["folder"]).is_dir()),
    }

def fail(options):
    raise SystemExit("out of luck")
"""
FIGURE = Figure("value", "seconds")


def measured(name: str, *values: float | None) -> Measurement:
    return Measurement(name, tuple({"value": value} for value in values))


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bench_workers.py").write_text(WORKERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_run_that_did_not_get_there_counts_as_the_slowest() -> None:
    assert measured("a", 3.0, None, 1.0).spread("value") == Spread(3.0, 1.0, math.inf)
    assert measured("a", None, 1.0, None).spread("value") == Spread(math.inf, 1.0, math.inf)
    assert measured("a", 1.0).spread("other") is None


def test_ratios_are_of_medians_with_the_extremes_of_runs_made_in_turn() -> None:
    first, second = measured("a", 1.0, 2.0, 9.0), measured("b", 4.0, 2.0, 6.0)
    assert ratio(first, second, "value") == Spread(2.0 / 4.0, 1.0 / 4.0, 9.0 / 6.0)


@pytest.mark.parametrize("second", [measured("b", 1.0, None), measured("b", 1.0, 0.0), Measurement("b", ({}, {}))])
def test_there_is_no_ratio_of_what_was_not_reached(second: Measurement) -> None:
    assert ratio(measured("a", 1.0, 2.0), second, "value") is None


def test_rivals_run_in_turn_each_in_a_calm_process_of_its_own(workers: Path) -> None:
    log = workers / "log"
    rivals = [
        Rival(name, "bench_workers:count", {"name": name, "factor": factor, "log": str(log)})
        for name, factor in (("A", 1.0), ("B", 10.0))
    ]
    first, second = run_alternating(rivals, 2, threads=3)
    assert log.read_text().split() == ["A0", "B0", "A1", "B1"]
    assert first.values("value") == [1.0, 2.0]
    assert second.values("value") == [10.0, 20.0]
    for run in (*first.runs, *second.runs):
        assert (run["passive"], run["threads"], run["writable"]) == (1.0, 3.0, 1.0)
        assert run["process_seconds"] is not None
        assert run["process_seconds"] > 0


def test_a_rival_that_fails_is_told_with_its_last_words(workers: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"(?s)B ended with exit status 1:.*out of luck"):
        run_alternating([Rival("B", "bench_workers:fail", {})], 1, threads=1)


def test_the_table_shows_medians_ratios_and_marked_references() -> None:
    text = table([measured("a", 1.0, 2.0, 3.0), measured("b", 4.0, 4.0, None)], [FIGURE], {"c": {"value": 158.0}})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["", "seconds"]
    assert lines[2:] == [
        ["a", "2.0 (1.0-3.0)"],
        ["b", "4.0 (4.0-not reached)"],
        ["ratio: a / b", "–"],
        ["c (given, not measured in this run)", "158.0"],
    ]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_json_holds_every_run_and_no_infinity() -> None:
    content = as_content([measured("a", 1.0, 3.0), measured("b", 4.0, 4.0), measured("c", 1.0, None)], [FIGURE])
    assert json.loads(json.dumps(content, allow_nan=False)) == {
        "headings": {"value": "seconds"},
        "rivals": {
            "a": {
                "runs": [{"value": 1.0}, {"value": 3.0}],
                "figures": {"value": {"median": 2.0, "low": 1.0, "high": 3.0}},
            },
            "b": {
                "runs": [{"value": 4.0}, {"value": 4.0}],
                "figures": {"value": {"median": 4.0, "low": 4.0, "high": 4.0}},
            },
            "c": {
                "runs": [{"value": 1.0}, {"value": None}],
                "figures": {"value": {"median": None, "low": 1.0, "high": None}},
            },
        },
        "ratios": {"a / b": {"value": {"median": 0.5, "low": 0.25, "high": 0.75}}, "a / c": {"value": None}},
    }


def test_a_benchmark_without_its_text_is_skipped_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = ["pretrain", "perplexity"]
    file = tmp_path / "new" / "bench.json"
    status = main(["--data", str(tmp_path), "--json", str(file), "--quick", "--only", *reading])
    content = json.loads(file.read_text())
    assert status == 0
    assert list(content["benchmarks"]) == reading
    assert "tinyshakespeare.txt" in content["benchmarks"]["pretrain"]["skipped"]
    assert "skipped" in capsys.readouterr().out
    assert content["machine"]["threads"] >= 1
    assert {"processor", "cores", "omp_wait_policy", "versions", "load_before", "load_after"} <= set(content["machine"])


def test_only_a_benchmark_that_cannot_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(settings: Settings) -> Section:
        raise BenchmarkError("no luck")

    def can(settings: Settings) -> Section:
        assert settings == Settings(Path.cwd(), repeats=2, threads=1, quick=False)
        return Section("## a table", {"rivals": {}})

    monkeypatch.setattr("benchmarks.pretrain.BENCHMARK", Benchmark((), cannot))
    monkeypatch.setattr("benchmarks.perplexity.BENCHMARK", Benchmark((), can))
    arguments = ["--json", str(tmp_path / "bench.json"), "--data", ".", "--repeats", "2", "--threads", "1"]
    assert main([*arguments, "--only", "pretrain", "perplexity"]) == 1
    assert json.loads((tmp_path / "bench.json").read_text())["benchmarks"] == {
        "pretrain": {"failed": "no luck"},
        "perplexity": {"rivals": {}},
    }
    assert "## a table" in capsys.readouterr().out
    assert main([*arguments, "--only", "perplexity"]) == 0


def test_the_matmul_peak_is_the_best_median(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import machine

    monkeypatch.setattr(machine, "_SECONDS", 0.0)
    run = machine.matmul({"sizes": [8, 16], "dtype": "float32", "megabytes": 1, "threads": 1})
    assert set(run) == {"gflops_8", "gflops_16", "gigabytes_per_second"}
    assert min(run.values()) > 0
    runs = ({"gflops_8": 1.0, "gflops_16": 5.0, "process_seconds": 99.0}, {"gflops_8": 2.0, "gflops_16": 4.0})
    assert machine.peak(Measurement("matmul", runs)) == 5.0


@pytest.fixture
def text(tmp_path: Path) -> str:
    file = tmp_path / "plays.txt"
    file.write_text("To be, or not to be, that is the question:\n" * 60)
    return str(file)


def options(folder: Path, **own: Any) -> dict[str, Any]:
    return {"folder": str(folder), "threads": 1, "repeat": 0, **own}


def test_both_pretraining_rivals_give_the_same_figures(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import pretrain

    monkeypatch.setattr(pretrain, "TARGET", 100.0)
    tiny = ["model.depth=1", "rounds=2", "update.steps=3", "update.optimizer.warmup_steps=0", "prompts=[]"]
    ours = pretrain.ours(options(tmp_path, text=text, overrides=tiny))
    plain = pretrain.plain(options(tmp_path, text=text, steps=4, evaluate_every=2))
    assert set(ours) == set(plain)
    for figures in (ours, plain):
        assert {figure.key for figure in pretrain.FIGURES} - set(figures) == {"flop_use", "process_seconds"}
        assert 0 < (figures["seconds_in_steps"] or 0) < (figures["seconds_to_target"] or 0)
        assert 0 < (figures["validation_nats"] or 0) < 10


def test_a_target_out_of_reach_is_not_reached(text: str, tmp_path: Path) -> None:
    from benchmarks import pretrain

    figures = pretrain.plain(options(tmp_path, text=text, steps=2, evaluate_every=2))
    assert figures["seconds_to_target"] is None
    assert figures["seconds_in_steps"] is None


def test_validation_predicts_every_character_but_the_first_once() -> None:
    import torch
    import torch.nn.functional as F
    from benchmarks.pretrain import WINDOW, _gpt2, validation_nats

    torch.manual_seed(0)
    model = _gpt2(11).eval()
    ids = torch.randint(11, (2 * WINDOW + 9,))
    nats = []
    with torch.no_grad():
        for first in range(0, len(ids) - 1, WINDOW):
            inputs, targets = ids[first : first + WINDOW + 1][:-1], ids[first + 1 : first + WINDOW + 1]
            logps = F.log_softmax(model(input_ids=inputs[None]).logits[0], dim=-1)
            nats += [-float(logps[place, target]) for place, target in enumerate(targets)]
    assert len(nats) == len(ids) - 1
    assert validation_nats(model, ids) == pytest.approx(sum(nats) / len(nats), abs=1e-5)


def test_only_the_last_window_weighs_less() -> None:
    import numpy as np
    from benchmarks.pretrain import _nats

    from loopwise.types import Evaluation

    evaluation = Evaluation("dev", "p", np.array([-1.0, -2.0, -4.0]))
    assert _nats(evaluation, tokens=9, window=4) == pytest.approx((4 * 1.0 + 4 * 2.0 + 1 * 4.0) / 9)


def test_flops_count_the_output_layer_but_no_looked_up_table() -> None:
    from benchmarks.pretrain import LAYERS, WIDTH, WINDOW, _gpt2, training_flops

    block = 12 * WIDTH**2 + 13 * WIDTH  # two norms, queries to values, their output, two feed-forward layers
    multiplied = LAYERS * block + 2 * WIDTH + 11 * WIDTH
    assert training_flops(_gpt2(11), WINDOW) == 6 * multiplied + 12 * LAYERS * WIDTH * WINDOW


def test_the_rate_warms_up_and_falls_to_its_least() -> None:
    from benchmarks.pretrain import LEAST_LR, LR, WARMUP_STEPS, learning_rate

    rates = [learning_rate(step, 2000) for step in range(2001)]
    assert max(rates) == rates[WARMUP_STEPS] == pytest.approx(LR)
    assert rates[-1] == pytest.approx(LEAST_LR)


def test_the_clock_leaves_out_what_lies_between_stretches() -> None:
    from benchmarks.pretrain import StepClock

    clock = StepClock([(1, 0.0), (2, 1.0), (1, 50.0), (2, 53.0), (3, 55.0)])
    assert clock.step_seconds == pytest.approx((1 + 3 + 2) / 3)


def test_a_cell_has_figures_of_test_and_of_its_floor(tmp_path: Path) -> None:
    from benchmarks import perplexity

    poems = [{"paragraphs": [f"床前明月光，疑是地上霜{place}。", "舉頭望明月，低頭思故鄉。"]} for place in range(40)]
    (tmp_path / "poems.json").write_text(json.dumps(poems))
    tiny = ["model.tokenizer=char", "model.create=lstm", "model.depth=1", "model.width=16", "model.context=16"]
    figures = perplexity.cell(
        options(tmp_path, text=str(tmp_path / "poems.json"), overrides=[*tiny, "rounds=2", "update.steps=1"])
    )
    for figure in perplexity.HELD_OUT:
        assert figures[f"ngram_{figure.key}"] < figures[figure.key]
    assert figures["perplexity"] == pytest.approx(math.exp(figures["nats_per_token"]))
    assert figures["best_round"] in (0, 1, 2)


def test_the_perplexity_table_has_a_floor_for_each_tokenizer() -> None:
    from benchmarks import perplexity

    keys = [figure.key for figure in perplexity.FIGURES] + [f"ngram_{figure.key}" for figure in perplexity.HELD_OUT]
    names = [f"{tokenizer} / {shape}" for tokenizer in perplexity.TOKENIZERS for shape in perplexity.SHAPES]
    rows = perplexity._rows({name: Measurement(name, (dict.fromkeys(keys, 2.0),)) for name in names})
    assert [row[1] for row in rows] == ["Kneser-Ney, 5-gram", "LSTM", "Llama"] * 2
    assert {len(row) for row in rows} == {2 + len(perplexity.FIGURES)}
