"""What the tests have ranks do. Each scenario is a program that runs the same on one process and on several."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.resume.harness import STAGES, content
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from loopwise import ranks as module_of_ranks
from loopwise import results
from loopwise.cli import app
from loopwise.config.blocks import OptimizerConfig, RuntimeConfig
from loopwise.config.reading import parse_recipe
from loopwise.config.recipes import COMMANDS, Recipe
from loopwise.models import logps
from loopwise.models.logps import TokenRow, score_tokens
from loopwise.ranks import joined_ranks
from loopwise.runtime import make_runtime
from loopwise.update.fitting import supervised
from loopwise.update.learner import Learner

MICRO_BATCHES, STEPS, ROWS, LENGTH, VOCABULARY = 5, 4, 2, 7, 11


class WithHead(nn.Module):
    """A language model with a value head, and a parameter that no loss reaches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(12, 1, dtype=next(model.parameters()).dtype)
        self.idle = nn.Parameter(torch.ones(3, dtype=self.head.weight.dtype))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()


def make(shape: str, dtype: torch.dtype, dropout: float = 0.0) -> nn.Module:
    """A tiny decoder, the same on every rank; 13 and 12 do not divide by the ranks, and GPT-2 ties its embeddings."""
    sizes = {
        "gpt2": {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16, "n_inner": 13}
        | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        "llama": {"hidden_size": 12, "intermediate_size": 13, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"num_key_value_heads": 2, "max_position_embeddings": 16},
    }
    # A model that caps its logits.
    sizes["gemma2"] = {**sizes["llama"], "head_dim": 6, "final_logit_softcapping": 5.0}
    config = AutoConfig.for_model(shape, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=1, **sizes[shape])
    torch.manual_seed(0)
    return WithHead(AutoModelForCausalLM.from_config(config, dtype=dtype)).train()


def loss(module: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, torch.Tensor | float]]:
    """Next tokens and a head's values. It takes the module's parts as it likes, as losses on packed rows do."""
    hidden = module.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = hidden @ module.model.get_output_embeddings().weight.T
    nats = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    value = (module.head(hidden) ** 2).sum()
    return nats / 100 + value / 10, {"nats": nats.detach(), "units": 1.0}


def learner(
    out: str, shape: str, dtype: str, name: str = "muon", shard: bool = False, dropout: float = 0.0, middle: str = ""
) -> None:
    """Steps on several micro-batches; weights, moments and metrics go to ``out``.

    ``middle`` is a file to write half-way and go on from, or to begin with where it is there.
    """
    with joined_ranks() as ranks:
        runtime = make_runtime(RuntimeConfig(device="cpu", threads=1, shard=shard), seed=3)
        config = OptimizerConfig(name=name, lr=0.01, clip=0.5, weight_decay=0.1)
        module = make(shape, getattr(torch, dtype), dropout)
        state: Any = None
        first = 0
        if middle and Path(middle).exists():
            saved = torch.load(middle, weights_only=True)
            module.load_state_dict(saved["weights"])
            state, first = saved["state"], STEPS // 2
        taught = Learner(module, config, runtime, STEPS, state, round=1)
        metrics: dict[str, torch.Tensor] = {}
        for step in range(first, STEPS):
            draw = torch.Generator().manual_seed(step)
            batches = [torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=draw) for _ in range(MICRO_BATCHES)]
            found = taught.step(batches, loss)
            metrics |= {f"metrics.{step}.{key}": torch.tensor(value).double() for key, value in found.items()}
            if middle and step == STEPS // 2 - 1:
                half = {"weights": taught.whole(module).state_dict(), "state": taught.state()}
                if ranks.first:
                    torch.save(half, middle)
        read = taught.read(batches, lambda module, ids: float(loss(module, ids)[1]["nats"]))
        whole = taught.whole(module)
        assert isinstance(whole, WithHead)
        inner = taught.whole(module.model)
        assert type(inner) is type(whole.model)
        weights = {f"weights.{key}": value.clone() for key, value in whole.state_dict().items()}
        moments = {
            f"moments.{key}.{kind}": value.clone()
            for key, entry in taught.state()["moments"].items()
            for kind, value in entry.items()
        }
        metrics["metrics.read"] = torch.tensor(read).double()
        save_file({**weights, **moments, **metrics}, f"{out}.{ranks.rank}")


