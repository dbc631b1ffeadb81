"""TRL's trainers, set to do what our recipes do: same model folder, AdamW, batch, no reference model unless needed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gauges import StepMeter
from benchmarks.harness import BenchmarkError

OPTIMIZER: Mapping[str, Any] = {
    "name": "adamw",
    "lr": 1e-4,
    "betas": [0.9, 0.98],
    "weight_decay": 0.0,
    "schedule": "constant",
    "clip": 1.0,
}
"""Of both sides; no weight decay, because TRL decays matrices alone and we decay everything."""
DR_GRPO: Mapping[str, Any] = {
    "loss_type": "dr_grpo",
    "scale_rewards": "none",
    "beta": 0.0,
    "temperature": 1.0,
    "shuffle_dataset": False,
}
"""Our default method: reward less the group's mean, every token weighed alike, no KL; the rows in their order."""


def check_trl() -> None:
    """Raise BenchmarkError where TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise BenchmarkError("TRL is not installed, so there is no rival. Run: pip install -e .[bench]")


def load_trl(threads: int) -> Any:
    """TRL's module, offline and without advice on the terminal, and PyTorch with so many threads."""
    check_trl()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    import torch
    import trl

    for name in ("SFTTrainer", "DPOTrainer", "GRPOTrainer"):
        getattr(trl, name)  # lazily loaded: now, before anything is measured

    torch.set_num_threads(threads)
    return trl


def load_model(folder: str) -> tuple[Any, Any]:
    """The model of a folder with fp32 weights, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def dataset(rows: Iterable[Mapping[str, Any]]) -> Any:
    """A data set of rows."""
    from datasets import Dataset

    return Dataset.from_list([dict(row) for row in rows])


def arguments(options: Mapping[str, Any], batch: int, **own: Any) -> dict[str, Any]:
    """What the configurations of all TRL's trainers have in common.

    Of ``options``: ``folder``, ``steps``, ``dtype``, ``repeat`` (the seed), and ``optimizer`` where it is not
    ``OPTIMIZER``. Rows come in their own order, ``batch`` at a time. Activations are kept, not computed again, unless
    ``options`` ask for that (``recompute``), TRL's default: that is slower and takes less memory.
    """
    import torch

    optimizer = options.get("optimizer", OPTIMIZER)
    return {
        "output_dir": str(Path(options["folder"]) / "trl"),
        "max_steps": options["steps"],
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": optimizer["lr"],
        "adam_beta1": optimizer["betas"][0],
        "adam_beta2": optimizer["betas"][1],
        "weight_decay": optimizer["weight_decay"],
        "max_grad_norm": optimizer["clip"],
        "lr_scheduler_type": "constant",
        "bf16": options.get("dtype") == "bfloat16",
        "gradient_checkpointing": bool(options.get("recompute")),
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "seed": options["repeat"],
        "logging_steps": 1,
        "logging_first_step": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        **own,
    }


def train(trainer: Any, after_step: Callable[[int], bool]) -> None:
    """Train to the end, or until ``after_step``, called with how many steps are done, is false."""
    from transformers import PrinterCallback, TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Calls after each step."""

        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
            control.should_training_stop |= not after_step(state.global_step)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch())
    trainer.train()


def measure(trainer: Any, meter: StepMeter) -> dict[str, float | None]:
    """Train, a mark at the end of each step; the first step's loss and gradient norm (not clipped)."""

    def mark(_: int) -> bool:
        meter.mark()
        return True

    with meter.counting_tokens():
        train(trainer, mark)
    first = trainer.state.log_history[0]
    return {"first_loss": float(first["loss"]), "first_grad_norm": float(first["grad_norm"])}
