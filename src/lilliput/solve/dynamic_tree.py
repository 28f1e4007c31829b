"""The dynamic tree of 8 bits: a sign, as many zeros as the decimal exponent, a one, and a fraction in what is left."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LEAST = 1.5e-6
"""Magnitudes below become 0."""


@cache
def magnitudes() -> Tensor:
    """Returns the 128 magnitudes by code, float32: 126 values, rising, then 0 and 1.

    Dettmers 2016 (arXiv 1511.04561), with the table of the released code: with e zeros there are 2^(6-e) values in
    10^-e (0.1 .. 1), one half of them in the middle of equal parts of 0.1 .. 0.45, the other of 0.45 .. 1.

    >>> magnitudes()[[0, 62, 125, 126, 127]].tolist()
    [2.750000021478627e-06, 0.10546875, 0.991406261920929, 0.0, 1.0]
    """
    values = []
    for zeros in range(5, -1, -1):
        half = 2 ** (5 - zeros)
        for low, high in ((0.1, 0.45), (0.45, 1.0)):
            values += [(low + (high - low) * (i + 0.5) / half) * 10.0**-zeros for i in range(half)]
    return torch.tensor([*values, 0.0, 1.0], dtype=torch.float64).float()


@cache
def _bounds() -> Tensor:
    values = magnitudes().double()
    rising = torch.cat([values[:126], values[127:]])
    return torch.cat([torch.tensor([LEAST], dtype=torch.float64), (rising[1:] + rising[:-1]) / 2]).float()


def encode(values: Tensor) -> Tensor:
    """Returns the code of the nearest value, uint8: 128 is the sign.

    Args:
        values: -1 .. 1, floating-point, any shape; what lies beyond becomes +-1, NaN 1.

    >>> encode(torch.tensor([1.0, -1.0, 0.0, -0.106])).tolist()
    [127, 255, 126, 190]
    """
    place = torch.bucketize(values.abs().float(), _bounds().to(values.device), right=True)
    # From 0 for nothing and 1 .. 126 for the values, to the codes: 126 for nothing, 127 for all.
    code = torch.where(place == 0, 126, torch.where(place == 127, 127, place - 1))
    return (code + 128 * (values < 0)).to(torch.uint8)


def decode(codes: Tensor) -> Tensor:
    """Returns the values of codes, float32.

    >>> decode(torch.tensor([127, 255, 126, 190], dtype=torch.uint8)).tolist()
    [1.0, -1.0, 0.0, -0.10546875]
    """
    table = magnitudes()
    return torch.cat([table, -table]).to(codes.device)[codes.long()]
