"""Writes tests/golden/losses.json: what TRL's own code computes on fixed tensors, for tests/update/ to compare with.

Run from the repository with the ``bench`` extra: ``python scripts/golden_losses.py [FILE]``. The functions called are
TRL's trainers' own; what they need of a trainer beyond the tensors is a stand-in with the fields they read.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import trl
from accelerate import Accelerator
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer

from loopwise.models.presets import character_tokenizer

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden" / "losses.json"
# A row without trained tokens, as masking truncated completions leaves them.
LENGTHS = [5, 2, 4, 0, 1, 3]
TOKENS = 5
GROUP = 4
LOW, HIGH = 0.2, 0.28
CONSTANT = 8
# Groups in turn: ordinary, tied, with one sample that could not be judged, with three.
REWARDS = [1.0, 0.0, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, None, 1.0, 0.0, 1.0, None, None, 0.7, None]


def main() -> None:
    """Write every case to the file named on the command line, or to the one the tests read."""
    draw = torch.Generator().manual_seed(0)
    golden = {
        "trl": trl.__version__,
        "policy": policy_cases(draw),
        "pairs": pair_cases(draw),
        "jsd": jsd_cases(draw),
        "advantages": advantage_cases(draw),
    }
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def numbers(draw: torch.Generator, *shape: int, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers in float64, rounded so that the file holds them exactly."""
    return (torch.randn(*shape, generator=draw, dtype=torch.float64) * scale).round(decimals=4)


def policy_cases(draw: torch.Generator) -> dict[str, Any]:
    """GRPO, Dr. GRPO and DAPO by token, RLOO by sequence: losses, gradients, KL and clip shares."""
    mask = (torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]).double()
    logps = numbers(draw, len(LENGTHS), TOKENS).abs().neg() * mask
    old_logps = logps + numbers(draw, len(LENGTHS), TOKENS, scale=0.3) * mask
    reference_logps = logps + numbers(draw, len(LENGTHS), TOKENS, scale=0.5) * mask
    advantages = numbers(draw, len(LENGTHS))
    inputs = {"mask": mask, "logps": logps, "old_logps": old_logps, "reference_logps": reference_logps}
    shared = inputs | {"advantages": advantages}
    outputs = {"rloo": rloo_loss(shared)}
    for method in ("grpo", "dr_grpo", "dapo"):
        outputs[f"{method} on policy"] = grpo_loss(method, shared, on_policy=True, beta=0.0)
        outputs[f"{method} off policy"] = grpo_loss(method, shared, on_policy=False, beta=0.0)
        outputs[f"{method} with KL"] = grpo_loss(method, shared, on_policy=False, beta=0.04)
    settings = {"lengths": LENGTHS, "low": LOW, "high": HIGH, "constant": CONSTANT, "beta": 0.04}
    return settings | lists(shared) | {"outputs": outputs}


def grpo_loss(method: str, tensors: Mapping[str, torch.Tensor], *, on_policy: bool, beta: float) -> dict[str, Any]:
    """``GRPOTrainer._compute_loss`` on given log-probabilities."""
    logps = tensors["logps"].clone().requires_grad_()
    inputs = batch(tensors) | {"num_items_in_batch": tensors["mask"].sum()}
    inputs["ref_per_token_logps"] = tensors["reference_logps"]
    if not on_policy:
        inputs["old_per_token_logps"] = tensors["old_logps"]
    args = SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1)
    trainer = stand_in(
        logps,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=beta,
        args=args,
        loss_type=method,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=CONSTANT,
        _entropy_bonus_enabled=False,
    )
    return computed(trl.GRPOTrainer._compute_loss(trainer, trainer.model, inputs), logps, trainer)


