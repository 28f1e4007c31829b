"""Core ML's packages read back and computed as Apple's documents define their operators: it runs on no other system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Given = Mapping[str, Any]


def program_of(path: Path) -> Any:
    """Reads the program of a package, weights and all, with coremltools.

    Args:
        path: of the .mlpackage.
    """
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return load(spec, spec.specificationVersion, model.weights_dir)


def ran(program: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Computes a program.

    Args:
        program: of `program_of`.
        inputs: by name.

    Raises:
        KeyError: an operator isn't there.
    """
    function = program.functions["main"]
    values: dict[str, Any] = dict(inputs)

    def value(var: Any) -> Any:
        if isinstance(var, list | tuple):
            return [value(one) for one in var]
        if var.name in values:
            return values[var.name]
        found = var.val
        return torch.from_numpy(found) if isinstance(found, np.ndarray) and found.ndim else found

    for op in function.operations:
        if op.op_type == "const":
            continue
        given = {name: value(var) for name, var in op.inputs.items() if var is not None}
        found = OPERATORS[op.op_type](given)
        for var, one in zip(op.outputs, found if isinstance(found, tuple) else (found,)):
            values[var.name] = one
    return [values[var.name] for var in function.outputs]


def _blocks(array: Tensor, shape: Any) -> Tensor:
    for axis, size in enumerate(shape):
        array = array.repeat_interleave(size // array.shape[axis], axis)
    return array


def _scaled(a: Given) -> Tensor:
    codes = a["data"].float()
    if "offset" in a:
        codes = codes - _blocks(a["offset"].float(), codes.shape)
    found: Tensor = codes * _blocks(a["scale"], codes.shape)
    return found


def _table(a: Given) -> Tensor:
    indices, table = a["indices"].long(), a["lut"][..., 0]
    for axis, size in enumerate(indices.shape):
        table = table.repeat_interleave(size // table.shape[axis], axis)
    found: Tensor = table.gather(-1, indices[..., None])[..., 0]
    return found


def _sparse(a: Given) -> Tensor:
    mask = a["mask"].bool()
    dense = torch.zeros(mask.shape)
    dense[mask] = a["nonzero_data"]
    return dense


def _conv(a: Given) -> Tensor:
    sides = a["pad"].tolist()
    x = functional.pad(a["x"], [side for pair in zip(sides[-2::-2], sides[::-2]) for side in pair])
    kinds = {3: functional.conv1d, 4: functional.conv2d}
    told = [tuple(a[name].tolist()) for name in ("strides", "dilations")]
    return kinds[x.dim()](x, a["weight"], a.get("bias"), told[0], 0, told[1], int(a["groups"]))


def _max_pool(a: Given) -> Tensor:
    pads, sizes, strides = (a[name].tolist() for name in ("pad", "kernel_sizes", "strides"))
    x = functional.pad(a["x"], (pads[2], pads[3], pads[0], pads[1]), value=-float("inf"))
    return functional.max_pool2d(x, sizes, strides)


def _quantize(a: Given) -> Tensor:
    low, high = (0, 255) if str(a["output_dtype"]) == "uint8" else (-128, 127)
    return (torch.round(a["input"] / float(a["scale"])) + _zero(a)).clamp(low, high)


def _dequantize(a: Given) -> Tensor:
    return (a["input"] - _zero(a)) * float(a["scale"])  # type: ignore[no-any-return]


def _zero(a: Given) -> int:
    return 0 if a.get("zero_point") is None else int(a["zero_point"])


def _norm(a: Given) -> Tensor:
    axes = a["axes"].tolist()
    sides = [a["x"].shape[axis] for axis in axes]
    return functional.layer_norm(a["x"], sides, a.get("gamma"), a.get("beta"), float(a["epsilon"]))


def _slice(a: Given) -> Tensor:
    ends = zip(*(a[name].tolist() for name in ("begin", "end", "stride")))
    return a["x"][tuple(slice(*each) for each in ends)]  # type: ignore[no-any-return]


def _pad(a: Given) -> Tensor:
    sides = a["pad"].tolist()
    flat = [side for pair in zip(sides[-2::-2], sides[::-2]) for side in pair]
    return functional.pad(a["x"], flat, value=float(a["constant_val"]))


def _matmul(a: Given) -> Tensor:
    y = a["y"].mT if a.get("transpose_y") else a["y"]
    return a["x"] @ y  # type: ignore[no-any-return]


OPERATORS: dict[str, Any] = {
    "constexpr_blockwise_shift_scale": _scaled,
    "constexpr_lut_to_dense": _table,
    "constexpr_lut_to_sparse": lambda a: (a["indices_mask"], a["lut"].reshape(-1)[a["indices_nonzero_data"].long()]),
    "constexpr_sparse_to_dense": _sparse,
    "conv": _conv,
    "linear": lambda a: functional.linear(a["x"], a["weight"], a.get("bias")),
    "layer_norm": _norm,
    "max_pool": _max_pool,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "slice_by_index": _slice,
    "pad": _pad,
    "matmul": _matmul,
    "identity": lambda a: a["x"],
    "add": lambda a: a["x"] + a["y"],
    "mul": lambda a: a["x"] * a["y"],
    "relu": lambda a: a["x"].relu(),
    "relu6": lambda a: a["x"].clamp(0, 6),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "gelu": lambda a: functional.gelu(a["x"]),
    "softmax": lambda a: a["x"].softmax(int(a["axis"])),
    "reshape": lambda a: a["x"].reshape(a["shape"].tolist()),
    "squeeze": lambda a: a["x"].squeeze(a["axes"].tolist()),
    "transpose": lambda a: a["x"].permute(a["perm"].tolist()),
    "tile": lambda a: a["x"].repeat(a["reps"].tolist()),
    "concat": lambda a: torch.cat(a["values"], int(a["axis"])),
    "reduce_mean": lambda a: a["x"].mean(a["axes"].tolist(), keepdim=bool(a["keep_dims"])),
}
"""What each operator computes from its inputs; several results as a tuple."""
