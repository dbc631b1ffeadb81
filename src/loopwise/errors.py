"""Every error loopwise raises on purpose, as a tree. Each names the place and the mend.

LoopwiseError
├── ConfigError (ValueError)        a recipe, flag or argument that cannot work
│   ├── IncompatibleError           an update needs what the generator does not offer
│   └── ResumeError                 a run resumed with another configuration
├── DataError (ValueError)          rows that cannot be read
│   ├── ProblemFileError            a file, line or column of them
│   └── OverlapError                held-out problems found among the training problems
├── ModelError (ValueError)         a folder that is no usable model
│   ├── VocabularyError             tokenizer and model do not fit
│   └── PromptTooLongError          prompt and completion exceed the context
├── RewardError (ValueError)        a reward function that broke its contract
├── RemoteError                     a remote model that gave no usable answer
├── ControlError                    a control that ended without figures; the loop beside it is not concerned
├── OutputExistsError (FileExistsError)  --out would overwrite something
├── CheckpointError (OSError)       no checkpoint survives verification
├── RunBusyError (OSError)          another process is writing this run
├── RankError                       another process of the same run failed, or is gone
└── DiskFullError (OSError)         paused: no room left; resumes when there is
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoopwiseError(Exception):
    """Base of all errors that loopwise raises on purpose. ``exit_code`` is what the command line ends with."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self.__class__.__name__


class ConfigError(LoopwiseError, ValueError):
    """A recipe, flag or argument that cannot work."""


class IncompatibleError(ConfigError):
    """An update needs what the generator does not offer."""


class ResumeError(ConfigError):
    """A run that cannot be resumed as asked."""


class DataError(LoopwiseError, ValueError):
    """Rows that cannot be read."""


class ProblemFileError(DataError):
    """A problem file with a bad line or column."""


class OverlapError(DataError):
    """Held-out problems found among the training problems."""


class ModelError(LoopwiseError, ValueError):
    """A folder that is no usable model."""


class VocabularyError(ModelError):
    """Tokenizer and model do not fit."""


class PromptTooLongError(ModelError):
    """Prompt and completion exceed the model's context."""


class RewardError(LoopwiseError, ValueError):
    """A reward function that broke its contract."""


class RemoteError(LoopwiseError):
    """A remote model that gave no usable answer.

    ``kind``: ``timeout``; ``unreachable``; ``overloaded`` (it says so, or fails); ``refused`` (the key, the model's
    name, the account: no call can succeed before it is mended); ``rejected`` (this one question); ``bad_answer`` (not
    what an answer looks like); ``budget`` (not asked: what may be spent is spent).
    """

    exit_code = 1

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ControlError(LoopwiseError):
    """A control that ended without figures. The loop beside it is not concerned."""

    exit_code = 1


class OutputExistsError(LoopwiseError, FileExistsError):
    """``--out`` names something that exists."""


class CheckpointError(LoopwiseError, OSError):
    """No checkpoint survives verification."""


class RunBusyError(LoopwiseError, OSError):
    """Another process is writing this run."""


class RankError(LoopwiseError):
    """Another process of the same run failed, is gone, or does not hold what this one holds."""

    exit_code = 1


class DiskFullError(LoopwiseError, OSError):
    """The disk is full; the run is paused and can be resumed."""

    exit_code = 75


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence naming the known word closest to ``word``, and all of them where none is close."""
    choices = sorted(known)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(choices)}."
