"""`load`: from the file to something that runs."""

from __future__ import annotations

import copy
from os import PathLike
from typing import Any

import torch
from torch import nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.core.method import find
from lilliput.core.recipe import Absent
from lilliput.file.artifact import Artifact
from lilliput.file.read import read
from lilliput.graph.cut import Cuts, apply_cuts, beyond, note_cuts, noted_cuts
from lilliput.train.quantizer import layer_at, place, remove


def load(
    path: str | PathLike[str] | Artifact, *, into: nn.Module | None = None, engine: str | Any = "native"
) -> nn.Module:
    """Loads a file written by `Artifact.save`.

    Without `into` the network runs from the embedded graph: the model's class isn't needed. The file is only data:
    nothing in it is executed, and a damaged or hostile one is refused.

    Args:
        path: the file, or an artifact in memory.
        into: a model of the user's class, whose parameters and buffers are overwritten; its structure is cut first
            where the file's network is smaller.
        engine: what runs the graph, by name (see `lilliput list run`) or with settings, as
            `run.native.Native(timed=False)`. `"native"` takes the fastest way that it finds; `"dense"` is plain
            PyTorch, bit for bit what the compressed model computes.

    Returns:
        A module in eval mode, or `into` itself.

    Raises:
        FileError: if the file is refused.
        ModelError: if the file has no graph, or `into` is another model; then `into` is unchanged.
    """
    artifact = path if isinstance(path, Artifact) else read(path)
    if into is None:
        made = find("run", engine)() if isinstance(engine, str) else engine
        module: nn.Module = made.load(artifact)
        return module
    return fill(into, artifact)


def fill(model: nn.Module, artifact: Artifact) -> nn.Module:
    """Overwrites the parameters and buffers of a model of the user's class, all of them or none.

    Where the file quantizes what goes into a layer, the layer gets a module `input_quantizer` that does so, and
    `output_quantizer` for what comes out.

    Raises:
        ModelError: names what is missing, unexpected or of another shape.
    """
    state = artifact.state_dict()
    fitting = model
    whole = Cuts(artifact.cuts, sizes=artifact.sizes, blocks=artifact.blocks)
    smaller = bool(whole.cuts or whole.blocks)
    # A model that was cut before it was written may be filled again: it needs only what came after.
    cuts = beyond(whole, noted_cuts(model)) if smaller else whole
    if smaller:
        # On a copy first: if the file is of another model, this one must stay as it is.
        fitting = copy.deepcopy(model)
        apply_cuts(fitting, cuts)
    own = fitting.state_dict(keep_vars=True)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ModelError(
            f"the file is of another model than {type(model).__name__}: "
            f"it lacks {_some(missing)}; it has {_some(extra)} that the model lacks"
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"{name} has shape {tuple(tensor.shape)} in the file and {tuple(own[name].shape)} in "
                f"{type(model).__name__}: build the model with the settings that it was trained with"
            )
    for path, quantized in artifact.quantizers.items():
        layer_at(model, path)
        if isinstance(quantized.method, Absent):
            raise NotInstalled(f"{path}: {quantized.method.method} can't be carried out: {quantized.method.missing}")
    if smaller:
        apply_cuts(model, cuts)
        note_cuts(model, whole)
        own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    remove(model)
    place(model, artifact.quantizers)
    return model.eval()


def _some(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
