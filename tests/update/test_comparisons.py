"""What a step learns from better and worse completions, however its batch is cut into forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loopwise.config.blocks import LoraConfig
from loopwise.config.methods import DPOConfig, IPOConfig, MarginConfig, RRHFConfig, SLiCConfig, SPINConfig
from loopwise.models.logps import TokenRow, TokenScores, token_logps
from loopwise.models.lora import with_lora
from loopwise.models.policy import Policy, Weights
from loopwise.runtime import Runtime
from loopwise.update.comparisons import ComparingConfig, Comparison, compared, cut
from loopwise.update.fitting import Batch
from loopwise.update.losses import rrhf_loss
from loopwise.update.reference import Reference

CONFIGS: dict[str, ComparingConfig] = {
    "margin": MarginConfig(margin=0.7, sft_weight=0.2),
    "rrhf": RRHFConfig(ranking_weight=2.0, sft_weight=0.5),
    "slic": SLiCConfig(delta=3.0),
    "dpo": DPOConfig(sft_weight=0.3),
    "ipo": IPOConfig(),
    "spin": SPINConfig(),
}


def row(prompt: int, completion: int, length: int, *, masked: bool = False) -> TokenRow:
    """A row of made-up ids; the first of a masked one's tokens is not learned."""
    drawn = np.random.default_rng((prompt, completion, length)).integers(2, 40, length)
    mask = (0, *(1,) * (length - 1)) if masked else None
    return TokenRow(tuple(range(3, 5 + prompt)), tuple(drawn.tolist()), mask)


def comparisons(method: str) -> tuple[Comparison, ...]:
    """Of four prompts and several lengths; a row in two of them, and one comparison twice."""
    if method == "rrhf":
        found = [
            Comparison(tuple(row(prompt, n, 2 + (prompt + 3 * n) % 5) for n in range(2 + prompt)), ranks(2 + prompt))
            for prompt in range(4)
        ]
        return (*found, found[1])
    pairs = [
        Comparison((row(prompt, 0, 3 + prompt), row(prompt, 1, 7 - prompt, masked=prompt == 2)), weight=1 + prompt / 2)
        for prompt in range(4)
    ]
    return (*pairs, pairs[0], Comparison((row(1, 0, 4), row(1, 2, 9))))


def ranks(count: int) -> tuple[float, ...]:
    return tuple(map(float, range(count, 0, -1)))


@pytest.fixture
def double(make_policy: Callable[..., Policy]) -> Callable[[int], nn.Module]:
    """Make a tiny GPT-2 that computes in float64."""
    return lambda seed: make_policy(seed=seed).weights.module.double()


