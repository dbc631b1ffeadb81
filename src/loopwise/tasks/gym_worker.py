"""The process that draws reasoning-gym's problems: a request (JSON) a line in, an answer a line out.

A process of its own, because some generators walk through sets of texts, whose order Python changes from process to
process unless PYTHONHASHSEED is fixed before it starts; others seed NumPy's global generator, or run code of their own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from functools import lru_cache
from typing import Any

from loopwise.errors import ConfigError
from loopwise.evaluate.gym import make_dataset, pack

# Generators without an answer of their own, and where their metadata keep an example of one.
EXAMPLES = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}


def main() -> None:
    """Answer requests until the parent closes its end; ended by an alarm where one takes ``seconds``."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(request.pop("seconds"))
        answer = _answer(**request)
        signal.alarm(0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(name: str, parameters: dict[str, Any], seed: int, size: int, index: int | None) -> dict[str, Any]:
    """The problem ``index``, why it could not be made, or (without an index) whether the parameters are any good."""
    try:
        dataset = _dataset(name, json.dumps(parameters), seed, size)
    except ConfigError as error:
        return {"refused": str(error)}
    if index is None:
        return {}
    try:
        entry = dataset[index]
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {
        "question": str(entry["question"]),
        "answer": _gold(entry),
        "entry": pack(name, parameters, entry),
    }


def _gold(entry: dict[str, Any]) -> str | None:
    answer, metadata = entry["answer"], entry["metadata"]
    if answer is None:
        answer = metadata.get(EXAMPLES.get(metadata["source_dataset"], ""))
    return answer if answer is None or isinstance(answer, str) else json.dumps(answer)


@lru_cache(maxsize=4)
def _dataset(name: str, parameters: str, seed: int, size: int) -> Any:
    return make_dataset(name, json.loads(parameters), seed, size)


if __name__ == "__main__":
    main()
