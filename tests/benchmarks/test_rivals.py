"""The benchmarks against TRL and transformers: what both sides are given, and both at tiny sizes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import NAMES
from benchmarks.harness import BenchmarkError, Measurement, Settings

from benchmarks import dpo, grpo, machine, methods, sampling, sft, shape, steps, target, trl_side

TINY = grpo.Case(prompts=2, prompt=8, completion=4)
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed (extra bench)")
# TRL and transformers of one time are not always of one mind about names.
theirs = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shape.save_model(shape.QUICK, tmp_path_factory.mktemp("bench") / "model", end_of_text=True))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(shape.save_model(shape.QUICK, tmp_path_factory.mktemp("bench") / "model", end_of_text=False))


def options(folder: Path, **own: Any) -> dict[str, Any]:
    return {"folder": str(folder), "threads": 1, "repeat": 0, "dtype": "float32", **own}


def test_the_full_shape_has_the_parameters_it_is_named_for() -> None:
    assert shape.FULL.multiplied == 6 * (4 * 256 * 256 + 3 * 256 * 1024) == 6_291_456


def test_decoding_reads_weights_and_prompts_once_a_token_and_own_keys_and_values_once_a_sample() -> None:
    model = shape.Shape(layers=1, width=2, inner=4, heads=1)
    # 2 prompts of 3 tokens, 5 samples, 4 tokens: a token reads 4*4 + 3*8 = 40 weights, 2 * 3 places of prompts, and
    # the 0, 1, 2, 3 places of each of 10 samples before it; a place has 2 keys and 2 values.
    assert model.decoding_bytes(2, 3, 5, 4) == 4 * (4 * 40 + 4 * (4 * 2 * 3 + 10 * (0 + 1 + 2 + 3)))


def test_prompts_are_distinct_and_of_one_length() -> None:
    found = shape.prompts(40, 6)
    assert len(set(found)) == 40
    assert set(map(len, found)) == {6}
    assert shape.prompts(2, 175)[1].startswith("00001")
    assert len(shape.prompt(3, 175)) == 175


def test_ragged_rows_have_the_lengths_promised() -> None:
    lengths = [sft.tokens(row) for row in sft.make_rows(400)]
    assert sft.SHORTEST <= min(lengths) < 24
    assert 400 < max(lengths) <= sft.LONGEST
    assert sorted(lengths)[200] == pytest.approx((sft.SHORTEST * sft.LONGEST) ** 0.5, rel=0.3)
    assert sft.make_rows(3) != sft.make_rows(4)[1:]


def test_pairs_have_the_lengths_promised() -> None:
    rows = dpo.make_rows(50)
    assert {90 <= len(row["prompt"]) <= 110 for row in rows} == {True}
    assert {32 <= len(row[side]) <= 64 for row in rows for side in ("chosen", "rejected")} == {True}


def test_given_completions_differ_in_length_and_by_sample() -> None:
    case = grpo.Case(1, 8, 32)
    texts = [grpo.given_completion(case, "00000+1=", index) for index in range(40)]
    assert {1 <= len(text) <= 32 for text in texts} == {True}
    assert len(set(map(len, texts))) > 10
    assert texts[0] == grpo.given_completion(case, "00000+1=", 0)


def test_memory_bandwidth_and_the_peak_in_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SECONDS", 0.0)
    run = machine.matmul({"sizes": [8], "dtype": "bfloat16", "megabytes": 1, "threads": 1})
    assert set(run) == {"gflops_8", "gigabytes_per_second"}
    measured = Measurement("matmul", ({**run, "gigabytes_per_second": 2.0}, {**run, "gigabytes_per_second": 3.0}))
    assert machine.bandwidth(measured) == 3.0


def test_bfloat16_is_measured_where_it_is_asked_for() -> None:
    asked = Settings(Path(), repeats=1, threads=1, quick=True, bf16=True)
    assert machine.dtypes(asked) == ("float32", "bfloat16")


@pytest.mark.parametrize("name", ["grpo", "sft", "dpo", "target"])
def test_without_trl_the_mend_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    benchmark = importlib.import_module(f"benchmarks.{name}").BENCHMARK
    with pytest.raises(BenchmarkError, match=r"pip install -e \.\[bench\]"):
        benchmark.run(Settings(Path(), repeats=1, threads=1, quick=True))


def test_every_listed_benchmark_is_there() -> None:
    for name in NAMES:
        assert importlib.import_module(f"benchmarks.{name}").BENCHMARK.run


def test_our_step_of_grpo_has_every_figure(endless: str, tmp_path: Path) -> None:
    found = grpo.ours(options(tmp_path, model=endless, case=vars(TINY), steps=3))
    assert set(found) >= {"step", "sampling", "training", "growth_mib", "peak_mib"}
    assert 0 < (found["sampling"] or 0) < (found["step"] or 0)
    # 16 samples of 4 tokens, of which the last is only predicted; prompts are read once, or once a sample.
    assert found["tokens_trained"] in (2 * 8 + 16 * 3, 16 * (8 + 3))


@needs_trl
@theirs
def test_both_first_steps_of_grpo_agree_on_given_samples(endless: str, tmp_path: Path) -> None:
    first = {}
    for side in (grpo.ours, grpo.trl):
        own = tmp_path / side.__name__
        own.mkdir()
        first[side.__name__] = side(options(own, model=endless, case=vars(TINY), steps=1, given=True))
    assert first["ours"] == pytest.approx(first["trl"], abs=1e-5)
    assert abs(first["ours"]["first_loss"] or 0) > 1e-4


@needs_trl
@theirs
def test_trls_own_samples_never_end_early(endless: str, tmp_path: Path) -> None:
    found = grpo.trl(options(tmp_path, model=endless, case=vars(TINY), steps=3))
    assert found["tokens_trained"] == 16 * (8 + 4)


@needs_trl
@theirs
@pytest.mark.parametrize("benchmark", [sft, dpo], ids=["sft", "dpo"])
def test_both_first_steps_on_rows_agree(benchmark: Any, model: str, tmp_path: Path) -> None:
    rows = [{name: text[:12] for name, text in row.items()} for row in benchmark.make_rows(6)]  # seconds, not minutes
    data = shape.write_rows(tmp_path / "rows.jsonl", rows)
    found = {}
    for side in (benchmark.ours, benchmark.trl):
        own = tmp_path / side.__name__
        own.mkdir()
        found[side.__name__] = side(options(own, model=model, rows=str(data), steps=2, batch=3))
    for key in ("first_loss", "first_grad_norm"):
        assert found["ours"][key] == pytest.approx(found["trl"][key], abs=1e-5)
    assert found["ours"].keys() == found["trl"].keys()


def test_rows_go_to_the_rival_in_our_order() -> None:
    rows: list[Mapping[str, Any]] = [{"n": n} for n in range(6)]
    ordered = steps.in_our_order(rows, {"steps": 2, "batch": 3, "repeat": 5})
    assert sorted(row["n"] for row in ordered) == list(range(6))
    assert ordered != rows


def test_both_samplers_draw_all_tokens(endless: str) -> None:
    for side in (sampling.ours, sampling.generate):
        found = side({"model": endless, "dtype": "float32", "case": vars(TINY), "threads": 1, "repeat": 0})
        assert (found["seconds"] or 0) > 0


def test_the_demos_model_counts_its_feed_forward_layers(tmp_path: Path) -> None:
    folder, sizes = sampling.save_demo(tmp_path / "demo")
    assert sizes.multiplied == pytest.approx(2 * 12 * 128**2, rel=0.01)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] is None


def test_our_side_stops_with_the_round_that_reaches_the_target(tmp_path: Path, monkeypatch: Any) -> None:
    from tests.bad_inputs import save_model

    base = str(save_model(tmp_path / "base"))
    monkeypatch.setattr(target, "HELD_OUT", 20)
    own = {"models": [base], "steps": 4, "every": 1, "optimizer": trl_side.OPTIMIZER}
    monkeypatch.setattr(target, "TARGET", 0.0)
    at_once = target.ours(options(tmp_path, **own))
    assert at_once["steps_to_target"] == 1.0
    assert 0 < (at_once["evaluating"] or 0) < (at_once["seconds_to_target"] or 0)
    monkeypatch.setattr(target, "TARGET", 2.0)
    never = target.ours(options(tmp_path / "other", **{**own, "steps": 1}))
    assert never["seconds_to_target"] is None


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_methods_recipe_is_one(name: str) -> None:
    from loopwise.config.reading import parse_recipe
    from loopwise.config.recipes import ImproveRecipe

    own = {"models": ["base"], "teachers": ["teacher"], "method": name, "threads": 1, "repeat": 0}
    recipe = parse_recipe(ImproveRecipe, methods.recipe_of({**own, **methods.QUICK}))
    assert recipe.update.method == methods.METHODS[name]["method"]


def test_the_methods_table_pools_the_seeds_for_its_interval() -> None:
    runs = tuple(
        {**dict.fromkeys((figure.key for figure in methods.FIGURES), 0.5), "right": right, "judged": 100}
        for right in (40, 60)
    )
    row = methods._row(Measurement("DPO", runs))
    assert row[0] == "DPO"
    assert row[3] == "43.1%-56.9%"
