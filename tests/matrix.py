"""Every source of feedback and every way of learning, as recipe blocks, and the pairs of them that make no sense."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ONLINE = {"problems_per_step": 2}
STEPS = {"steps": 2, "batch_size": 2}
UPDATES: Mapping[str, Mapping[str, Any]] = {
    "dr_grpo": ONLINE,
    "grpo": ONLINE,
    "dapo": ONLINE,
    "rloo": ONLINE,
    "reinforce": ONLINE,
    "ppo": ONLINE,
    "distill": ONLINE,
    "rft": {**STEPS, "threshold": 0.1},
    "dpo": STEPS,
    "ipo": STEPS,
    "slic": STEPS,
    "margin": STEPS,
    "rrhf": STEPS,
    "spin": STEPS,
    "hindsight": STEPS,
    "ilf": {**STEPS, "revisions": 4, "threshold": 0.0},
    "reflexion": {"trials": 2, "threshold": 0.1, "template": "{prompt}{draft}{critique}\n"},
}
AT_THE_GATE = ("distill", "spin")
"""Updates that learn from a teacher or from labelled answers: what scores their samples decides at the gate alone."""
READS_WORDS = ("ilf", "reflexion")
"""Updates that learn from critiques."""
NEEDS_WORDS = ("ilf",)
"""Those that learn from nothing else."""


def scores(model: Path, judge: Path, encoder: Path) -> dict[str, dict[str, Any]]:
    """Every source of scores: its name and options. Some stand on a folder."""
    return {
        "exact_match": {},
        "number": {},
        "regex": {"pattern": "[a-z]"},
        "choice": {"column": "letter", "labels": "ab"},
        "math": {},
        "noisy": {"rule": "exact_match"},
        "bleu": {},
        "chrf": {},
        "ter": {},
        "rouge": {},
        "token_f1": {},
        "length": {"target": 3},
        "distinct": {"n": 1},
        "label": {"column": "kind"},
        "fluency": {"model": str(model)},
        "coherence": {"model": str(encoder)},
        "similarity": {"model": str(encoder)},
        "self_bleu": {},
        "vote": {},
        "agreement": {"max_tokens": 6},
        "self_certainty": {},
        "judge": {"rubric": "{prompt}{completion}\n", "scores": ["1", "2", "3"]},
        "compare": {"template": "{prompt}{first}.{second}.", "letters": ["a", "b"]},
        "python_tests": {},
        "trained_judge": {"path": str(judge), "label": "yes"},
        "trained_judge_gold": {"path": str(judge), "column": "kind"},
        "remote_judge": {"endpoint": "away"},
        "remote_grader": {"endpoint": "away"},
        "remote_compare": {"endpoint": "away"},
    }


def words(model: Path) -> dict[str, dict[str, Any]]:
    """Every source of words alone: its name and options."""
    return {
        "mismatch": {"says": "no"},
        "self_critic": {"max_tokens": 3, "template": "{prompt}{draft}\n"},
        "model_critic": {"model": str(model), "max_tokens": 3, "template": "{prompt}{draft}\n"},
        "remote_critic": {"endpoint": "away"},
    }