def rloo_loss(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """``RLOOTrainer._compute_loss`` on given log-probabilities."""
    logps = tensors["logps"].clone().requires_grad_()
    inputs = batch(tensors) | {"old_logps": (tensors["old_logps"] * tensors["mask"]).sum(1)}
    trainer = stand_in(logps)
    return computed(trl.RLOOTrainer._compute_loss(trainer, trainer.model, inputs), logps, trainer)


def stand_in(logps: torch.Tensor, **fields: Any) -> SimpleNamespace:
    """What the policy trainers read of themselves, with a model that has these log-probabilities."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        epsilon_low=LOW,
        epsilon_high=HIGH,
        _metrics={"train": defaultdict(list)},
        **fields,
    )


def batch(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    ids = torch.zeros(len(LENGTHS), TOKENS, dtype=torch.long)
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": tensors["mask"],
        "advantages": tensors["advantages"],
    }


def computed(loss: torch.Tensor, logps: torch.Tensor, trainer: SimpleNamespace) -> dict[str, Any]:
    loss.backward()
    figures = trainer._metrics["train"]
    shares = {name: figures[name][0] for name in ("clip_ratio/low_mean", "clip_ratio/high_mean")}
    kl = {"kl": figures["kl"][0]} if "kl" in figures else {}
    return {"loss": loss.item(), "gradient": logps.grad.tolist(), **shares, **kl}


def pair_cases(draw: torch.Generator) -> dict[str, Any]:
    """DPO, IPO and two hinges of ``DPOTrainer`` and ``CPOTrainer``, the loss of each pair by itself."""
    lengths = torch.tensor([[3, 5], [4, 1], [2, 2], [5, 3]])
    mask = (torch.arange(TOKENS) < lengths[..., None]).double()
    logps, reference_logps = (numbers(draw, *lengths.shape, TOKENS).abs().neg() * mask for _ in range(2))
    outputs = {
        name: [pair_loss(loss_type, *row, beta) for row in zip(logps, reference_logps, mask, strict=True)]
        for name, loss_type, beta in (("dpo", "sigmoid", 0.1), ("ipo", "ipo", 0.1), ("hinge", "hinge", 0.5))
    }
    chosen, rejected = logps.sum(-1).unbind(1)
    outputs["slic"] = slic_losses(chosen, rejected)
    inputs = {"mask": mask, "logps": logps, "reference_logps": reference_logps}
    settings = {"dpo_beta": 0.1, "ipo_beta": 0.1, "hinge_beta": 0.5}
    return settings | lists(inputs) | {"outputs": outputs}


def pair_loss(
    loss_type: str, logps: torch.Tensor, reference_logps: torch.Tensor, mask: torch.Tensor, beta: float
) -> float:
    """``DPOTrainer._compute_loss`` on one pair: chosen and rejected ``[2, T]``."""
    # Position 0 is the prompt, from which nothing is predicted.
    whole = torch.cat([torch.zeros(2, 1), mask], dim=1)
    ids = torch.zeros(whole.shape, dtype=torch.long)
    nothing = torch.zeros_like(logps)
    outputs = SimpleNamespace(log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    model = stub_model(outputs)
    trainer = SimpleNamespace(
        model=model,
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    chosen, rejected = reference_logps.sum(1, keepdim=True)
    inputs = {
        "input_ids": ids,
        "attention_mask": ids + 1,
        "completion_mask": whole,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return float(trl.DPOTrainer._compute_loss(trainer, model, inputs, False))


def stub_model(outputs: Any) -> Any:
    def model(**_: Any) -> Any:
        return outputs

    model.training = True
    return model


def slic_losses(chosen: torch.Tensor, rejected: torch.Tensor) -> list[float]:
    """``CPOTrainer.cpo_loss`` with the hinge, which is SLiC-HF's with a delta of 1."""
    trainer = SimpleNamespace(
        loss_type="hinge", alpha=0.0, beta=1.0, label_smoothing=0.0, accelerator=Accelerator(cpu=True)
    )
    losses, _, _ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    return losses.tolist()


def jsd_cases(draw: torch.Generator) -> dict[str, Any]:
    """``GKDTrainer.generalized_jsd_loss``, position by position."""
    student, teacher = (numbers(draw, 4, 7, scale=2.0) for _ in range(2))
    rows = list(zip(student.unbind(), teacher.unbind(), strict=True))
    outputs = [
        {
            "beta": beta,
            "temperature": temperature,
            "losses": [
                GKDTrainer.generalized_jsd_loss(one[None], other[None], beta=beta, temperature=temperature).item()
                for one, other in rows
            ],
        }
        for beta in (0.0, 0.1, 0.5, 1.0)
        for temperature in (1.0, 0.7)
    ]
    return lists({"student_logits": student, "teacher_logits": teacher}) | {"outputs": outputs}


def advantage_cases(draw: torch.Generator) -> dict[str, Any]:
    """``_generate_and_score_completions`` of tiny trainers whose reward function returns fixed rewards."""
    grpo = tiny_trainer(trl.GRPOTrainer, trl.GRPOConfig)
    outputs = {}
    for scale in ("none", "group", "batch"):
        grpo.scale_rewards = scale
        outputs[f"group, {scale}"] = scored(grpo)
    rloo = tiny_trainer(trl.RLOOTrainer, trl.RLOOConfig)
    outputs["leave_one_out"] = scored(rloo)

    # The penalty is taken off the rewards: the only place where TRL uses k1.
    logps, reference_logps = (numbers(draw, len(REWARDS), TOKENS).abs().neg() for _ in range(2))
    passes = iter([logps, reference_logps])
    rloo.beta, rloo.ref_model = 0.05, object()
    rloo._get_per_token_logps_and_entropies = lambda *_, **__: (next(passes), None, None)
    outputs["leave_one_out with KL"] = scored(rloo)
    inputs = lists({"logps": logps, "reference_logps": reference_logps})
    return {"rewards": REWARDS, "group_size": GROUP, "beta": 0.05, **inputs, "outputs": outputs}


def tiny_trainer(trainer: Any, config: Any) -> Any:
    """A trainer of a random GPT-2 that always writes ``TOKENS`` tokens."""
    tokenizer = character_tokenizer("abc")
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=16, **ends)
    args = config(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=len(REWARDS),
        num_generations=GROUP,
        max_completion_length=TOKENS,
        generation_kwargs={"min_new_tokens": TOKENS},
        beta=0.0,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    rows = Dataset.from_list([{"prompt": "a"}] * len(REWARDS))
    return trainer(
        model=GPT2LMHeadModel(shape),
        reward_funcs=lambda completions, **_: REWARDS,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
    )


def scored(trainer: Any) -> dict[str, Any]:
    output = trainer._generate_and_score_completions([{"prompt": "a"}] * len(REWARDS))
    figures = trainer._metrics["train"]
    kl = {"kl": figures["kl"][-1]} if figures.get("kl") else {}
    return {"advantages": output["advantages"].tolist(), "tied_share": figures["frac_reward_zero_std"][-1], **kl}


def lists(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    assert all(math.isfinite(value) for tensor in tensors.values() for value in tensor.flatten().tolist())
    return {name: tensor.tolist() for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
