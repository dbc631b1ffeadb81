"""``loopwise generate``: completions of prompts from a file or a person, and conversations that remember."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loopwise.config.blocks import RuntimeConfig
from loopwise.errors import ModelError, PromptTooLongError
from loopwise.generate.check import check_sampling
from loopwise.generate.local import LocalGenerator
from loopwise.generate.streaming import TextStream
from loopwise.models.folders import load_policy
from loopwise.models.policy import Policy
from loopwise.models.tokens import encode_prompts
from loopwise.runtime import Runtime, make_runtime, run_async, seed_key
from loopwise.types import Message, Problem, Prompt, PromptState, Request, Sample, Sampling
from loopwise.workspace import JOURNAL

MOST_TOKENS = 256
"""Tokens of a completion where nobody says how many, and the context has room for them."""
RESERVE = 4
"""A conversation keeps one token in so many of the context free for the next answer."""
UNIT = RuntimeConfig().generate_batch
MODEL = "model"


@dataclass(frozen=True)
class Speaker:
    """A policy with the way it is sampled. ``max_tokens`` None: as many as fit, MOST_TOKENS at most.

    ``sampling.max_tokens`` is not looked at.
    """

    policy: Policy
    runtime: Runtime
    sampling: Sampling
    max_tokens: int | None = None

    @property
    def has_template(self) -> bool:
        """Whether prompts may be messages."""
        return bool(getattr(self.policy.tokenizer, "chat_template", None))

    def draw(self, problems: Sequence[Problem], count: int) -> Iterator[list[Sample]]:
        """``count`` completions of each problem, about UNIT of them at a time, problem after problem.

        Pure in seed, problem id and index. Raises PromptTooLongError before the first is drawn.
        """
        sampling = self.fitted(problems)
        requests = [
            self._request(problem, group, index) for group, problem in enumerate(problems) for index in range(count)
        ]
        size = max(1, UNIT // count) * count
        generator = LocalGenerator(self.runtime)
        for start in range(0, len(requests), size):
            yield run_async(generator.generate(self.policy, requests[start : start + size], sampling))

    def stream(self, problem: Problem, write: Callable[[str], None]) -> Sample:
        """One completion, its text handed to ``write`` while it grows."""
        sampling = self.fitted([problem])
        stream = TextStream(self.policy, sampling.stop, write)
        generator = LocalGenerator(self.runtime, on_token=stream)
        [sample] = run_async(generator.generate(self.policy, [self._request(problem, 0, 0)], sampling))
        stream.finish(sample.text)
        return sample

    def fitted(self, problems: Sequence[Problem]) -> Sampling:
        """The sampling with as many tokens as fit beside the longest prompt, or as were asked for.

        Raises PromptTooLongError where these do not fit.
        """
        return replace(self.sampling, max_tokens=room(self.policy, problems, self.max_tokens))

    def _request(self, problem: Problem, group: int, index: int) -> Request:
        key = seed_key(self.runtime.seed, "generate", problem.id, index)
        return Request(f"{problem.id}/{index}", problem, group, index, key)


class Conversation:
    """Turns of a user and a model. ``messages`` are those the model still sees, system prompt not among them.

    A model without a chat template goes on from each text by itself, and remembers none.
    """

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.messages: tuple[Message, ...] = ()
        self._turns = 0

    def reset(self) -> None:
        """Forget everything that was said. The same words again are answered as they were."""
        self.messages, self._turns = (), 0

    def ask(self, text: str, write: Callable[[str], None], note: Callable[[str], None]) -> Sample | None:
        """Say ``text``, and hand the answer to ``write`` while it grows; None where Ctrl-C cut it short.

        What was written of such an answer is remembered. Where the context is full the oldest turns are forgotten,
        which ``note`` is told. Raises PromptTooLongError where ``text`` alone does not fit; it is then not remembered.
        """
        self._turns += 1
        problem, forgotten = self._fitting(text)
        if forgotten:
            turns = "turn is" if forgotten == 1 else f"{forgotten} turns are"
            note(f"the context is full: the oldest {turns} forgotten")
        said: list[str] = []

        def heard(piece: str) -> None:
            said.append(piece)
            write(piece)

        sample = None
        try:
            sample = self.speaker.stream(problem, heard)
            return sample
        except KeyboardInterrupt:
            return None
        finally:
            answer = sample.text if sample else "".join(said)
            if (sample or said) and self.speaker.has_template:
                asked = {"role": "user", "content": text}
                self.messages = (*self.messages[2 * forgotten :], asked, {"role": "assistant", "content": answer})

    def _fitting(self, text: str) -> tuple[Problem, int]:
        """The newest turns that leave room for an answer, ``text`` last, and how many older ones had to go."""
        speaker, name = self.speaker, f"turn {self._turns}"
        if not speaker.has_template:
            return Problem(name, text), 0
        context = speaker.policy.weights.context_length if speaker.policy.weights else None
        wanted = speaker.max_tokens or min(MOST_TOKENS, (context or MOST_TOKENS * RESERVE) // RESERVE)
        turns = len(self.messages) // 2
        for forgotten in range(turns + 1):
            problem = Problem(name, (*self.messages[2 * forgotten :], {"role": "user", "content": text}))
            if context is None or len(encode_prompts(speaker.policy, [problem])[0]) + wanted <= context:
                return problem, forgotten
        return problem, turns


def open_model(name: str, seed: int, system: str | None = None, *, sampled: bool = True) -> tuple[Policy, Runtime]:
    """The model in a Hugging Face folder, on the hub, or that a run ended with; ``system`` replaces its system prompt.

    Raises ModelError where there is none, or (where it is to be ``sampled``) none that can be.
    """
    runtime = make_runtime(RuntimeConfig(), seed)
    policy = load_policy(model_folder(name), runtime)
    if policy.weights is None:
        raise ModelError(f"{name}: holds a prompt state alone, and no weights to generate with. Name a model's folder.")
    if sampled:
        check_sampling(policy, runtime)
    state: PromptState = policy.prompt_state
    return (policy if system is None else replace(policy, prompt_state=replace(state, system=system))), runtime


def model_folder(name: str) -> str:
    """``name`` itself, or the model of the run in the folder of that name. Raises ModelError where it has none yet."""
    folder = Path(name)
    if not (folder / JOURNAL).is_file():
        return name
    if not (folder / MODEL).is_dir():
        raise ModelError(
            f"{name}: a run without a model yet, because it has not ended. Go on with `loopwise runs resume {name}`."
        )
    return str(folder / MODEL)


def room(policy: Policy, problems: Sequence[Problem], wanted: int | None) -> int:
    """Tokens each completion may have: ``wanted``, or else MOST_TOKENS or what the longest prompt leaves.

    Raises PromptTooLongError where these do not fit into the model's context.
    """
    context = policy.weights.context_length if policy.weights else None
    if context is None or not problems:
        return wanted or MOST_TOKENS
    lengths = list(map(len, encode_prompts(policy, problems)))
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    left = context - lengths[longest]
    if left < (wanted or 1):
        raise PromptTooLongError(
            f"prompt {_beginning(problems[longest].prompt)!r}: it has {lengths[longest]} tokens, and {wanted or 1} "
            f"more are over the model's context of {context}. Lower --max-tokens, shorten the prompt, or take a model "
            "with a longer context."
        )
    return wanted or min(MOST_TOKENS, left)


def _beginning(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return text[:40]
