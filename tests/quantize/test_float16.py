"""16-bit floats: every half, rounding half to even, and what doesn't fit."""

import numpy as np
import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.quantize.float16 import Float16


@pytest.mark.parametrize(("form", "dtype"), [("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_every_finite_value_comes_back(form, dtype):
    """All 65,536 patterns."""
    every = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.int16)).view(dtype)
    finite = every[torch.isfinite(every)]
    assert len(finite) == (63488 if form == "float16" else 65280)
    for wide in (torch.float32, torch.float64):
        back = unpack(Float16(form).pack(finite.to(wide)))
        assert back.dtype == wide
        assert torch.equal(back.to(dtype).view(torch.int16), finite.view(torch.int16))


def test_bfloat16_rounds_half_to_even_bit_by_bit():
    """bits + 0x7fff + the lowest bit that stays, shifted by 16: the textbook's integer rule."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32)
    bits[:5000] = (bits[:5000] & 0xFFFF0000) | 0x8000
    values = bits.view(np.float32)
    fits = np.isfinite(values) & (np.abs(values) < 3.38e38)
    values, bits = values[fits], bits[fits].astype(np.uint64)
    expected = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)
    assert np.array_equal(unpack(Float16("bfloat16").pack(torch.from_numpy(values))).numpy(), expected)


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1 + 2**-11, 1.0),
        (1 + 3 * 2**-11, 1 + 2**-9),
        (2**-25, 0.0),
        (2**-25 * 1.001, 2**-24),
        (2**-24 * 1.5, 2**-23),
        (2**-14, 2**-14),
        (65519.0, 65504.0),
        (-65519.0, -65504.0),
    ],
)
def test_half_precision_ties_subnormals_and_ends(value, rounded):
    assert float(unpack(Float16().pack(torch.tensor([value], dtype=torch.float64)))) == rounded


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e30])
def test_overflow_is_refused(value):
    with pytest.raises(MethodError, match="overflow float16; use bfloat16"):
        Float16().pack(torch.tensor([1.0, value]))
    assert bool(torch.isfinite(unpack(Float16("bfloat16").pack(torch.tensor([value])))).all())


def test_unknown_form():
    with pytest.raises(MethodError, match="no form 'float8'"):
        Float16("float8")
