"""`lilliput run`: runs a file without the model's class."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal

TOP = 5


def run(
    file: parameters.File,
    *,
    input: parameters.Inputs = None,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Write the outputs: .npz, or .safetensors.")
    ] = None,
    engine: Annotated[str, Parameter(help="What runs the graph; see lilliput list run.")] = "native",
    json: parameters.Json = False,
) -> None:
    """Run a file on an input: random numbers of a shape, or arrays from a file.

    Without --input, an input is made of the shapes that the network was traced with.

      lilliput run net.safetensors --input picture.npy
      lilliput run net.safetensors --input 1x3x224x224 -o outputs.npz
    """
    from lilliput.cli import inputs

    terminal.check_outputs(output, sources=[file, *(input or [])])
    if output is not None:
        terminal.check_ending(output, ".npz", ".safetensors")
    given = inputs.inputs_of(input)
    with terminal.working("running"):
        outputs = _run(file, given, engine)
    if output is not None:
        _write(output, outputs)
    if json:
        terminal.show_json({name: _about(tensor) for name, tensor in outputs.items()})
        return
    for name, tensor in outputs.items():
        about = _about(tensor)
        shape = "×".join(map(str, about["shape"])) or "scalar"
        terminal.say(
            f"{name}: {shape} {about['dtype']}, mean {about['mean']:.6g}, from {about['min']:.6g} to {about['max']:.6g}"
        )
        for row, top in enumerate(about["top"][:8]):
            terminal.say(f"  [{row}] " + ", ".join(f"{entry['index']}: {entry['value']:.6g}" for entry in top))


def _run(file: Path, given: Any, engine: str) -> dict[str, Any]:
    """Runs the network and returns its outputs by name."""
    import torch

    from lilliput.core.data import call
    from lilliput.core.errors import ModelError
    from lilliput.file.read import read
    from lilliput.run.compare import example_of
    from lilliput.run.load import load

    artifact = read(file)
    net = load(artifact, engine=engine)
    example = example_of(artifact) if given is None else given
    try:
        with torch.no_grad():
            outputs = named(call(net, example))
    except RuntimeError as error:
        raise ModelError(
            f"{file}: the network can't be run on this input: {' '.join(str(error).split())[:300]}"
        ) from None
    return outputs


def named(value: Any, name: str = "output") -> dict[str, Any]:
    """Returns the tensors of a nested output by path, such as `output.logits` or `output.0`."""
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return {}
    return {key: tensor for part, item in items for key, tensor in named(item, f"{name}.{part}").items()}


def _about(tensor: Any) -> dict[str, Any]:
    """Shape, dtype, range and, for scores of classes, the largest of each row."""
    values = tensor.double()
    about: dict[str, Any] = {"shape": [*tensor.shape], "dtype": str(tensor.dtype).removeprefix("torch."), "top": []}
    empty = not tensor.numel()
    for key, function in (("mean", values.mean), ("min", values.min), ("max", values.max)):
        about[key] = float("nan") if empty else float(function())
    if tensor.ndim == 2 and tensor.shape[1] > 1:
        best = values.topk(min(TOP, tensor.shape[1]), dim=1)
        about["top"] = [
            [{"index": int(i), "value": float(v)} for i, v in zip(row_i, row_v)]
            for row_i, row_v in zip(best.indices, best.values)
        ]
    return about


def _write(path: Path, outputs: dict[str, Any]) -> None:
    import io

    import torch

    from lilliput.file.atomic import write_pieces

    tensors = {name: tensor.detach().contiguous() for name, tensor in outputs.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        write_pieces(path, (save({name: tensor.clone() for name, tensor in tensors.items()}),))
        return
    import numpy

    buffer = io.BytesIO()
    arrays = {name: (t.float() if t.dtype is torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    numpy.savez(buffer, **arrays)
    write_pieces(path, (buffer.getvalue(),))
