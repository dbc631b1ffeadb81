"""Lines and tables of the terminal."""

import io

from rich.console import Console

from loopwise.console import ConsoleObserver, stage_table

ROUND = {"round": 1, "samples": 0, "kept": 0, "reward": None, "pass_at_k": None, "accepted": True, "seconds": 17.1}


def shown(draw, width=80):
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    draw(console)
    return stream.getvalue().splitlines()


def lines_of(run_id, **figures):
    def draw(console):
        observer = ConsoleObserver(console)
        observer.run_started(run_id, 2, 0)
        observer.round_finished(run_id, {**ROUND, **figures})

    return shown(draw)[2:]


def text_stage(nats, perplexity, bits):
    return {"accuracy": -nats, "ci95": [-nats, -nats], "n": 44, "nats_per_token": nats, "tokens": 2816} | {
        "perplexity": perplexity,
        "bits_per_byte": bits,
        "bytes": 7543,
    }


def test_a_round_of_pretraining_is_told_in_nats_and_perplexity():
    assert lines_of("pretrain", dev_before=-7.915, dev_accuracy=-2.0) == [
        "  round  nats a token before → after  perplexity               seconds",
        "      1                7.915 → 2.000         7.39  accepted      17.1",
    ]


def test_a_round_of_pretraining_without_dev_text():
    assert lines_of("pretrain", dev_before=None, dev_accuracy=None)[1] == (
        "      1                    – → –                –  accepted      17.1"
    )


def test_a_hopeless_perplexity_keeps_its_column():
    assert "  1.0e+304  accepted" in lines_of("pretrain", dev_before=-7.0, dev_accuracy=-1e6)[1]


def test_a_round_of_the_loop_is_told_in_rewards():
    figures = {"samples": 400, "kept": 120, "reward": 0.3, "pass_at_k": 0.62, "dev_before": 0.128}
    assert lines_of("improve", **figures, dev_accuracy=0.515) == [
        "  round   kept  reward  pass@k  dev before → after        seconds",
        "      1    120   30.0%   62.0%   12.8% → 51.5%  accepted      17.1",
    ]


def test_a_round_that_draws_nothing_is_told_by_what_was_held_out():
    assert lines_of("judge", dev_before=0.009, dev_accuracy=0.829) == [
        "  round  dev before → after        seconds",
        "      1    0.9% → 82.9%  accepted      17.1",
    ]


COMPARED = {"samples": 400, "kept": 400, "reward": 0.3, "pass_at_k": 0.62, "dev_before": 0.128, "dev_accuracy": 0.515}


def test_a_round_by_policy_gradient_is_told_with_ties_and_kl():
    figures = {**COMPARED, "frac_reward_zero_std": 0.875}
    assert lines_of("improve", **figures, **{"update/kl": 0.0123}) == [
        "  round  reward  pass@k    tied     kl  dev before → after        seconds",
        "      1   30.0%   62.0%   87.5%  0.012   12.8% → 51.5%  accepted      17.1",
    ]
    assert "87.5%      –   12.8%" in lines_of("improve", **figures)[1]


def test_a_round_on_pairs_is_told_with_their_number():
    assert lines_of("improve", **COMPARED, frac_reward_zero_std=0.5, **{"update/pairs": 1250.0}) == [
        "  round  reward  pass@k    tied  pairs  dev before → after        seconds",
        "      1   30.0%   62.0%   50.0%  1,250   12.8% → 51.5%  accepted      17.1",
    ]


def test_a_round_that_keeps_samples_is_told_with_them():
    figures = {**COMPARED, "kept": 120, "frac_reward_zero_std": 0.5, "update/pool": 300.0}
    assert lines_of("improve", **figures)[0].startswith("  round   kept  reward")


def test_the_columns_are_named_once():
    def draw(console):
        observer = ConsoleObserver(console)
        observer.run_started("improve", 2, 0)
        for number in (1, 2):
            observer.round_finished("improve", {**ROUND, **COMPARED, "round": number, "frac_reward_zero_std": 0.5})

    assert [line.startswith("  round") for line in shown(draw)[2:]] == [True, False, False]


def test_the_closing_table_of_pretraining():
    stages = {
        "untrained": {"dev": text_stage(7.9, 2736.9, 4.295), "test": text_stage(7.9, 2715.7, 4.259)},
        "pretrained": {"dev": text_stage(4.1, 60.34, 2.2), "test": text_stage(4.2, 66.7, 2.3)},
        "ngram": {"dev": text_stage(5.5, 254.9, 3.007), "test": text_stage(5.6, 274.0, 3.023)},
    }
    lines = shown(lambda console: console.print(stage_table({"run_id": "pretrain", "stages": stages})))
    assert [" ".join(line.split()) for line in lines] == [
        "dev 2,816 tokens test 2,816 tokens",
        "held-out text perplexity bits a byte perplexity bits a byte",
        "untrained 2,737 4.295 2,716 4.259",
        "n-gram floor 255 3.007 274 3.023",
        "pretrained 60.34 2.200 66.70 2.300",
    ]


def test_the_closing_table_of_pretraining_with_nothing_held_out():
    lines = shown(lambda console: console.print(stage_table({"run_id": "pretrain", "stages": {"pretrained": {}}})))
    assert [line.strip() for line in lines if line.strip()] == ["held-out text", "pretrained"]


def test_the_closing_table_of_the_loop():
    stages = {"improved": {"test": {"accuracy": 0.986, "ci95": [0.977, 0.992], "n": 1000}}}
    lines = shown(lambda console: console.print(stage_table({"run_id": "improve", "stages": stages})))
    assert [" ".join(line.split()) for line in lines] == [
        "held-out problems right test (n = 1,000)",
        "improved 98.6% [97.7%, 99.2%]",
    ]
