"""Documents as token ids, framed for packing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loopwise.data.sources import Document
from loopwise.data.windows import frame
from loopwise.models.policy import Policy
from loopwise.models.tokenizers import opening_id
from loopwise.models.tokens import encode_texts

_AT_ONCE = 1000


def encode_documents(policy: Policy, documents: Sequence[Document]) -> list[np.ndarray]:
    """Each document's token ids as int32 arrays, ready to pack.

    Where a document begins it opens with what an empty prompt opens with, and where it ends it closes with end-of-text.
    """
    begin, end = opening_id(policy.tokenizer), policy.tokenizer.eos_token_id
    framed = []
    for first in range(0, len(documents), _AT_ONCE):
        some = documents[first : first + _AT_ONCE]
        encoded = encode_texts(policy, [document.text for document in some])
        framed += [
            frame(ids, end, begin, opens=document.opens, closes=document.closes)
            for document, ids in zip(some, encoded, strict=True)
        ]
    return framed
