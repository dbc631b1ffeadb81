"""The arithmetic of a round in words: how many problems, samples, pairs, rows and steps, and what is compared."""

from __future__ import annotations

from collections.abc import Iterator

from loopwise.config.methods import (
    DistillConfig,
    HindsightConfig,
    ILFConfig,
    OnlineConfig,
    PairsConfig,
    PolicyGradientConfig,
    PPOConfig,
    ReflexionConfig,
    RFTConfig,
    RRHFConfig,
    SPINConfig,
    reference_of,
)
from loopwise.config.recipes import ImproveRecipe, TuneRecipe

Words = Iterator[tuple[str, str]]
REFERENCES = {
    "base": "the run's base",
    "accepted": "the policy that the round starts from",
    "adapters_off": "the model without its adapters",
}
BASELINES = {
    "none": "reward as it is",
    "running": "reward less the mean of all steps before",
    "batch": "reward less the step's mean",
    "group": "reward less the mean of its problem's samples",
    "leave_one_out": "reward less the mean of its problem's other samples",
}
SCALES = {"none": "", "group": ", over their standard deviation", "batch": ", over the step's standard deviation"}


def tuned(recipe: TuneRecipe, rows: int, passes: int | None) -> Words:
    """A round of ``loopwise tune`` on so many rows or pairs; ``passes`` are those of a step on the longest of them."""
    update = recipe.update
    what = "pairs" if isinstance(update, PairsConfig) else "rows"
    trained = update.steps * update.batch_size
    each = f"{update.steps} steps x {update.batch_size} {what}"
    yield "training", f"{each} = {trained:,} {what}, {trained / rows:.1f} epochs"
    yield from _compared(recipe)
    yield "forward passes", _passes(update.tokens_per_pass, passes)
    yield "rounds", str(recipe.rounds)


def looped(recipe: ImproveRecipe, problems: int, labelled: bool, passes: int | None) -> Words:
    """A round of the loop that draws so many problems; ``labelled``: there are labelled rows to mix in.

    ``passes`` are the forward passes of a step on the longest samples, None where that is not known.
    """
    update = recipe.update
    if update.most_samples(problems, recipe.samples):
        yield "sampling", f"{problems} problems x {recipe.samples} samples = {problems * recipe.samples:,} samples"
    if problems < recipe.problems:
        yield "note", f"{recipe.problems} problems a round asked for, the train rows are only {problems}"
    if isinstance(update, OnlineConfig):
        yield from _online(recipe, update, problems)
    elif isinstance(update, PairsConfig):
        yield from _paired(recipe, update, problems)
    elif isinstance(update, ReflexionConfig):
        yield from _tried(recipe, update, problems)
    else:
        yield from _worded(recipe, update, problems)
        share = update.labelled_share if labelled else 0.0
        rows = f"{update.steps} steps x {update.batch_size} rows = {update.steps * update.batch_size:,} rows"
        yield "training", f"{rows}, {share:.0%} of them labelled"
    if recipe.held_out_revisions:
        most = _counted(recipe.held_out_revisions, "time")
        yield "held-out answers", f"as drafted, and of base and result as revised, {most} at most"
    yield from _compared(recipe)
    if not isinstance(update, ReflexionConfig):
        yield "forward passes", _passes(update.tokens_per_pass, passes)
    yield "rounds", f"{recipe.rounds}, and {_counted(len(recipe.controls), 'control')} of as many"


def _online(recipe: ImproveRecipe, update: OnlineConfig, problems: int) -> Words:
    hand, steps = min(update.problems_per_step, problems), recipe.steps(problems)
    drawn = f"{hand} problems x {recipe.samples} samples a step = {hand * recipe.samples:,} samples"
    last = f", the last on {_counted(problems % hand, 'problem')}" if problems % hand else ""
    taken = update.updates_per_rollout
    each = f"{_counted(taken, 'optimizer step')} each"
    if taken > 1:
        each = f"{_counted(update.passes, 'pass')} x {_counted(update.minibatches, 'minibatch')} = {each}"
    yield "training", f"{drawn}, {_counted(steps, 'step')} a round{last}, {each}"
    if isinstance(update, DistillConfig):
        yield "learned from", "the teacher's distribution of every token; rewards are only reported"
    if isinstance(update, PolicyGradientConfig):
        advantage = update.advantage
        found = BASELINES[advantage.baseline] + SCALES[advantage.scale]
        if isinstance(update, PPOConfig):
            found = f"reward less the value head's guess (GAE){SCALES[advantage.scale]}"
        yield "advantage", found + ("; problems that tie left out" if advantage.drop_tied else "")


def _paired(recipe: ImproveRecipe, update: PairsConfig, problems: int) -> Words:
    noun, most, how = "pairs", problems, "best against worst of each problem"
    if isinstance(update, SPINConfig):
        most, how = problems * recipe.samples, "each problem's labelled completion against its samples"
    elif isinstance(update, RRHFConfig):
        noun, how = "rankings", "all samples of each problem"
    elif update.pairs.take == "all":
        most = problems * recipe.samples * (recipe.samples - 1) // 2
        how = "every two samples of a problem whose rewards differ"
    trained = update.steps * update.batch_size
    yield noun, f"{how}: at most {most:,} a round"
    each = f"{update.steps} steps x {update.batch_size} {noun}"
    yield "training", f"{each} = {trained:,} {noun}, {trained / most:.1f} epochs or more"


def _worded(recipe: ImproveRecipe, update: RFTConfig | ILFConfig | HindsightConfig, problems: int) -> Words:
    """What imitation learns beside samples that pass."""
    if isinstance(update, ILFConfig):
        drafts = problems * recipe.samples
        chosen = "highest reward" if update.choose == "reward" else "nothing said against it"
        most = f"at most {drafts * update.revisions:,} a round"
        yield "revisions", f"{update.revisions} of each draft that is criticised: {most}; one with {chosen} is learned"
    elif isinstance(update, HindsightConfig):
        yield "pairs", f"best against worst of each problem: at most {problems:,} a round, in two rows each"
        yield "asked", f"{update.good!r} after every prompt once it was learned"


def _tried(recipe: ImproveRecipe, update: ReflexionConfig, problems: int) -> Words:
    most = update.trials * problems * recipe.samples
    yield "trials", f"{update.trials} at most, of problems that are not solved yet: at most {most:,} samples"
    written = "by the model" if update.writes == "model" else "in a critic's words"
    of_task = f"on {_counted(update.lessons, 'miss')} of a task at most"
    yield "lessons", f"{written}, after every trial {of_task}; the newest {update.lessons} of a task are kept"
    yield "training", "none: lessons go into the prompt, and no weights change"


def _compared(recipe: ImproveRecipe | TuneRecipe) -> Words:
    name = reference_of(recipe.update)
    if name is not None:
        yield "reference", f"{REFERENCES[name]}, in memory anyway; one more forward pass over what is learned from"


def _passes(tokens: int, count: int | None) -> str:
    each = f"at most {tokens:,} padded tokens each (update.tokens_per_pass)"
    return each if count is None else f"{count} on the longest of a step, {each}"


def _counted(count: int, noun: str) -> str:
    if count == 1:
        return f"{count} {noun}"
    return f"{count} {noun}es" if noun.endswith(("s", "ch")) else f"{count} {noun}s"
