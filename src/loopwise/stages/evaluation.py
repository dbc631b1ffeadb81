"""``loopwise evaluate``: a model examined on tasks, rows, text and probes of bias, alone or beside a baseline."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loopwise.config.blocks import RuntimeConfig
from loopwise.errors import ConfigError
from loopwise.evaluate.sources import Surroundings
from loopwise.generate.local import LocalGenerator
from loopwise.models.tokens import unknown_share
from loopwise.observer import Observer
from loopwise.runtime import make_runtime
from loopwise.stages import endpoints
from loopwise.stages.answers import Answers, alike, answers, known_texts, same_tokens, tried
from loopwise.stages.comparison import differences, judge
from loopwise.stages.contamination import contamination
from loopwise.stages.generation import Speaker, model_folder, open_model
from loopwise.stages.probing import Probing, check_probing, open_probing, probe
from loopwise.stages.questions import Examination, Opening, Questions, doubts, open_questions
from loopwise.stages.texts import check_known, open_texts, read, text_differences, text_result
from loopwise.stages.trained_on import Training, training_of
from loopwise.types import Sampling


@dataclass(frozen=True)
class Subject:
    """A model that is examined, and what it was trained on."""

    name: str
    speaker: Speaker
    training: Training


@dataclass(frozen=True)
class Prepared:
    """An examination with everything opened and tried. ``samplings`` are by the questions' names."""

    examination: Examination
    subjects: Sequence[Subject]
    asked: Sequence[Questions]
    texts: Mapping[str, list[str]]
    probing: Probing | None
    samplings: Mapping[str, Sampling]
    remote: endpoints.Endpoints


def evaluate_model(model: str, examination: Examination, observer: Observer | None = None) -> dict[str, Any]:
    """Measure a model folder, a run's model or one from the hub: the figures of each task, row file and text.

    A figure has ``value``, its 95% interval ``ci95`` and ``n``, the problems it is a mean over. With a baseline each
    result has the ``baseline``'s own, paired ``differences`` and a ``sentence``. What the model has met in training
    stands under ``contamination``, and ``clean`` has the figures without it.
    Raises LoopwiseError for anything a person can mend, before anything is measured.
    """
    began, observer = time.monotonic(), observer or Observer()
    examination.check()
    with ExitStack() as stack:
        prepared = _prepare(model, examination, stack, observer)
        # First, for it refuses what it cannot ask, and nothing is lost then.
        harness = _harnessed(prepared)
        results = [_examined(questions, prepared, observer) for questions in prepared.asked]
        results += [_read(name, documents, prepared) for name, documents in prepared.texts.items()]
        probed = _probed(prepared, observer)
        spent = endpoints.spent(prepared.remote)
    ours, *others = prepared.subjects
    found: dict[str, Any] = {
        "model": model,
        "policy_id": ours.speaker.policy.id,
        "seed": examination.seed,
        "samples": examination.samples,
        "sampling": {**asdict(examination.sampling), "max_tokens": examination.max_tokens},
        "results": results,
    }
    for other in others:
        same = other.speaker.policy.id == ours.speaker.policy.id
        found["baseline"] = {"model": other.name, "policy_id": other.speaker.policy.id, "same": same}
        found["comparison"] = judge(results, same=same)
    if prepared.asked:
        found["training"] = [_known(subject) for subject in prepared.subjects]
    if probed:
        found["bias"] = probed
    if harness:
        found["harness"] = harness
    if spent:
        found["endpoints"] = spent
    for name, costs in spent.items():
        observer.note("info", endpoints.in_words(name, costs))
    return {**found, "seconds": round(time.monotonic() - began, 2)}


def _prepare(model: str, examination: Examination, stack: ExitStack, observer: Observer) -> Prepared:
    runtime = make_runtime(RuntimeConfig(), examination.seed)
    remote = endpoints.enter_endpoints(stack, examination.endpoints)
    local = LocalGenerator(runtime)
    around = Surroundings(
        runtime=runtime,
        writer=local,
        local=local,
        endpoints=remote,
        seed=examination.seed,
        samples=examination.samples,
    )
    opening = Opening(stack, around)
    probing = open_probing(examination, opening) if examination.bias else None
    asked = list(open_questions(examination, opening))
    texts = open_texts(examination)
    if examination.harness and not Path(examination.harness).is_file():
        raise ConfigError(f"--harness {examination.harness}: no such file. Name a row file.")
    named = list(filter(None, (model, examination.baseline)))
    for name in dict.fromkeys(named):
        for doubt in doubts(Path(name), examination):
            observer.note("warning", doubt)
    judged = [questions for questions in asked if questions.feedback]
    subjects = []
    for name in named:
        policy, own = open_model(name, examination.seed, sampled=bool(judged or probing))
        speaker = Speaker(policy, own, examination.sampling, examination.max_tokens)
        if probing:
            check_probing(probing, speaker)
        check_known(texts, speaker)
        for questions in asked:
            if share := unknown_share(policy, known_texts(questions)):
                observer.note(
                    "warning",
                    f"{questions.name}: {share:.2%} of the tokens that {name} reads are {policy.tokenizer.unk_token}, "
                    "text that its tokenizer does not know and reads all alike. Its figures may mislead.",
                )
        subjects.append(Subject(name, speaker, training_of(name) if asked else Training()))
    samplings = {}
    for questions in judged:
        assert questions.feedback is not None
        fits = [tried(questions, questions.feedback, subject.speaker) for subject in subjects]
        samplings[questions.name] = min(fits, key=lambda sampling: sampling.max_tokens)
    return Prepared(examination, subjects, asked, texts, probing, samplings, remote)


