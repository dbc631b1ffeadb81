"""Rows in, problems out: files of rows, streams that never overlap, and the order in which rows are trained on."""

from loopwise.data.batches import batch_indices, epoch_order, mixed_batch
from loopwise.data.formats import Row, fingerprint, read_rows
from loopwise.data.rows import Labelled, labelled_from_rows, problems_from_rows
from loopwise.data.streams import check_disjoint, draw, problem_key, split

__all__ = [
    "Labelled",
    "Row",
    "batch_indices",
    "check_disjoint",
    "draw",
    "epoch_order",
    "fingerprint",
    "labelled_from_rows",
    "mixed_batch",
    "problem_key",
    "problems_from_rows",
    "read_rows",
    "split",
]
