"""What a report says of the way that a run learned: step by step, in words, by its samples, and by its warnings."""

import pytest
from tests.report.finished_runs import IMPROVE, Recorder, figures, scores, summarise

from loopwise.report import write_report
from loopwise.report.content import gather
from loopwise.report.source import Source

POLICY_GRADIENT = {"method": "dr_grpo", "problems_per_step": 16, "advantage": {"baseline": "group"}, "threshold": 1.0}
STAGES = {"base": {"dev": figures(scores(0.1))}, "improved": {"dev": figures(scores(0.5))}}


def recorded(journal, update, steps=(), parts=("exact_match",), **changes):
    """Two rounds of a run with an update of its own."""
    run = Recorder(journal, "improve", {**IMPROVE, "update": update, **changes}, parts=parts)
    run.start(dev=scores(0.1))
    for number in (1, 2):
        run.round(number, scores(0.3), steps=[{**step, "loss": 0.5} for step in steps])
    return run


def content_of(journal, out):
    return gather(Source.read(journal, out, summarise("improve", STAGES)))


def test_only_what_was_logged_is_drawn_step_by_step(journal, tmp_path):
    recorded(journal, POLICY_GRADIENT, [{"reward": 0.1, "kl": 0.0}, {"reward": 0.2, "kl": 0.01}, {"reward": 0.3}])
    charts = content_of(journal, tmp_path).steps
    assert [chart.title for chart in charts] == ["Reward", "KL", "Loss"]
    reward = charts[0]
    assert reward.rounds == (1, 2, 3, 4, 5, 6)
    assert reward.lines == (("reward", (0.1, 0.2, 0.3, 0.1, 0.2, 0.3)),)
    assert reward.marks == (3,), "one line, between the rounds"


def test_pairs_show_margins_and_both_likelihoods(journal, tmp_path):
    step = {"rewards/margins": 0.4, "rewards/accuracies": 0.75, "logps/chosen": -3.0, "logps/rejected": -5.0}
    recorded(journal, {"method": "dpo", "steps": 10}, [step])
    charts = content_of(journal, tmp_path).steps
    assert [chart.title for chart in charts] == ["Margin", "Pairs ranked right", "Chosen and rejected", "Loss"]
    assert [name for name, _ in charts[2].lines] == ["logps/chosen", "logps/rejected"]


def test_a_run_of_many_steps_is_averaged(journal, tmp_path):
    recorded(journal, POLICY_GRADIENT, [{"reward": float(step % 2)} for step in range(250)])
    [reward, _] = content_of(journal, tmp_path).steps
    assert len(reward.rounds) == 100
    assert set(reward.lines[0][1]) <= {0.4, 0.6}
    assert "Each point is the mean of 5 steps." in reward.hint


def test_all_that_is_drawn_is_learned_from(journal, tmp_path):
    recorded(journal, POLICY_GRADIENT)
    content = content_of(journal, tmp_path)
    assert (content.lesson.better, content.lesson.worse) == ("Better", "Worse")
    [first, *_] = content.training
    assert [shown.answer.passed for shown in (*first.better, *first.worse)] == [True, False]
    assert {shown.answer.status for shown in (*first.better, *first.worse)} == {""}
    assert content.story.learned == "4 answers were drawn; 2 passed. The better became likelier, the worse less likely."
    [update] = [step.text for step in content.story.steps if step.name == "Update"]
    assert update.startswith("After every 16 sums it took a step: answers that scored better than the others to the ")
    assert "Dr. GRPO" in update
    page = write_report(tmp_path, summarise("improve", STAGES)).read_text(encoding="utf-8")
    assert "Kept" not in page
    assert "it learned from the verdicts" in page


def test_problems_that_tie_are_no_lesson(journal, tmp_path):
    run = Recorder(journal, "improve", {**IMPROVE, "update": POLICY_GRADIENT})
    run.draw = lambda number, phase: Recorder.draw(run, number, phase, count=1)
    run.start(dev=scores(0.1))
    run.round(1, scores(0.3))
    content = content_of(journal, tmp_path)
    assert content.training == ()
    assert content.story.learned.startswith("1 answer was drawn; 1 passed. Nothing was learned here")


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"method": "ppo", "problems_per_step": 8, "advantage": {"baseline": "none"}}, "scored better than expected"),
        ({"method": "reinforce", "advantage": {"baseline": "running"}}, "better than the answers before them"),
        (
            {"method": "dpo", "steps": 7},
            "It trained 7 steps to prefer the better of two of its answers to a problem (DPO)",
        ),
        ({"method": "rrhf", "steps": 7}, "7 steps to rank its answers as the reward does"),
        ({"method": "spin", "steps": 7}, "7 steps to prefer the labelled answers to its own"),
        ({"method": "distill"}, "what a teacher would have said"),
        ({"method": "rft", "keep": "verified", "steps": 7}, "It trained 7 steps on the answers that passed"),
    ],
)
def test_what_a_round_did_in_words(update, said, journal, tmp_path):
    recorded(journal, update)
    content = content_of(journal, tmp_path)
    assert said in next(step.text for step in content.story.steps if step.name == "Update")


@pytest.mark.parametrize("method", ["spin", "distill"])
def test_methods_that_need_no_reward_show_their_samples_in_one_column(method, journal, tmp_path):
    recorded(journal, {"method": method})
    content = content_of(journal, tmp_path)
    assert content.lesson.worse == ""
    assert all(entry.better and not entry.worse for entry in content.training)
    page = write_report(tmp_path, summarise("improve", STAGES)).read_text(encoding="utf-8")
    assert "Its own answers" in page


def test_tuning_on_pairs_says_so(journal, tmp_path):
    run = Recorder(journal, "tune", {"update": {"method": "dpo", "steps": 10}, "gate": {"metric": "likelihood"}})
    run.start("tune", dev=[-2.0] * 30)
    run.round(1, [-1.0] * 30, drawn=False)
    stages = {"base": {"dev": figures([-2.0] * 30)}, "tuned": {"dev": figures([-1.0] * 30)}}
    content = gather(Source.read(journal, tmp_path, summarise("tune", stages)))
    assert "with a better and a worse answer to each" in content.story.opening
    assert "pairs of a better and a worse answer (DPO)" in content.story.steps[0].text


def test_warnings_of_one_kind_are_told_once(journal, tmp_path):
    recorded(journal, POLICY_GRADIENT)
    for number, tied in ((1, "6 of 8"), (2, "7 of 8")):
        journal.add_event("improve", number, "warning", f"round {number}: {tied} groups tie: pick harder problems.")
    journal.add_event("improve", 2, "warning", "checkpoint r1 is damaged")
    journal.add_event("improve", 2, "info", "rows: 3 left out")
    found = content_of(journal, tmp_path).warnings
    assert [(notice.rounds, notice.message) for notice in found] == [
        ("2 rounds, from round 1 to 2; the last one", "7 of 8 groups tie: pick harder problems."),
        ("", "checkpoint r1 is damaged"),
    ]
    page = write_report(tmp_path, summarise("improve", STAGES)).read_text(encoding="utf-8")
    assert page.count("groups tie: pick harder problems.") == 3, "once at the top, and each in the log at the end"