def _examined(questions: Questions, prepared: Prepared, observer: Observer) -> dict[str, Any]:
    """The figures of some questions, alone or beside the baseline's, with and without what was met in training."""
    sampling = prepared.samplings.get(questions.name)
    examination, subjects = prepared.examination, prepared.subjects
    sides = alike([answers(questions, sampling, examination, subject.speaker, observer) for subject in subjects])
    result = {"name": questions.name, "kind": questions.kind, "problems": len(questions.problems)}
    result |= _side(sides[0])
    if len(sides) > 1 and any(side.completions.get("clipped_ratio") for side in sides):
        first, second = (subject.speaker.policy for subject in subjects)
        if not same_tokens(first, second):
            observer.note(
                "warning",
                f"{questions.name}: some answers were cut off, and the two models' tokens differ, so as many tokens "
                "are not as much text. Raise --max-tokens, or name a --stop.",
            )
    if len(sides) > 1:
        result |= {"baseline": _side(sides[1]), "differences": differences(sides[0].scores, sides[1].scores)}
    return result | _contaminated(questions, prepared, sides)


def _side(side: Answers) -> dict[str, Any]:
    more = {"completions": side.completions, "corpus": side.corpus}
    return {"figures": side.figures(), **{name: value for name, value in more.items() if value}}


def _contaminated(questions: Questions, prepared: Prepared, sides: Sequence[Answers]) -> dict[str, Any]:
    """What was met in training, and the figures without what either model has met."""
    kept = np.ones(len(questions.problems), dtype=bool)
    summaries = []
    for subject in prepared.subjects:
        summary, met = contamination(subject.name, subject.training, questions.problems, questions.key)
        summaries.append(summary)
        kept[list(met)] = False
    found: dict[str, Any] = {"contamination": summaries}
    if not kept.all():
        clean: dict[str, Any] = {"problems": int(kept.sum()), "figures": sides[0].figures(kept)}
        if len(sides) > 1:
            clean["baseline"] = {"figures": sides[1].figures(kept)}
            clean["differences"] = differences(sides[0].scores, sides[1].scores, kept)
        found["clean"] = clean
    return found


def _read(name: str, documents: Sequence[str], prepared: Prepared) -> dict[str, Any]:
    readings = [read(documents, subject.speaker) for subject in prepared.subjects]
    result = text_result(name, readings[0])
    if len(readings) > 1:
        result["baseline"] = {"figures": readings[1].figures()}
        result["differences"] = text_differences(*readings)
    return result


def _probed(prepared: Prepared, observer: Observer) -> dict[str, Any] | None:
    """What the probes of bias found in each model."""
    if prepared.probing is None:
        return None
    bound = prepared.examination.max_tokens
    subjects = [
        {"model": subject.name, **probe(prepared.probing, replace(subject.speaker, max_tokens=bound), observer)}
        for subject in prepared.subjects
    ]
    return {"name": prepared.probing.name, "probes": len(prepared.probing.probes), "subjects": subjects}


def _harnessed(prepared: Prepared) -> list[dict[str, Any]]:
    """What lm-evaluation-harness says of each model."""
    examination = prepared.examination
    if examination.harness is None:
        return []
    from loopwise.stages.harness import run_harness

    rows, stop = Path(examination.harness), examination.sampling.stop
    options: dict[str, Any] = {"limit": examination.problems, "max_tokens": examination.max_tokens, "stop": stop}
    return [{"model": one.name, **run_harness(model_folder(one.name), rows, **options)} for one in prepared.subjects]


def _known(subject: Subject) -> dict[str, Any]:
    """What is known of a model's training."""
    training = subject.training
    return {
        "model": subject.name,
        "known": training.known,
        "sources": dict(training.sources),
        "unknown": list(training.unknown),
    }
