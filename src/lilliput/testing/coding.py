"""The conformance suite of a coding: round trips over a spread of arrays, and bytes that are damaged or hostile."""

from collections.abc import Iterator

import numpy as np

from lilliput.coding.choose import Coding
from lilliput.core.errors import FileError

DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "int64")


def arrays(seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays that a coding must take or refuse with None: every dtype, odd shapes, extremes, dense and sparse."""
    random = np.random.default_rng(seed)
    for name in DTYPES:
        kind = np.dtype(name)
        least, most = (0, 1) if kind == np.bool_ else (np.iinfo(kind).min, np.iinfo(kind).max)
        yield f"{name} 0-d", np.array(most, kind)
        yield f"{name} empty", np.zeros((0, 3), kind)
        yield f"{name} one element", np.array([least], kind)
        yield f"{name} constant", np.full((3, 5), most, kind)
        yield f"{name} all zero", np.zeros((4, 4, 2), kind)
        yield f"{name} extremes", np.array([[least, most, 0], [most, 0, least]], kind)
        small = random.integers(0, 2, 200) * random.integers(1, min(most, 9) + 1, 200)
        yield f"{name} small", small.astype(kind).reshape(10, 4, 5)
        sparse = small * (random.random(200) < 0.1)
        yield f"{name} sparse", sparse.astype(kind).reshape(20, 10)
    yield "bell, 8 bits", np.rint(random.normal(0, 25, (24, 16, 3, 3))).clip(-127, 127).astype(np.int8)
    wide = np.exp(random.normal(0, 0.7, (64, 1)))
    yield "rows of unlike width", np.rint(random.laplace(0, 3, (64, 40)) * wide).clip(-127, 127).astype(np.int8)
    rare = random.integers(-8, 8, (30, 30)).astype(np.int32)
    rare[3, 4], rare[20, 7] = 2**31 - 1, -(2**31)
    yield "rare huge values", rare
    yield "gaps of 8 and 16 bits", _with_gaps((3, 4, 5, 255, 256, 257, 65536))
    yield "many values", random.integers(0, 2**16, (90, 100)).astype(np.uint16)
    yield "far apart", random.integers(-(2**62), 2**62, 6000)
    yield "not contiguous", np.arange(60, dtype=np.int16).reshape(5, 12)[:, ::2].T


def _with_gaps(gaps: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(sum(gaps) + len(gaps), np.uint8)
    out[np.cumsum(np.array(gaps) + 1) - 1] = 1
    return out


def check_coding(coding: Coding, *, damage: int = 60) -> None:
    """Run everything on one coding.

    Args:
        coding: an instance.
        damage: most single bytes to change in each stream.

    Raises:
        AssertionError: naming the array at fault.
    """
    for name, array in arrays():
        check_round_trip(coding, name, array)
    for name, array in arrays(1):
        data = coding.encode(array)
        if data is not None and len(data) < 2048:
            check_damage(coding, name, array, data, damage)


def check_round_trip(coding: Coding, name: str, array: np.ndarray) -> None:
    """Decoding gives back values, shape and dtype; coding is repeatable, leaves its input alone, and costs as said."""
    before = array.copy()
    data = coding.encode(array)
    assert (array == before).all(), f"{name}: the coding changed its input"
    if data is None:
        return
    assert coding.encode(array) == data, f"{name}: two codings of one array differ"
    for given in (data, memoryview(data)):
        decoded = coding.decode(given, array.shape, array.dtype)
        assert decoded.dtype == array.dtype, f"{name}: dtype {decoded.dtype} came back"
        assert decoded.shape == array.shape, f"{name}: shape {decoded.shape} came back"
        assert (decoded == array).all(), f"{name}: other values came back"
    if coding.cost_is_exact:
        assert coding.cost(array) == len(data), f"{name}: {coding.cost(array)} bytes announced, {len(data)} written"


def check_damage(coding: Coding, name: str, array: np.ndarray, data: bytes, damage: int) -> None:
    """Prefixes, trailing bytes and shapes of another size are refused; a changed byte may at most change values."""
    cuts = sorted({*range(min(len(data), 24)), *range(0, len(data), max(1, len(data) // 20))})
    for cut in cuts:
        assert _outcome(coding, data[:cut], array) == "refused", f"{name}: cut to {cut} of {len(data)} bytes, accepted"
    for more in (b"\0", b"\xff", b"\0" * 64):
        assert _outcome(coding, data + more, array) == "refused", f"{name}: trailing {more!r} accepted"
    random = np.random.default_rng(len(data))
    for at in random.permutation(len(data))[:damage].tolist():
        for byte in {data[at] ^ 1 << int(random.integers(8)), int(random.integers(256)), 255} - {data[at]}:
            _outcome(coding, data[:at] + bytes([byte]) + data[at + 1 :], array)
    for _ in range(damage // 4):
        _outcome(coding, random.bytes(int(random.integers(0, 80))), array)


def _outcome(coding: Coding, data: bytes, array: np.ndarray) -> str:
    """Whether `data` is refused or decodes to an array of the right shape and dtype; anything else is an error."""
    try:
        decoded = coding.decode(data, array.shape, array.dtype)
    except FileError as error:
        refusal = str(error)
        if len(refusal) > 10 and "\n" not in refusal:
            return "refused"
        raise AssertionError(f"a refusal isn't one clear line: {refusal!r}") from error
    assert decoded.shape == array.shape, f"shape {decoded.shape} from damaged bytes"
    assert decoded.dtype == array.dtype, f"dtype {decoded.dtype} from damaged bytes"
    if decoded.dtype == np.bool_:
        assert decoded.view(np.uint8).max(initial=0) <= 1, "a bool that is neither 0 nor 1"
    return "decoded"
