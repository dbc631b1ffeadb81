"""The sentences of a report on pretraining that depend on how the run was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loopwise.report import numbers
from loopwise.report.wording import Step, counted

_FEW_WINDOWS = 50


def opening(rounds: int, continued: bool) -> str:
    """The first sentences for someone who has read nothing."""
    who = "An existing language model read on" if continued else "A language model was made from nothing"
    return (
        f"{who}: in {counted(rounds, 'round')} it learned to tell, token by token, how a text goes on. (A token is the "
        "piece of text that it reads and writes at a time: a character, part of a word, or a word.) After each round "
        "it was measured on text kept apart from training."
    )


def steps(
    config: Mapping[str, Any], read: float, passes: float, tokens: float, accepted: int, decided: int
) -> tuple[Step, ...]:
    """The steps of a round. ``read`` tokens were trained on, which is the training text ``passes`` times over (NaN
    where unknown); ``tokens`` were held out in dev; ``accepted`` of ``decided`` rounds were."""
    update = config.get("update", {})
    window = f"{numbers.whole(update['window'])} tokens" if update.get("window") else "as much text as fits the model"
    over = _over(passes)
    reading = (
        f"Each round took {numbers.whole(update.get('steps', 0))} optimizer steps on {update.get('batch_size', 0)} "
        f"windows of {window}. In all it read {numbers.amount(read)} tokens{over}."
    )
    if decided:
        measured = numbers.whole(tokens)
        measuring = f"It then predicted {measured} held-out tokens, each from what stands before it in its window."
        kept = f"{accepted} of {decided} {'round was' if decided == 1 else 'rounds were'} accepted."
        gate = f"Where it predicted them clearly worse than before, the round was undone. {kept}"
    else:
        measuring = "No text was held out in dev, so no round was measured."
        gate = "With nothing held out, every round was accepted unseen."
    prompts = len(config.get("prompts", ()))
    writing = (
        f"It wrote texts from {counted(prompts, 'beginning')}, for you to read. Nobody judged them."
        if prompts
        else "It was asked for no texts of its own."
    )
    return Step("Read", reading), Step("Measure", measuring), Step("Write", writing), Step("Accept or roll back", gate)


def _over(passes: float) -> str:
    if not numbers.known(passes):
        return ""
    if passes < 1:
        return f", about {numbers.percent(passes)} of the training text"
    return f", the training text about {numbers.figure(passes)} times over"


def cautions(config: Mapping[str, Any], split: str, windows: int) -> tuple[str, ...]:
    """What a reader should be careful about in this very run. ``windows`` of text were held out in ``split``."""
    data = config.get("data", {})
    found = [
        "Perplexity depends on the tokenizer: longer tokens are harder to guess. To compare models with different "
        "tokenizers, use bits a byte."
    ]
    if split and not isinstance(data.get(split), str):
        found.append(
            "The held-out text comes from the same sources as the training text. How well the model predicts any "
            "other text, these figures do not say."
        )
    if split and data.get("deduplicate") != "near":
        seen = "Only exact copies were" if data.get("deduplicate") == "exact" else "No copies were"
        found.append(
            f"{seen} removed. Passages that are almost the same on both sides flatter the figures. "
            "Set data.deduplicate: near to remove those, too."
        )
    if split == "dev":
        found.append(
            "There was no test split. The figures are of dev text, by which the gate chose the best round, and flatter "
            "it a little. Hold text out with data.test."
        )
    if split:
        few = f"Only {counted(windows, 'window')} of text: the intervals are wide. " if windows < _FEW_WINDOWS else ""
        found.append(
            f"{few}Intervals treat the held-out windows as independent. Windows of one text are alike, so the true "
            "uncertainty is somewhat larger."
        )
    found.append("This is one seed. Another one gives other figures; run several before you rely on a small gain.")
    return tuple(found)


def dropped(counts: Mapping[str, Any]) -> str:
    """What was left out of the text, in a sentence."""
    kinds = {"exact": "exact {}", "near": "near {}", "empty": "empty {}"}
    nouns = {"exact": ("copy", "copies"), "near": ("duplicate", "duplicates"), "empty": ("document", "documents")}
    left_out = [
        f"{numbers.whole(count)} {words.format(nouns[kind][count != 1])}"
        for kind, words in kinds.items()
        if (count := counts.get(f"dropped/{kind}", 0))
    ]
    files = counts.get("skipped", 0)
    unread = f" Passed over: {counted(files, 'file')} without text." if files else ""
    return (f"Left out: {_listed(left_out)}." if left_out else "No document was left out.") + unread


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