def uneven(out: str, shape: str, shard: bool = False, states: bool = False) -> None:
    """Steps on units of very different sizes, of which the largest alone has its logits computed in parts.

    With ``states``, the steps learn from hidden states, too, as a value head does. Losses go to ``out``.
    """
    logps.LOGITS_AT_ONCE = 7 * VOCABULARY
    module_of_ranks.PATIENCE = timedelta(seconds=60)  # where they do wait for each other, the test ends
    ids = [place % VOCABULARY for place in range(14)]
    rows = [TokenRow((3 + place, 5), ids[:length]) for place, length in enumerate((13, 2, 3, 1, 3))]
    with joined_ranks() as ranks:
        runtime = make_runtime(RuntimeConfig(device="cpu", threads=1, shard=shard), seed=3)
        module = make(shape, torch.float32)
        taught = Learner(module, OptimizerConfig(lr=0.01), runtime, STEPS)
        plain = supervised(rows, 11)

        def loss(module: Any, unit: Sequence[TokenRow]) -> torch.Tensor:
            scores = score_tokens(module.model, unit, entropies=True, states=states)
            assert scores.entropies is not None
            value = module.head(scores.states).sum() if states else 0.0
            return (scores.entropies.sum() - scores.logps.sum() + value) / plain.tokens

        found = [taught.step(plain.micro_batches, loss)["loss"] for _ in range(STEPS)]
        found += taught.read(plain.micro_batches, lambda module, unit: float(loss(module, unit)))
        save_file({"found": torch.tensor(found)}, f"{out}.{ranks.rank}")


PPO = {"method": "ppo", "problems_per_step": 3, "passes": 2, "minibatches": 2, "kl": {"weight": 0.05}}


def tiny(kind: str, folder: Path, shard: bool, model: Mapping[str, Any]) -> Recipe:
    """The recipe of the tests of resuming, made smaller: several waves of work units, checkpoints within a round."""
    command = "tune" if kind == "tune" else "improve"
    found: dict[str, Any] = dict(content(command, folder))
    shape = {"create": "gpt2", "depth": 1, "width": 32, "heads": 2, "context": 24, "tokenizer": "char"}
    found["model"] = {**shape, **model}
    found["runtime"] = {"device": "cpu", "threads": 1, "checkpoint_steps": 2, "generate_batch": 8, "shard": shard}
    found["rounds"] = 2
    found["update"] = {**found["update"], "steps": 5, "tokens_per_pass": 40}
    if command == "improve":
        found |= {"problems": 6, "controls": []}
    if kind == "ppo":
        found["update"] = {**PPO, "tokens_per_pass": 40, "optimizer": found["update"]["optimizer"]}
        found["data"] = {name: value for name, value in found["data"].items() if name != "labelled"}
    return parse_recipe(COMMANDS[command], found)  # type: ignore[type-var]


def run(
    kind: str,
    out: str,
    resume: bool = False,
    shard: bool = False,
    stop: tuple[int, int, str] = (-1, 0, ""),
    model: Mapping[str, Any] | None = None,
) -> None:
    """A recipe from its start to its end. ``stop`` is a rank, one of its optimizer steps, and what happens there."""
    with joined_ranks() as ranks:
        if ranks.rank == stop[0]:
            _stop_at(*stop[1:])
        results.write_report = lambda *_: None  # type: ignore[assignment]  # pictures take longer than the run
        recipe = tiny(kind, Path(out).parent, shard, model or {})
        STAGES["tune" if kind == "tune" else "improve"](recipe, Path(out), resume=resume)  # type: ignore[operator]


def _stop_at(step: int, way: str) -> None:
    taken, original = 0, Learner.step

    def stepping(self: Learner, *arguments: Any) -> dict[str, float]:
        nonlocal taken
        taken += 1
        if taken == step and way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if taken == step:
            raise ArithmeticError("the test's own failure")
        return original(self, *arguments)

    Learner.step = stepping  # type: ignore[method-assign]


def command(arguments: Sequence[str], out: str) -> None:
    """``loopwise ARGUMENTS``, with what it prints in ``OUT.RANK``."""
    os.dup2(os.open(f"{out}.{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT), 1)
    results.write_report = lambda *_: None  # type: ignore[assignment]
    app(list(arguments))


SCENARIOS: dict[str, Callable[..., None]] = {"learner": learner, "uneven": uneven, "run": run, "command": command}
