"""What is gathered from a journal, and what is left unread."""

import json

import numpy as np
import pytest
from tests.report.finished_runs import IMPROVE, Recorder, figures, scores, summarise

from loopwise.report.content import gather
from loopwise.report.samples import LONGEST, spread, text
from loopwise.report.source import Source
from loopwise.report.wording import reading
from loopwise.runs.journal import Journal


def gathered(journal, out, summary):
    return gather(Source.read(journal, out, summary))


def test_an_improved_run(journal, improved):
    content = gathered(journal, improved.out, improved.summary)
    assert content.outcome.verdict.kind == "gain"
    assert [stage.value for stage in content.outcome.stages] == ["10.0%", "20.0%", "90.0%"]
    assert [(point.round, point.mark) for point in content.curves[0].points] == [
        (0, "base"),
        (1, "best"),
        (2, "rolled back"),
        (3, "best"),
    ]
    assert [curve.key for curve in content.curves] == ["improved", "control"]
    assert content.gate.dev_uses == 4
    assert [row.mark for row in content.gate.rows] == ["best", "rolled back", "best"]
    assert next(name for name, _ in content.details.budget) == "Tokens generated"
    assert content.story.reading == (
        "957+864= asks for 759 + 468. Numbers are written backwards, units first, "
        "so the right answer, 1227, is written 7221."
    )


def test_the_example_and_the_training_samples(journal, improved):
    content = gathered(journal, improved.out, improved.summary)
    assert (content.story.example.count, content.story.example.passed, content.story.example.kept) == (4, 2, 2)
    assert [entry.round for entry in content.training] == [1, 2, 3]
    assert {shown.answer.status for shown in content.training[0].better} == {"kept"}
    assert {shown.answer.status for shown in content.training[0].worse} == {"rejected"}


def test_alike_answers_stand_as_one(journal, tmp_path):
    run = Recorder(journal, "improve", IMPROVE, texts=lambda number, index: "same")
    run.start(dev=scores(0.1))
    run.round(1, scores(0.2))
    stages = {"base": {"dev": figures(scores(0.1))}, "improved": {"dev": figures(scores(0.2))}}
    watched = gathered(journal, tmp_path, summarise("improve", stages)).watched
    assert [(answer.count, answer.passed) for answer in watched[0].rounds[0][1]] == [(2, True), (2, False)]


def test_a_policy_measured_in_an_earlier_round_keeps_its_scores(journal, tmp_path):
    """A round that trained nothing has no evaluation of its own; the verdict finds the earlier one."""
    run = Recorder(journal, "improve", IMPROVE)
    run.start(dev=scores(0.1), test=scores(0.1))
    run.round(1, scores(0.1))
    stages = {"base": {"test": figures(scores(0.1))}, "improved": {"test": figures(scores(0.1))}}
    content = gathered(journal, tmp_path, summarise("improve", stages))
    assert content.outcome.verdict.kind == "none"
    assert "+0 points" in content.outcome.verdict.details[0] or "0%" in content.outcome.verdict.headline


def test_a_tune_run_with_log_likelihoods(journal, tmp_path):
    config = {"update": {"steps": 10}, "gate": {"metric": "likelihood"}, "rewards": []}
    run = Recorder(journal, "tune", config)
    before, after = np.linspace(-3, -2, 40).tolist(), np.linspace(-1.5, -0.5, 40).tolist()
    run.start("tune", dev=before)
    run.round(1, after, drawn=False)
    stages = {"untrained": {"dev": figures(before)}, "tuned": {"dev": figures(after)}}
    content = gathered(journal, tmp_path, summarise("tune", stages, task="rows.jsonl"))
    assert content.outcome.verdict.kind == "gain"
    assert [stage.is_bar for stage in content.outcome.stages] == [False, False]
    assert all(0 <= stage.left <= 100 for stage in content.outcome.stages)
    assert (content.watched, content.training, content.story.example) == ((), (), None)
    assert [step.name for step in content.story.steps] == ["Train", "Accept or roll back"]


