"""The report on pretraining: an honest verdict in perplexity and bits a byte, and texts as they were written."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from tests.report.finished_runs import PRETRAIN, Recorder, figures, summarise, text_figures
from tests.report.test_report import EVIL, outline

import loopwise
from loopwise.report import write_report
from loopwise.report.details import OWN_MODEL_TYPE
from loopwise.report.pretraining import gather_text
from loopwise.report.source import Source
from loopwise.report.writing import language
from loopwise.runs.journal import Journal

COUNTS = {
    "train/documents": 283,
    "train/characters": 21004,
    "train/bytes": 60774,
    "dev/documents": 32,
    "dev/characters": 2615,
    "dev/bytes": 7585,
    "test/documents": 0,
    "dropped/exact": 12,
    "dropped/near": 0,
    "dropped/empty": 1,
    "skipped": 0,
    "sources": ["poems.json"],
}
POEMS = ("十陵帶房月，人月花冷前。", "\n行舟見水水，\n平相乘開。", "", "The moon\nis <b>up</b>.")
GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.normal(0, 0.3, 44)
BEFORE, MIDDLE, WORSE, AFTER = (
    list(level + NOISE + GENERATOR.normal(0, 0.02, 44)) for level in (-7.9, -6.3, -6.6, -5.2)
)


def windows(level):
    """Log-probabilities a token of 44 windows about ``level``."""
    return list(level + NOISE)


def poems(number, index):
    return POEMS[index] if number else "嗣扯\x10�亂旋"


def record(journal, out, floor=-5.6, rounds=(MIDDLE, WORSE, AFTER), config=PRETRAIN, texts=poems, **changes):
    """A finished run from BEFORE to AFTER, its second round rolled back, beside an n-gram floor."""
    run = Recorder(journal, "pretrain", config, prompts=config["prompts"], texts=texts, parts=())
    run.start("pretrain", dev=BEFORE, test=BEFORE)
    for number, values in enumerate(rounds, start=1):
        run.round(number, values, drawn=False, **{"update/loss": 6.0 - number})
    best = max((row.round for row in journal.decisions("pretrain") if row.decision.best), default=0)
    result = rounds[best - 1] if best else BEFORE
    run.evaluate(best, "test", result, "pretrained")
    stages = {"untrained": BEFORE, "pretrained": result} | ({"ngram": windows(floor)} if floor else {})
    splits = {name: {split: text_figures(values) for split in ("dev", "test")} for name, values in stages.items()}
    return summarise("pretrain", splits, "poems.json") | {"corpus": COUNTS} | changes


def gathered(journal, out, summary):
    return gather_text(Source.read(journal, out, summary))


def test_the_verdict_names_perplexity_bits_a_byte_and_the_floor(journal, tmp_path):
    found = gathered(journal, tmp_path, record(journal, tmp_path)).verdict
    before, after, floor = (f"{math.exp(-np.mean(values)):,.0f}" for values in (BEFORE, AFTER, windows(-5.6)))
    bits = -np.mean(AFTER) * 44 * 64 / math.log(2) / 7543
    assert found.kind == "gain"
    assert found.headline == (
        f"Training took the text’s perplexity from {before} to {after} ({bits:.2f} bits a byte) on 2,816 held-out "
        f"tokens; the n-gram floor is at {floor}."
    )
    change = np.mean(AFTER) - np.mean(BEFORE)
    assert found.details[0].startswith(f"Change: −{change:.3f} nats a token, which is −")
    low, high = (float(bound) for bound in re.findall(r"interval −(\S+) to −(\d\.\d+)", found.details[0])[0])
    assert high < change * 44 * 64 / math.log(2) / 7543 < low
    assert found.details[0].endswith("over the same 44 windows of text before and after.")


@pytest.mark.parametrize(
    ("floor", "words"),
    [(-4.0, "still worse than the n-gram floor at 5"), (-6.0, "; the n-gram floor is at 4"), (None, "tokens.")],
)
def test_a_model_behind_the_floor_is_called_that(journal, tmp_path, floor, words):
    assert words in gathered(journal, tmp_path, record(journal, tmp_path, floor)).verdict.headline


def test_where_the_floor_was_journaled_it_is_compared_window_by_window(journal, tmp_path):
    summary = record(journal, tmp_path, floor=-5.21)
    Recorder(journal, "pretrain", PRETRAIN).evaluate(0, "test", list(np.array(AFTER) - 0.001 * NOISE), "ngram")
    content = gathered(journal, tmp_path, summary)
    assert "no better than the n-gram floor" in content.verdict.headline
    assert content.verdict.details[1].startswith("Compared with the n-gram floor: ")
    assert content.tables[0].stages[0].perplexity == f"{math.exp(-np.mean(BEFORE)):,.0f}"


def test_no_better_and_unchanged_are_no_gain(journal, tmp_path):
    content = gathered(journal, tmp_path, record(journal, tmp_path, rounds=(windows(-8.5),)))
    assert content.verdict.kind == "none"
    assert content.verdict.headline.startswith("Nothing gained: no round beat the model it started from")
    assert content.writing.round == 0


def test_nothing_held_out(journal, tmp_path):
    run = Recorder(journal, "pretrain", PRETRAIN, prompts=PRETRAIN["prompts"], texts=poems, parts=())
    run.start("pretrain")
    run.round(1, None, drawn=False, **{"update/loss": 5.0})
    stages = {"untrained": {}, "pretrained": {}}
    text = outline(write_report(tmp_path, summarise("pretrain", stages, "poems.json") | {"corpus": COUNTS})).text
    assert "No verdict: no text was held out" in text
    assert "of the training text: there was no dev split" in text


def test_the_table_has_every_stage_and_split(journal, tmp_path):
    tables = gathered(journal, tmp_path, record(journal, tmp_path)).tables
    assert [table.split for table in tables] == ["test", "dev"]
    assert [stage.key for stage in tables[0].stages] == ["untrained", "ngram", "pretrained"]
    pretrained = tables[0].stages[2]
    assert pretrained.nats == f"{-np.mean(AFTER):.3f}"
    low, high = map(float, pretrained.interval.split(" to "))
    assert low < float(pretrained.bits) < high
    assert tables[0].stages[0].width > tables[0].stages[2].width


def test_curves_go_down_in_nats_with_the_gate_in_the_same_sense(journal, tmp_path):
    content = gathered(journal, tmp_path, record(journal, tmp_path))
    held_out, training = content.curves
    assert [point.mark for point in held_out.points] == ["base", "best", "rolled back", "best"]
    assert held_out.points[0].value > held_out.points[1].value > held_out.points[3].value > 0
    assert all(point.low <= point.value <= point.high for point in held_out.points)
    assert [(point.round, point.value) for point in training.points] == [(1, 5.0), (2, 4.0), (3, 3.0)]
    assert content.floor == pytest.approx(-np.mean(windows(-5.6)))
    lost = content.gate.rows[1]
    assert (lost.mark, lost.difference[0], lost.upper[0]) == ("rolled back", "+", "+")


def test_the_story_tells_the_run_s_own_figures(journal, tmp_path):
    content = gathered(journal, tmp_path, record(journal, tmp_path, budget={"tokens_trained": 368640}))
    read, measure, write, gate = (step.text for step in content.steps)
    assert "60 optimizer steps on 16 windows of 64 tokens" in read
    assert read.endswith("In all it read 368,640 tokens, the training text about 16.2 times over.")
    assert "2,816 held-out tokens" in measure
    assert "2 beginnings" in write
    assert "2 of 3 rounds were accepted" in gate
    assert content.facts.splits[0] == ("to train on", "283", "21,004", "60,774")
    assert len(content.facts.splits) == 2
    assert content.facts.dropped == "Left out: 12 exact copies and 1 empty document."
    assert "Answers judged" not in dict(content.details.budget)


def test_less_than_the_whole_text_read_by_a_model_that_goes_on(journal, tmp_path):
    summary = record(journal, tmp_path, budget={"tokens_trained": 2269})
    summary["stages"]["base"] = summary["stages"].pop("untrained")
    content = gathered(journal, tmp_path, summary)
    assert content.opening.startswith("An existing language model read on: in 3 rounds")
    assert content.steps[0].text.endswith("about 10.0% of the training text.")
    assert content.verdict.kind == "gain"


def test_cautions(journal, tmp_path):
    cautions = " ".join(gathered(journal, tmp_path, record(journal, tmp_path)).details.cautions)
    for words in ("use bits a byte", "same sources", "Only exact copies", "one seed", "Only 44 windows"):
        assert words in cautions
    assert "no test split" not in cautions


def test_a_held_out_file_and_near_duplicates_need_no_caution(journal, tmp_path):
    data = {**PRETRAIN["data"], "test": "other.txt", "deduplicate": "near"}
    content = gathered(journal, tmp_path, record(journal, tmp_path, config={**PRETRAIN, "data": data}))
    cautions = " ".join(content.details.cautions)
    assert "same sources" not in cautions
    assert "copies" not in cautions


def test_the_final_model_s_texts_are_whole_and_unjudged(journal, tmp_path):
    content = gathered(journal, tmp_path, record(journal, tmp_path))
    nothing, moon = content.writing.beginnings
    assert (nothing.given, moon.given, moon.language) == ("", "床前", "zh")
    assert [one.text for one in nothing.specimens] == [POEMS[0], POEMS[1].strip(), "", POEMS[3]]
    assert moon.specimens[1].text == POEMS[1], "a line break after the beginning is part of the text"
    assert [one.language for one in nothing.specimens] == ["zh", "zh", "", ""]
    rounds = content.writing.growth[0].rounds
    assert [(number, undone) for number, undone, _ in rounds] == [(0, False), (1, False), (2, True), (3, False)]
    assert rounds[0][2].text == "嗣扯\\x10�亂旋"


def test_alike_texts_stand_as_one_and_cut_ones_say_so(journal, tmp_path):
    summary = record(journal, tmp_path, texts=lambda number, index: "長" * 3000)
    [one] = gathered(journal, tmp_path, summary).writing.beginnings[0].specimens
    assert (one.count, len(one.text), one.missing) == (4, 2500, 500)
    assert "500 more characters are in the journal" in outline(write_report(tmp_path, summary)).text


def test_many_beginnings_are_counted(journal, tmp_path):
    config = {**PRETRAIN, "prompts": [f"beginning {n}" for n in range(20)]}
    content = gathered(journal, tmp_path, record(journal, tmp_path, config=config))
    assert (len(content.writing.beginnings), content.writing.more) == (16, 4)


def test_the_page(journal, tmp_path):
    path = write_report(tmp_path, record(journal, tmp_path))
    parsed, source = outline(path), path.read_text(encoding="utf-8")
    for heading in ("What happened", "What it writes", "(from nothing)", "Round by round", "n-gram floor", "undone"):
        assert heading in parsed.text
    assert "✗" not in parsed.text
    assert "✓" not in parsed.text
    assert '<span class="given">床前</span>\n行舟見水水，\n平相乘開。' in source
    assert re.search(r'<div class="specimen" lang="zh">十陵', source)
    assert "The moon\nis &lt;b&gt;up&lt;/b&gt;." in source
    assert "nan" not in re.sub(r"[a-z_]*nan[a-z]+|[a-z]+nan", "", parsed.text.lower())


def test_text_from_outside_is_escaped(journal, tmp_path):
    config = {**PRETRAIN, "prompts": [EVIL], "data": {**PRETRAIN["data"], "train": [{"path": EVIL, "weight": 1.0}]}}
    path = write_report(tmp_path, record(journal, tmp_path, config=config, texts=lambda number, index: EVIL))
    parsed = outline(path)
    assert not {"script", "img"} & parsed.seen
    assert EVIL in parsed.text
    assert "49007" not in parsed.text


def test_steps_become_a_hundred_points_at_most(journal, tmp_path):
    run = Recorder(journal, "pretrain", PRETRAIN, prompts=("",), parts=())
    run.start("pretrain", dev=BEFORE)
    metrics = [(step, {"loss": 8.0 / step, "learning_rate": 1e-3 / step, "grad_norm": 1.0}) for step in range(1, 251)]
    journal.commit_progress("pretrain", round=1, step=250, checkpoint=("r0", "hash"), step_metrics=metrics)
    run.round(1, AFTER, drawn=False)
    stages = {"untrained": {"dev": text_figures(BEFORE)}, "pretrained": {"dev": text_figures(AFTER)}}
    summary = summarise("pretrain", stages, "poems.json") | {"corpus": COUNTS}
    loss, rate, norm = gathered(journal, tmp_path, summary).series
    assert (loss.title, rate.title, norm.title) == ("Training loss", "Learning rate", "Gradient norm")
    assert (len(loss.rounds), loss.rounds[0], loss.rounds[-1]) == (84, 3, 250)
    assert loss.lines[0][1][0] == pytest.approx((8 + 4 + 8 / 3) / 3)
    assert "mean of 3 steps" in loss.hint


def test_a_model_that_transformers_does_not_know_says_what_to_import(journal, tmp_path):
    summary = record(journal, tmp_path)
    assert "import loopwise.models.lstm" not in write_report(tmp_path, summary).read_text(encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "loopwise_lstm"}))
    assert "import loopwise.models.lstm" in write_report(tmp_path, summary).read_text(encoding="utf-8")


def test_the_name_of_our_model_type_is_the_model_s():
    # Read, not imported: that would take torch's seconds.
    source = (Path(loopwise.__file__).parent / "models" / "lstm.py").read_text(encoding="utf-8")
    assert f'model_type = "{OWN_MODEL_TYPE}"' in source


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("床前明月光，疑是地上霜。", "zh"),
        ("古池や蛙飛びこむ水の音", "ja"),
        ("동짓달 기나긴 밤을", "ko"),
        ("To be, or not to be", ""),
        ("The word 道 means way", ""),
        ("123 …", ""),
        ("", ""),
    ],
)
def test_language_by_script(text, tag):
    assert language(text) == tag


def test_only_what_is_shown_is_read(journal, tmp_path, monkeypatch):
    summary = record(journal, tmp_path, rounds=[windows(-8 + 0.1 * number) for number in range(20)])
    rounds = []
    pages = Journal.page_samples

    def counting(self, *args, **kwargs):
        rounds.append(kwargs["round"])
        return pages(self, *args, **kwargs)

    monkeypatch.setattr(Journal, "page_samples", counting)
    monkeypatch.setattr(Journal, "all_samples", None)
    gathered(journal, tmp_path, summary)
    assert len(rounds) <= 7


def test_a_tuned_run_shows_perplexity_beside_log_probabilities(journal, tmp_path):
    run = Recorder(journal, "tune", {"update": {"steps": 10}, "gate": {"metric": "likelihood"}, "rewards": []})
    run.start("tune", dev=[-2.0, -3.0] * 20)
    run.round(1, [-0.5, -1.5] * 20, drawn=False)
    stages = {"untrained": {"dev": figures([-2.0, -3.0] * 20)}, "tuned": {"dev": figures([-0.5, -1.5] * 20)}}
    text = outline(write_report(tmp_path, summarise("tune", stages, "rows.jsonl"))).text
    assert "perplexity 12.2" in text
    assert "perplexity 2.72" in text
