"""The rewards and critics that a recipe names, checked and made: rules, sources, functions from files and modules."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwise.config.blocks import RewardConfig
from loopwise.errors import ConfigError, nearest
from loopwise.evaluate.parts import Caller, JudgePart, Kind, LocalReward, Part, RewardPart, distinct_names
from loopwise.evaluate.rewards import RewardSum
from loopwise.evaluate.rules import RULES, Rule
from loopwise.evaluate.sources import Source, Surroundings, sources
from loopwise.evaluate.supervisor import WorkerReward


def load_feedback(
    configs: Sequence[RewardConfig],
    *,
    reference_columns: Collection[str],
    label_free: bool,
    critics: Sequence[RewardConfig] = (),
    surroundings: Surroundings | None = None,
) -> RewardSum:
    """The rewards and critics of a recipe as one feedback source. Nothing of the user's runs before the first call.

    ``reference_columns`` reach only what uses references: rules and sources know themselves; functions do unless their
    ``uses_reference`` is false or the run is ``label_free``. Raises ConfigError on an unknown name or option, a missing
    file, a key that would do nothing, or a part that needs references in a label-free run.
    """
    around = surroundings or Surroundings()
    rewards = _Loader("reward", frozenset(reference_columns), label_free, around)
    words = _Loader("critic", frozenset(reference_columns), label_free, around)
    knows_truth = bool(configs) and all(map(_tells_truth, configs))
    return RewardSum(rewards.parts(configs), words.parts(critics), knows_truth=knows_truth)


@dataclass(frozen=True)
class _Loader:
    """Makes the parts of one kind. Errors say which, and advise only what helps a part of that kind."""

    kind: Kind
    reference_columns: frozenset[str]
    label_free: bool
    around: Surroundings

    def parts(self, configs: Sequence[RewardConfig]) -> list[Part]:
        """A part for each of ``configs``, no two of one name. Raises ConfigError."""
        names = distinct_names([_name(config) for config in configs])
        return [self._part(config, name) for config, name in zip(configs, names, strict=True)]

    def _part(self, config: RewardConfig, name: str) -> Part:
        rule, source = RULES.get(config.use), sources().get(config.use)
        self._check_says(config, rule, source)
        self._check_idle(config, killable=rule.can_hang if rule else source is None)
        uses_reference = self._uses_reference(config, rule or source)
        if source:
            return self._judge_part(source, config, name, uses_reference)
        return self._reward_part(rule, config, name, uses_reference)

    def _judge_part(self, source: Source, config: RewardConfig, name: str, uses_reference: bool) -> JudgePart:
        if source.compares:
            self._check_several(config)
        judge = source.make(self.around, config.options)
        return JudgePart(
            name, config.weight, uses_reference, judge, self._hidden(uses_reference), source.compares, self.kind
        )

    def _reward_part(self, rule: Rule | None, config: RewardConfig, name: str, uses_reference: bool) -> RewardPart:
        call = _rule_caller(rule, config) if rule else self._function_caller(config)
        return RewardPart(name, config.weight, uses_reference, call, self._hidden(uses_reference), kind=self.kind)

    def _hidden(self, uses_reference: bool) -> frozenset[str]:
        return frozenset() if uses_reference else self.reference_columns

    def _function_caller(self, config: RewardConfig) -> Caller:
        place = self._place(config)
        if config.options:
            raise ConfigError(f"{place}: options are for built-in rules. Put them into the function.")
        target: dict[str, Any] = {"words": self.kind == "critic"}
        file, colon, name = config.use.rpartition(":")
        if colon:
            if not Path(file).is_file():
                raise ConfigError(f"{place}: there is no file {file}. Mend the path.")
            return WorkerReward(target | {"kind": "file", "source": file, "function": name}, config.time_limit)
        module, dot, name = config.use.rpartition(".")
        if not dot or config.use.endswith(".py"):
            missing = "rule" if self.kind == "reward" else "critic"
            raise ConfigError(
                f"{place}: no such {missing}. {nearest(config.use, self._known())} "
                "Functions are written module.function or path/to/file.py:function."
            )
        return WorkerReward(target | {"kind": "module", "source": module, "function": name}, config.time_limit)

    def _known(self) -> list[str]:
        """Names of what comes with loopwise and may be a part of this kind."""
        if self.kind == "critic":
            return [name for name, source in sources().items() if "critiques" in source.says]
        return [*RULES, *(name for name, source in sources().items() if "rewards" in source.says)]

    def _check_says(self, config: RewardConfig, rule: Rule | None, source: Source | None) -> None:
        if not (rule or source) or config.use in self._known():
            return
        if self.kind == "critic":
            raise ConfigError(f'{self._place(config)} gives scores, no critiques. Move it to "rewards".')
        raise ConfigError(
            f'{self._place(config)} gives words, no rewards. Move it to "critics" of a recipe for `loopwise improve`.'
        )

    def _check_idle(self, config: RewardConfig, *, killable: bool) -> None:
        """Raise ConfigError where a key is set that nothing reads."""
        place = self._place(config)
        if self.kind == "critic" and config.changed("weight"):
            raise ConfigError(f'{place}: "weight" does nothing here: critics score nothing. Leave it out.')
        if not killable and config.changed("time_limit"):
            raise ConfigError(
                f'{place}: "time_limit" does nothing here: it is of functions and of rules that may hang. Leave it out.'
            )

    def _check_several(self, config: RewardConfig) -> None:
        """Raise ConfigError unless two or more samples are drawn of each problem."""
        samples = self.around.samples
        if samples is not None and samples > 1:
            return
        place = f"{self._place(config)} sets the samples of one problem beside each other, and"
        if samples is None:
            raise ConfigError(
                f"{place} here one is drawn of each, whatever the recipe. Leave it out: `loopwise improve` draws "
                "several, and so does `loopwise evaluate` with --samples."
            )
        raise ConfigError(
            f"{place} 1 is drawn. Draw several: samples: 4 in a recipe, --samples 4 --temperature 1 with evaluate."
        )

    def _uses_reference(self, config: RewardConfig, known: Rule | Source | None) -> bool:
        declared = config.uses_reference
        if known and declared not in (None, known.uses_reference):
            told, what = str(known.uses_reference).lower(), "rule" if isinstance(known, Rule) else "source"
            raise ConfigError(f"{self._place(config)}: uses_reference is {told} for this {what}. Remove the key.")
        uses = known.uses_reference if known else declared if declared is not None else not self.label_free
        if self.label_free and uses:
            mend = "move the reward to report_rewards" if self.kind == "reward" else "take a critic that uses none"
            raise ConfigError(
                f"{self._place(config)} uses references, but label_free promises that no training signal sees one. "
                f"Set label_free: false, or {mend}."
            )
        return uses

    def _place(self, config: RewardConfig) -> str:
        return f'{self.kind} "{config.use}"'


def _rule_caller(rule: Rule, config: RewardConfig) -> Caller:
    function = rule.make(config.options)
    if not rule.can_hang:
        return LocalReward(function)
    target = {"kind": "rule", "source": rule.name, "function": rule.name, "options": dict(config.options)}
    return WorkerReward(target, config.time_limit)


def _tells_truth(config: RewardConfig) -> bool:
    """Whether the reward is a rule that reads references. Sources that do are left out: most ask a model."""
    rule = RULES.get(config.use)
    return rule is not None and rule.uses_reference and config.weight > 0


def _name(config: RewardConfig) -> str:
    if config.use in RULES or config.use in sources():
        return config.use
    return config.use.replace(":", ".").rpartition(".")[2]
