"""The verdict says what the figures show: a gain, no difference, a loss, and whose doing it was."""

import numpy as np
import pytest

from loopwise.report.measures import Measure, Standing, compare
from loopwise.report.verdict import Evidence, judge

SUMS = Measure("share", "right", "sums")


def standing(share=0.0, count=1000, values=None):
    scores = np.array(values if values is not None else [float(n < round(share * count)) for n in range(count)])
    return Standing(float(np.nanmean(scores)), np.nan, np.nan, int(np.isfinite(scores).sum()), scores)


def verdict(before, after, **fields):
    return judge(Evidence(**({"measure": SUMS, "split": "test", "before": before, "after": after} | fields)))


def test_taught_itself():
    control = ("the same extra training on the labelled sums alone", standing(0.247))
    found = verdict(standing(0.128), standing(0.986), controls=[control])
    assert found.kind == "gain"
    assert found.headline == (
        "The model taught itself: from 12.8% to 98.6% right on 1,000 sums it had never seen; "
        "the same extra training on the labelled sums alone reached 24.7%."
    )
    assert found.details[0].startswith("Change: +85.8 points (95% interval +83.4 to +87.8 points)")
    assert "Compared with the same extra training on the labelled sums alone: +73.9 points" in found.details[1]


def test_no_credit_where_the_control_did_as_well():
    control = ("training on labels", standing(0.985))
    found = verdict(standing(0.128), standing(0.986), controls=[control])
    assert found.kind == "gain"
    assert "but not by teaching itself: training on labels did no worse (98.5%)" in found.headline


def test_no_credit_where_the_control_did_better():
    found = verdict(standing(0.1), standing(0.5), controls=[("training on labels", standing(0.8))])
    assert "training on labels did better (80.0%)" in found.headline


def test_gain_without_a_control_claims_less():
    headline = verdict(standing(0.1), standing(0.5)).headline
    assert headline == "The model got better: from 10.0% to 50.0% right on 1,000 sums it had never seen."


def test_no_difference_names_the_interval():
    found = verdict(standing(0.128), standing(0.131))
    assert found.kind == "none"
    assert found.headline.startswith("No difference seen: 12.8% right before, 13.1% after")
    assert "The interval includes zero" in found.details[0]


def test_loss():
    found = verdict(standing(0.5), standing(0.3))
    assert found.kind == "loss"
    assert found.headline == "The model got worse: from 50.0% to 30.0% right on 1,000 sums it had never seen."


def test_unchanged_says_so_instead_of_comparing_a_model_with_itself():
    found = verdict(standing(0.128), standing(0.128), unchanged=True)
    assert found.kind == "none"
    assert "no round beat the model it started from" in found.headline
    assert found.details == ()


@pytest.mark.parametrize("missing", [None, Standing(float("nan"), float("nan"), float("nan"), 0)])
def test_nothing_measured(missing):
    found = verdict(standing(0.5), missing)
    assert found.kind == "unmeasured"
    assert found.headline.startswith("No verdict")


def test_a_control_that_nobody_judged_takes_no_part():
    unjudged = Standing(np.nan, np.nan, np.nan, 0, np.full(1000, np.nan))
    found = verdict(standing(0.1), standing(0.9), controls=[("training on labels", unjudged)])
    assert found.headline.startswith("The model got better: from 10.0% to 90.0% right")
    assert len(found.details) == 1


def test_gold_answers_that_judged_nothing_deny_nothing():
    unjudged = Standing(np.nan, np.nan, np.nan, 0, np.full(1000, np.nan))
    found = verdict(standing(0.1), standing(0.9), gold=(unjudged, unjudged))
    assert found.kind == "gain"
    assert found.headline.startswith("The model got better")


def test_both_figures_are_of_the_problems_that_both_were_judged_on():
    """Judged on the easy fifth alone, a result that changed nothing would look like a gain to 100%."""
    after = standing(values=[1.0] * 20 + [np.nan] * 80)
    headline = verdict(standing(0.2, count=100), after).headline
    assert headline == "No difference seen: 100% right before, 100% after, on 20 sums it had never seen."
    apart = standing(values=[np.nan] * 20 + [1.0] * 80)
    assert verdict(after, apart).kind == "unmeasured"


def test_few_problems_that_changed_are_no_gain():
    """Four problems won and none lost is chance at this confidence, though Student's t would call it a gain."""
    assert compare(standing(0.004), standing(0.0)).shows == "none"
    assert compare(standing(0.02), standing(0.0)).shows == "gain"


def test_one_problem_has_no_interval():
    found = verdict(standing(values=[0.25]), standing(values=[0.75]))
    assert found.kind == "none"
    assert "too few problems for an interval" in found.details[0]


def test_scores_of_other_problems_are_not_compared():
    assert compare(standing(0.5, count=10), standing(0.5, count=9)) is None


class TestGold:
    def test_denied(self):
        found = verdict(standing(0.3), standing(0.9), gold=(standing(0.3), standing(0.3)))
        assert found.kind == "none"
        assert found.headline.startswith("The model learned to please its reward (from 30.0% to 90.0% right")
        assert "By the true answers" in found.details[-1]

    def test_contradicted(self):
        assert verdict(standing(0.3), standing(0.9), gold=(standing(0.3), standing(0.1))).kind == "loss"

    def test_confirmed(self):
        found = verdict(standing(0.3), standing(0.9), gold=(standing(0.3), standing(0.8)))
        assert found.kind == "gain"
        assert "from 30.0% to 80.0% right, +50.0 points" in found.details[-1]


def test_mean_reward():
    generator = np.random.default_rng(0)
    before, after = generator.normal(0.4, 0.1, 200), generator.normal(0.6, 0.1, 200)
    measure = Measure("reward", "passing", "problems")
    found = verdict(standing(values=before), standing(values=after), measure=measure)
    assert found.headline.startswith("The model got better: from a mean reward of 0.4")
    assert "points" not in found.headline + found.details[0]


def test_log_likelihood_of_a_tuned_model():
    before, after = np.linspace(-3, -2, 50), np.linspace(-1.5, -0.5, 50)
    measure = Measure("likelihood", "passing", "problems")
    found = verdict(standing(values=before), standing(values=after), measure=measure, supervised=True, split="dev")
    assert found.headline == (
        "Training on labelled problems took the model from a mean log-probability of −2.50 a token to −1 "
        "on 50 problems it had never seen."
    )
    assert "expect a little less on fresh ones" in found.details[-1]