def add_up(module: nn.Module, batch: Batch[Any]) -> tuple[float, dict[str, float], list[torch.Tensor]]:
    """Loss, metrics and gradients of a batch, unit after unit."""
    module.requires_grad_(True).zero_grad()
    total, sums = 0.0, dict[str, float]()
    for unit in batch.micro_batches:
        loss, figures = batch.loss(module, unit)
        loss.backward()
        total += float(loss.detach())
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return total, sums, [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read rows in float64 and one by one, so that a batch can differ by its cut alone."""

    def score(module: Any, rows: Sequence[TokenRow]) -> TokenScores:
        width = max(len(row.token_ids) for row in rows)
        logps, masks = [], []
        for row in rows:
            ids = torch.tensor([[*row.prompt_ids, *row.token_ids]])
            first = len(row.prompt_ids)
            mask = torch.tensor(row.loss_mask or [1] * len(row.token_ids), dtype=torch.float64)
            found = module(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
            found = found.gather(1, ids[0, first:, None])[:, 0] * mask
            logps.append(F.pad(found, (0, width - len(found))))
            masks.append(F.pad(mask, (0, width - len(mask))))
        return TokenScores(torch.stack(logps), torch.stack(masks))

    monkeypatch.setattr("loopwise.update.comparisons.score_tokens", score)
    monkeypatch.setattr(Reference, "logps", torch.no_grad()(lambda self, trained, rows: score(self.module, rows).logps))


def parts_and_whole(double: Callable[[int], nn.Module], method: str, tokens: int) -> list[Any]:
    """Loss, metrics and gradients of a batch in forward passes of so many tokens, and in one."""
    module, reference = double(0), Reference(double(1))
    batches = [
        compared(comparisons(method), CONFIGS[method].model_copy(update={"tokens_per_pass": size}), reference)
        for size in (tokens, 100_000)
    ]
    assert len(batches[0].micro_batches) > len(batches[1].micro_batches) == 1
    return [add_up(module, batch) for batch in batches]


@pytest.mark.usefixtures("exactly")
@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("tokens", [1, 30, 60])
def test_units_add_up_to_the_batch(double: Callable[[int], nn.Module], method: str, tokens: int) -> None:
    parts, whole = parts_and_whole(double, method, tokens)
    assert parts[0] == pytest.approx(whole[0], rel=1e-10, abs=1e-10)
    assert parts[1] == pytest.approx(whole[1], rel=1e-10, abs=1e-10)
    for one, other in zip(parts[2], whole[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", CONFIGS)
def test_units_add_up_as_they_are_read(double: Callable[[int], nn.Module], method: str) -> None:
    parts, whole = parts_and_whole(double, method, 30)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert parts[1] == pytest.approx(whole[1], rel=1e-4, abs=1e-5)
    for one, other in zip(parts[2], whole[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def by_hand(module: nn.Module, rows: tuple[TokenRow, ...]) -> tuple[list[float], list[float]]:
    """Sums and means of each row's log-probabilities, read one by one."""
    sums, means = [], []
    with torch.no_grad():
        for one in rows:
            logps, mask = token_logps(module, [one])
            sums.append(float((logps * mask).sum()))
            means.append(sums[-1] / float(mask.sum()))
    return sums, means


def test_each_method_computes_what_its_paper_says(double: Callable[[int], nn.Module]) -> None:
    module, other = double(0), double(1)
    pair = Comparison((row(1, 0, 4), row(1, 1, 6, masked=True)), weight=2.0)
    (s0, s1), (m0, m1) = by_hand(module, pair.rows)
    (r0, r1), (q0, q1) = by_hand(other, pair.rows)
    # One prompt, both completions, 4 tokens imitated.
    nll = -s0 / 4
    expected = {
        "margin": 2 * max(0, 0.7 - (m0 - m1)) + 0.2 * nll,
        "slic": 2 * max(0, 3.0 - (s0 - s1)) + 0.1 * nll,
        "dpo": 2 * np.log1p(np.exp(-0.1 * ((s0 - r0) - (s1 - r1)))) + 0.3 * nll,
        "spin": 2 * np.log1p(np.exp(-0.1 * ((s0 - r0) - (s1 - r1)))),
        "ipo": 2 * ((m0 - q0) - (m1 - q1) - 5) ** 2,
    }
    for method, value in expected.items():
        loss, figures, _ = add_up(module, compared([pair], CONFIGS[method], Reference(other)))
        assert loss == pytest.approx(value, rel=1e-6), method
        assert figures["logps/chosen"] == pytest.approx(s0, rel=1e-6)
        assert figures["logps/rejected"] == pytest.approx(s1, rel=1e-6)
        if isinstance(CONFIGS[method], DPOConfig):
            rewards = 0.1 * (s0 - r0), 0.1 * (s1 - r1)
            assert figures["rewards/chosen"] == pytest.approx(rewards[0], rel=1e-6)
            assert figures["rewards/rejected"] == pytest.approx(rewards[1], rel=1e-6)
            assert figures["rewards/margins"] == pytest.approx(rewards[0] - rewards[1], rel=1e-6)
            assert figures["rewards/accuracies"] == (rewards[0] > rewards[1])
        else:
            assert set(figures) == {"logps/chosen", "logps/rejected"}


def test_rrhf_ranks_all_of_a_problem_and_imitates_its_best(double: Callable[[int], nn.Module]) -> None:
    module = double(0)
    ranked = Comparison(tuple(row(1, n, 3 + n) for n in range(3)), (3.0, 1.0, 1.0))
    sums, means = by_hand(module, ranked.rows)
    # Of equal rewards neither is to be the likelier.
    misranked = max(0, means[1] - means[0]) + max(0, means[2] - means[0])
    loss, figures, _ = add_up(module, compared([ranked], CONFIGS["rrhf"], None))
    assert loss == pytest.approx(2 * misranked + 0.5 * -sums[0] / 3, rel=1e-6)
    assert figures == pytest.approx({"logps/chosen": sums[0], "logps/rejected": sums[2]}, rel=1e-6)
    assert rrhf_loss(torch.tensor(means), torch.tensor(ranked.rewards), torch.zeros(3)) == pytest.approx(misranked)


def test_comparisons_stay_whole_in_every_cut() -> None:
    for tokens in (1, 20, 40, 1000):
        for method in ("dpo", "rrhf"):
            wanted = comparisons(method)
            units = cut(wanted, tokens)
            found = [one for unit in units for one in unit.comparisons]
            assert sorted(map(repr, found)) == sorted(map(repr, wanted))
            for unit in units:
                assert len(set(unit.rows)) == len(unit.rows)
                for one, places in zip(unit.comparisons, unit.places, strict=True):
                    assert tuple(unit.rows[place] for place in places) == one.rows


def test_a_comparison_too_long_for_a_pass_goes_alone() -> None:
    long = Comparison((row(0, 0, 20), row(0, 1, 20)))
    short = [Comparison((row(prompt, 0, 2), row(prompt, 1, 2))) for prompt in (1, 2)]
    units = cut([short[0], long, short[1]], 30)
    assert [unit.comparisons for unit in units if long in unit.comparisons] == [(long,)]


def test_tokens_are_those_that_are_read() -> None:
    pair = Comparison((row(1, 0, 4), row(1, 1, 6)))
    # A prompt of 3, read once; the same pair again is not read again.
    assert compared([pair, pair], CONFIGS["slic"], None).tokens == 3 + 4 + 6


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_weights_below_the_adapters_can_be_the_reference(
    make_policy: Callable[..., Policy], runtime: Runtime, dropout: float
) -> None:
    base = make_policy(resid_pdrop=dropout)
    module = with_lora(base, LoraConfig(rank=2, dropout=dropout), runtime).weights.trainable()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(0.05) if "lora_B" in name else None
    rows = comparisons("dpo")[0].rows
    off = Reference(None).logps(module, rows)
    assert torch.equal(off, Reference(base.weights.module).logps(module, rows))
    assert not torch.equal(off, Reference(Weights.of(module).module).logps(module, rows))


def test_metrics_are_means_over_the_comparisons(double: Callable[[int], nn.Module]) -> None:
    module = double(0)
    pairs = comparisons("slic")
    _, figures, _ = add_up(module, compared(pairs, CONFIGS["slic"].model_copy(update={"tokens_per_pass": 30}), None))
    each: list[Mapping[str, float]] = [add_up(module, compared([one], CONFIGS["slic"], None))[1] for one in pairs]
    for name, value in figures.items():
        assert value == pytest.approx(sum(one[name] for one in each) / len(pairs), rel=1e-6)
