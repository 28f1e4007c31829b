"""What users bring as data: any iterable of inputs, (inputs, targets) pairs or dicts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lilliput.core.errors import DataError


def first(data: Iterable[Any]) -> Any:
    """Returns the first element of an iterable.

    Raises:
        DataError: if it has none, or can't be iterated over.
    """
    if isinstance(data, Tensor):
        return data
    try:
        return next(iter(data))
    except StopIteration:
        raise DataError("the data is empty: give an iterable with at least one batch") from None
    except TypeError:
        raise DataError(f"data must be an iterable of batches, not {type(data).__name__}") from None


def peeked(data: Any) -> tuple[Any, Any]:
    """Returns the first element and data that still begin with it, though they may be an iterator.

    Raises:
        DataError: as `first` does.

    >>> element, data = peeked(iter([1, 2]))
    >>> element, list(data)
    (1, [1, 2])
    """
    element = first(data)
    if isinstance(data, Iterator):
        return element, itertools.chain([element], data)
    return element, data


def with_example(data: Any, example: Any) -> tuple[Any, Any]:
    """Returns the data and an example: the one that is given, or else the inputs of the first batch, or None.

    Raises:
        DataError: as `first` does.
    """
    if example is not None or data is None:
        return data, example
    batch, data = peeked(data)
    return data, inputs_of(batch)


def inputs_of(batch: Any) -> Any:
    """Returns the inputs of a batch: of a pair (inputs, targets) the first, of a dict all but `labels`.

    >>> inputs_of(("x", "y"))
    'x'
    """
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key not in {"labels", "label", "target", "targets"}}
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0]
    if isinstance(batch, list | tuple) and len(batch) == 1:
        return batch[0]
    return batch


def target_of(batch: Any) -> Any:
    """Returns the targets of a batch, or None.

    >>> target_of(("x", "y"))
    'y'
    """
    if isinstance(batch, Mapping):
        return next((batch[key] for key in ("labels", "label", "target", "targets") if key in batch), None)
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[1]
    return None


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls a model on inputs: a dict by keywords, a tuple or list by position, anything else as one argument."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, list | tuple):
        return model(*inputs)
    return model(inputs)


def logits_of(output: Any) -> Tensor:
    """Returns the logits of a model's output: the tensor itself, `.logits`, `["logits"]`, or the first of a tuple."""
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output[0] if isinstance(output, list | tuple) and output else None)
    if not isinstance(output, Tensor):
        raise DataError(f"no logits in the model's output ({type(output).__name__}): give loss=")
    return output
