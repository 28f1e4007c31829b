"""Every operator of lilliput.kernels: opcheck, all variants against the reference, many callers at once.

`cases/NAME.py` gives random arguments of the operators in `kernels/NAME.py`: CASES maps an operator's name to a
function of draw(low, high), a whole number, and floats(*shape). Nothing is listed here.
"""

import importlib
import pkgutil
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import lilliput.kernels
from lilliput.core import kernel

HERE = Path(__file__).parent / "cases"
for module in pkgutil.iter_modules(lilliput.kernels.__path__):
    importlib.import_module(f"lilliput.kernels.{module.name}")
CASES, TOLERANCES = {}, {}
for path in sorted(HERE.glob("*.py")):
    specification = importlib.util.spec_from_file_location(f"cases_{path.stem}", path)
    found = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(found)
    CASES |= found.CASES
    TOLERANCES |= getattr(found, "TOLERANCES", {})
OPERATORS = {name: op for name, op in kernel.operators().items() if op}
VARIANTS = [v for v in kernel.variants() if v != "reference"]
NAMES = sorted(CASES)


def arguments(name, seed):
    """Arguments from one seed, the same for every variant."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    def floats(*shape):
        values = torch.randn(shape, generator=generator)
        return torch.where(torch.rand(shape, generator=generator) < 0.05, 0.0, values)

    return CASES[name](draw, floats)


def results(name, values):
    found = OPERATORS[name](*values)
    return [found] if isinstance(found, torch.Tensor) else list(found)


def magnitudes(name, values):
    """The operator on absolute values: sums of |x w|, to which rounding is relative, however much the sums cancel."""
    return results(name, [v.abs() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values])


def agree(name, found, expected, sizes):
    for a, b, size in zip(found, expected, sizes, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        scale = float(size.abs().max()) if b.numel() and b.is_floating_point() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCES.get(name, 0) * scale, equal_nan=True)


def test_every_operator_has_a_case():
    assert set(CASES) == set(OPERATORS)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    for seed in (1, 2):
        torch.library.opcheck(OPERATORS[name], arguments(name, seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
@example(seed=1216502)  # no rows, one output and a bias for `product_linear`, whose strides once differed
def test_variants_are_the_reference(name, variant, seed):
    values = arguments(name, seed)
    with kernel.using("reference"):
        expected, sizes = results(name, values), magnitudes(name, values)
    with kernel.using(variant):
        agree(name, results(name, values), expected, sizes)


@pytest.mark.skipif(not VARIANTS, reason="needs the compiled extension")
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_calls_from_eight_threads(name):
    """Each caller gets the numbers that one alone gets, with two threads for every call."""
    sets = [arguments(name, seed) for seed in range(5)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = [results(name, values) for values in sets]
        wrong = []

        def call(worker):
            for i in range(125):
                chosen = (worker + i) % len(sets)
                if not all(map(torch.equal, results(name, sets[chosen]), expected[chosen])):
                    wrong.append((worker, i))

        threads = [threading.Thread(target=call, args=(w,)) for w in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong
