"""Tiny random models of several shapes, made from configurations, and the tokenizer they share.

torch is loaded by the fixtures, not here: tests that need no model start without it.
"""

from __future__ import annotations

import os
import signal

# Before anything loads torch: idle OpenMP threads must sleep, and tiny models gain nothing from a second one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loopwise.config.blocks import RuntimeConfig
from loopwise.runtime import Runtime, make_runtime
from loopwise.types import Context, Problem, Request

if TYPE_CHECKING:
    from loopwise.models.policy import Policy

ALPHABET = "0123456789+=abcdefghijklmnopqrstuvwxyz .\n"
CONTEXT = 48
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": {"num_key_value_heads": 4},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 4},
}
_LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """Ctrl-C as in a terminal, also where the suite was started in the background with the signal ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    """One CPU thread, fp32, seed 0."""
    return make_runtime(RuntimeConfig(device="cpu", threads=1), seed=0)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model of sums, which no test may write to."""
    from tests.bad_inputs import save_model

    return save_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per character. Shared: tests that change a tokenizer make their own."""
    from loopwise.models.presets import character_tokenizer

    return character_tokenizer(ALPHABET)


@pytest.fixture(scope="session")
def make_policy(tokenizer: Any) -> Callable[..., Policy]:
    """Make a policy of a shape in SHAPES; keywords change its configuration, ``seed`` its weights.

    Weights are drawn ten times wider than usual, so that tokens differ clearly in probability and attention matters.
    """

    def make(shape: str = "gpt2", *, seed: int = 0, **changes: Any) -> Policy:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from loopwise.models.policy import Policy, Weights

        common = {
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.2,
        }
        own = SHAPES[shape] if shape == "gpt2" else _LLAMA_LIKE | SHAPES[shape]
        config = AutoConfig.for_model(shape, **common | own | changes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return Policy(Weights.of(module), tokenizer)

    return make


@pytest.fixture
def policy(make_policy: Callable[..., Policy]) -> Policy:
    """A tiny GPT-2."""
    return make_policy()


@pytest.fixture
def folder(policy: Policy, tmp_path: Path) -> Path:
    """The tiny GPT-2 as a Hugging Face folder."""
    path = tmp_path / "model"
    policy.weights.module.save_pretrained(path)
    policy.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def make_requests() -> Callable[..., list[Request]]:
    """Make ``k`` requests for each prompt, with keys that depend on the place alone."""

    def make(prompts: list[Any], k: int = 1) -> list[Request]:
        return [
            Request(f"{group}/{index}", Problem(f"p{group}", prompt), group, index, 1_000_003 * group + index)
            for group, prompt in enumerate(prompts)
            for index in range(k)
        ]

    return make


@pytest.fixture
def context(runtime: Runtime) -> Context:
    """What an update is handed in round 1, with effects that go nowhere."""
    return Context(
        run_id="test",
        seed=0,
        round=1,
        runtime=runtime,
        spend=lambda budget: None,
        record=lambda step, metrics: None,
        keep=lambda sample_ids: None,
        checkpoint=lambda step, progress: None,
    )


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take longer than a tiny run."""
    monkeypatch.setattr("loopwise.results.write_report", lambda *_: None)
