"""Training state on disk without pickle: a JSON tree, and its tensors beside it in safetensors."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loopwise.errors import CheckpointError

if TYPE_CHECKING:
    import torch

TREE = "state.json"
TENSORS = "state.safetensors"


def write_state(folder: Path, state: Any) -> None:
    """Write ``state`` into ``folder`` as ``state.json`` and, where it has tensors, ``state.safetensors``.

    ``state`` nests dicts (keys str or int), lists and tuples of str, int, float, bool, None, bytes, torch tensors and
    NumPy arrays; ``read_state`` gives back an equal one, tensors on the CPU. Raises TypeError naming the place of
    anything else.
    """
    writer = _Writer()
    tree = writer.encode(state, "state")
    if writer.tensors:
        import safetensors.torch
        import torch

        arrays = {name: torch.from_numpy(array.copy()) for name, array in writer.arrays.items()}
        safetensors.torch.save_file(writer.tensors | arrays, folder / TENSORS)
    elif writer.arrays:
        import safetensors.numpy

        safetensors.numpy.save_file(writer.arrays, folder / TENSORS)
    # surrogatepass: text of a broken tokenizer may hold halves of surrogate pairs, which plain UTF-8 refuses.
    (folder / TREE).write_bytes(json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass"))


def read_state(folder: Path) -> Any:
    """What ``write_state`` wrote into ``folder``. Raises CheckpointError where it is missing or was not written so."""
    from safetensors import SafetensorError

    try:
        tree = json.loads((folder / TREE).read_bytes().decode("utf-8", "surrogatepass"))
        return _decode(tree, _load_tensors(folder, tree))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder / TREE}: cannot be read ({error!r}). Use the checkpoint before it.") from error


class _Writer:
    """Turns values into JSON. Whatever JSON has no form for becomes an object with one key, its kind."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self._storages: set[int] = set()

    def encode(self, value: Any, place: str) -> Any:
        # Types are compared exactly: a subclass (an enum, a named tuple, numpy.float64) would come back as its base.
        kind = type(value)
        if value is None or kind in (str, int, bool):
            return value
        if kind is float:
            return value if np.isfinite(value) else {"float": repr(value)}
        if kind is list or kind is tuple:
            items = [self.encode(item, f"{place}[{number}]") for number, item in enumerate(value)]
            return items if kind is list else {"tuple": items}
        if kind is dict:
            return {"dict": [[_key(key, place), self.encode(item, f"{place}[{key!r}]")] for key, item in value.items()]}
        if kind is bytes:
            return {"bytes": base64.b64encode(value).decode("ascii")}
        if kind is np.ndarray:
            return {"array": self._add_array(value, place)}
        if kind.__module__.partition(".")[0] == "torch":
            return {"tensor": self._add_tensor(value, place)}
        raise _refusal(place, kind.__name__)

    def _add_array(self, array: np.ndarray, place: str) -> str:
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8 or not array.dtype.isnative:
            raise _refusal(place, f"array of {array.dtype}")
        name = f"array-{len(self.arrays)}"
        self.arrays[name] = np.asarray(array, order="C")
        return name

    def _add_tensor(self, tensor: Any, place: str) -> str:
        import torch

        if not isinstance(tensor, torch.Tensor):
            raise _refusal(place, type(tensor).__name__)
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise _refusal(place, f"tensor of {tensor.dtype}, {tensor.layout}")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory.
        tensor = tensor.clone() if storage in self._storages else tensor
        self._storages.add(storage)
        name = f"tensor-{len(self.tensors)}"
        self.tensors[name] = tensor
        return name


def _load_tensors(folder: Path, tree: Any) -> dict[str, Any]:
    kinds = _kinds(tree)
    if "tensor" in kinds:
        import safetensors.torch

        loaded = safetensors.torch.load_file(folder / TENSORS)
        return {name: value.numpy() if name.startswith("array-") else value for name, value in loaded.items()}
    if "array" in kinds:
        import safetensors.numpy

        return dict(safetensors.numpy.load_file(folder / TENSORS))
    return {}


def _kinds(tree: Any) -> set[str]:
    if isinstance(tree, list):
        return {kind for item in tree for kind in _kinds(item)}
    if isinstance(tree, dict):
        return set(tree) | {kind for item in tree.values() for kind in _kinds(item)}
    return set()


def _decode(tree: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    [(kind, content)] = tree.items()
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind in ("array", "tensor"):
        return tensors[content]
    raise ValueError(f'unknown kind "{kind}"')


def _key(key: Any, place: str) -> str | int:
    if type(key) is str or type(key) is int:
        return key
    raise TypeError(f"{place}: key {key!r} is {type(key).__name__}; state keeps text and whole numbers as keys only")


def _refusal(place: str, found: str) -> TypeError:
    return TypeError(
        f"{place}: {found} cannot be kept as state. "
        "Use dicts, lists, tuples, text, numbers, bytes, dense tensors and arrays."
    )