def test_gold_overrules_the_reward_and_is_shown(journal, tmp_path):
    config = {
        **IMPROVE,
        "rewards": [{"use": "mine.py:vote"}],
        "report_rewards": [{"use": "number"}],
        "label_free": True,
    }
    run = Recorder(journal, "improve", config, parts=("vote",))
    run.start(dev=scores(0.1))
    run.gold(0, "dev", scores(0.4))
    run.round(1, scores(0.9))
    run.gold(1, "dev", scores(0.1))
    stages = {"base": {"dev": figures(scores(0.1))}, "improved": {"dev": figures(scores(0.9))}}
    content = gathered(journal, tmp_path, summarise("improve", stages))
    assert content.outcome.verdict.kind == "loss"
    assert "passing" in content.outcome.verdict.headline
    assert (content.series[0].title, content.series[0].ends) == ("By the truth", "40.0% → 10.0%")
    cautions = " ".join(content.details.cautions)
    assert "promised that no training signal" in cautions
    assert "The reward vote is an opinion" in cautions


def test_cautions_name_a_perfect_checker_and_a_missing_control(journal, tmp_path, improved):
    with_control = " ".join(gathered(journal, improved.out, improved.summary).details.cautions)
    assert "exact_match compares each answer with the true one" in with_control
    assert "No control was run" not in with_control
    del improved.summary["stages"]["control"]
    assert "No control was run" in " ".join(gathered(journal, tmp_path, improved.summary).details.cautions)


def test_a_prompt_state_and_events_are_told(journal, improved):
    (improved.out / "model").mkdir()
    state = json.dumps({"system": "Réponds 中文"}, ensure_ascii=False)
    (improved.out / "model" / "prompt_state.json").write_text(state, encoding="utf-8")
    journal.add_event("improve", 1, "warning", "checkpoint r1 is damaged")
    details = gathered(journal, improved.out, improved.summary).details
    assert details.prompt_state == state
    assert details.events == (("warning", "checkpoint r1 is damaged"),)


def test_an_unknown_run_is_an_error(journal, tmp_path):
    with pytest.raises(ValueError, match='no run "improve"'):
        gathered(journal, tmp_path, summarise("improve", {}))


def test_only_what_is_shown_is_read(journal, tmp_path, monkeypatch):
    run = Recorder(journal, "improve", IMPROVE)
    run.start(dev=scores(0.1))
    for number in range(1, 31):
        run.round(number, scores(0.1))
    rows = []
    pages = Journal.page_samples

    def counting(*args, **kwargs):
        page = pages(*args, **kwargs)
        rows.extend(page)
        return page

    monkeypatch.setattr(Journal, "page_samples", counting)
    monkeypatch.setattr(Journal, "all_samples", None)
    stages = {"base": {"dev": figures(scores(0.1))}, "improved": {"dev": figures(scores(0.1))}}
    content = gathered(journal, tmp_path, summarise("improve", stages))
    rounds = [number for number, _ in content.watched[0].rounds]
    assert (len(rounds), rounds[0], rounds[-1]) == (13, 0, 30)
    assert [entry.round for entry in content.training] == spread(range(1, 31), 4)
    assert len(rows) < 31 * 4


def test_prompts_in_shorthand_are_explained():
    assert "12 + 50" in reading("addition", "21+05=")
    assert "written 260." in reading("addition", "21+05=")
    assert reading("sorting", "loop=").endswith("in alphabetical order: loop.")
    assert reading("sorting", "what is 1+1=") is None
    assert reading("rows.jsonl", "21+05=") is None


def test_spread_keeps_the_ends():
    assert spread([0, 1, 2], 5) == [0, 1, 2]
    assert spread(range(501), 5) == [0, 125, 250, 375, 500]


def test_text_is_made_visible_and_cut():
    assert text("a\0b\ud800\x1b[31m\n中文").whole == "a\\x00b\\ud800\\x1b[31m\n中文"
    assert text("x" * (LONGEST + 7)).missing == 7
    assert text("x" * 91).long
    assert not text("x" * 90).long
    assert text("word " * 40).short.endswith("…")
    assert text("word " * 40, limit=200).short.endswith("word")
