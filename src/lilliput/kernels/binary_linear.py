"""Linear layers of signs: XNOR and bit count, from floats or from packed signs."""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.kernel import operator, run
from lilliput.kernels import binary

BLOCK = 64
"""Outputs that lie side by side in a prepared weight."""


def prepare(signs: Tensor) -> Tensor:
    """Lays the signs of a weight out for the kernels: a 32-bit word of 64 outputs side by side.

    Args:
        signs: (outputs, n); what is at least 0 is a +1.

    Returns:
        (ceil(outputs / 64), words, 64), int32, with words = 2 ceil(n / 64).

    >>> prepare(torch.ones(3, 40)).shape
    torch.Size([1, 2, 64])
    """
    words = binary.pack_bits((signs >= 0).int()).view(torch.int32)
    padded = torch.nn.functional.pad(words, (0, 0, 0, -len(words) % BLOCK))
    return padded.reshape(-1, BLOCK, padded.shape[1]).transpose(1, 2).contiguous()


def restored(weight: Tensor, outputs: int) -> Tensor:
    """Returns the packed signs, (outputs, ceil(n / 64)), int64, of a prepared weight."""
    rows = weight.transpose(1, 2).reshape(-1, weight.shape[1])[:outputs]
    return rows.contiguous().view(torch.int64)


def _packed_shape(x: Tensor) -> Tensor:
    return x.new_empty((len(x), (x.shape[1] + 63) // 64), dtype=torch.int64)


@operator(_packed_shape)
def pack_signs(x: Tensor) -> Tensor:
    """Packs the signs of rows, 64 to a word, the first in the lowest bit: 1 from 0 on; NaN is 0.

    Args:
        x: (rows, n), float32.

    Returns:
        (rows, ceil(n / 64)), int64; what fills the last word is 0.

    Raises:
        MethodError: x has another shape or type.

    >>> pack_signs(torch.tensor([[1.0, -1.0, 0.0]])).tolist()
    [[5]]
    """
    if x.dim() != 2 or x.dtype != torch.float32:
        raise MethodError(f"pack_signs takes rows of float32, not {tuple(x.shape)} of {x.dtype}")
    packed = _packed_shape(x)
    if not packed.numel():
        return packed
    if run("pack_rows", x.contiguous(), packed.view(torch.int32), len(x), x.shape[1], 2 * packed.shape[1]):
        return packed
    return binary.pack_bits((x >= 0).int())


def _linear_shape(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, n: int) -> Tensor:
    return x.new_empty((len(x), len(scale)), dtype=torch.float32)


@operator(_linear_shape)
def binary_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """Computes scale (n - 2 popcount(x ^ w)) + bias: the linear layer of XNOR-Net and BinaryNet.

    Rastegari et al. 2016, arXiv 1603.05279; Courbariaux, Hubara et al. 2016, arXiv 1602.02830. sign(0) is +1.

    Args:
        x: (rows, n), float32, whose signs are taken; or (rows, ceil(n / 64)), int64, packed signs.
        weight: by `prepare`.
        scale: (outputs,), float32.
        bias: (outputs,), float32, or None.
        n: signs in a row.

    Returns:
        (rows, outputs), float32.

    Raises:
        MethodError: shapes or types that don't fit.

    >>> binary_linear(torch.tensor([[1.0, -2.0, 3.0]]), prepare(torch.tensor([[1.0, 1, 1]])), torch.ones(1), None, 3)
    tensor([[1.]])
    """
    outputs, words = len(scale), 2 * ((n + 63) // 64)
    if x.dim() != 2 or x.shape[1] != {torch.float32: n, torch.int64: words // 2}.get(x.dtype):
        raise MethodError(f"binary_linear: rows of {n} floats or {words // 2} words, not {tuple(x.shape)} of {x.dtype}")
    if weight.dtype != torch.int32 or weight.shape != ((outputs + BLOCK - 1) // BLOCK, words, BLOCK):
        raise MethodError(f"binary_linear: a weight of {tuple(weight.shape)} isn't one of {outputs} x {n} signs")
    if scale.dim() != 1 or (bias is not None and bias.shape != scale.shape):
        raise MethodError(f"binary_linear: scale and bias must have {outputs} numbers")
    if not len(x):
        return _linear_shape(x, weight, scale, bias, n)
    packed = pack_signs(x) if x.dtype == torch.float32 else x
    y = _linear_shape(x, weight, scale, bias, n)
    bits = packed.contiguous().view(torch.int32)
    if run("binary_linear", bits, weight, scale, bias, y, len(x), outputs, words, n):
        return y
    y = binary.products(packed, restored(weight, outputs), n) * scale
    return y if bias is None else y + bias
