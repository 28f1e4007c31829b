"""Canonical Huffman codes of at most 15 bits; of large alphabets only the high bits are Huffman coded."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lilliput.coding.parts import alphabet, bits, integers, packing, varint
from lilliput.coding.parts.alphabet import Alphabet
from lilliput.coding.parts.bits import BitReader, BitWriter
from lilliput.coding.parts.prefix_code import code_lengths, code_words, decoding_table
from lilliput.core.errors import FileError

LIMIT = 15
"""Longest code word."""
MOST_SYMBOLS = 4096
"""Larger alphabets are cut: as many low bits as needed are stored as they are."""
RUN_BITS = 16000
"""Bits from which a stream gets one run more: the 32 bits that a run's length takes stay within 0.2 %."""
MOST_RUNS = 1 << 12
FEW_RUNS = 16
"""Up to this many runs, Python's own integers are faster than NumPy's arrays."""
SMALL = 1 << 18
"""Up to this many bytes, they may be Python's integers."""


@dataclass(frozen=True)
class Huffman:
    """Canonical prefix code, least total length under the limit (package-merge), as in Deep Compression (1510.00149).

    A value is cut into high = (value - minimum) >> shift and `shift` low bits; shift is 0 up to 4096 distinct values.
    The elements are divided into runs of equal number, whose lengths in bits are stored, so that a decoder can walk
    many runs at once. Payload: length of the header (varint), header (bits: minimum, shift, alphabet of the high parts,
    differences of the code lengths, number of bits, number of runs and their lengths), code words (most significant bit
    first), low bits.

    >>> data = Huffman().encode(np.array([5] * 9 + [6, 7], np.uint8))
    >>> Huffman().decode(data, (11,), np.dtype(np.uint8)).tolist()
    [5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 7]
    """

    cost_is_exact: ClassVar[bool] = True

    def encode(self, array: np.ndarray) -> bytes | None:
        """Bytes of any integer array that isn't empty."""
        flat = integers.as_integers(array).reshape(-1)
        if flat.size == 0:
            return None
        plan = _Plan.of(flat)
        runs = _runs(plan.size)
        symbols = plan.letters.symbols(plan.high)
        widths = plan.lengths[symbols].astype(np.uint8)
        ends = np.cumsum(widths, dtype=np.int64)
        stops = np.minimum(np.arange(1, runs + 1) * -(-flat.size // runs), flat.size)
        run_bits = np.diff(np.concatenate([[0], ends[np.maximum(stops, 1) - 1]]))
        header = plan.header()
        for length in run_bits.tolist():
            header.fixed(length, plan.size.bit_length())
        head = header.to_bytes()
        words = code_words(plan.lengths)[symbols].astype(np.uint16)
        return varint.write(len(head)) + head + _write_words(words, widths, ends) + packing.pack(plan.low, plan.shift)

    def cost(self, array: np.ndarray) -> int:
        """Bytes that `encode` writes, exactly; `1 << 62` for an empty array."""
        flat = integers.as_integers(array).reshape(-1)
        if flat.size == 0:
            return 1 << 62
        plan = _Plan.of(flat)
        header = plan.header()
        header.fixed(0, plan.size.bit_length() * _runs(plan.size))
        head = len(header.to_bytes())
        return len(varint.write(head)) + head + -(-plan.size // 8) + packing.packed_size(flat.size, plan.shift)

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array of `shape` and `dtype`.

        Raises:
            FileError: no complete code, a bit pattern that is no code word, runs that don't fit their bits, a value
                out of the dtype's range, or bytes too few or too many.
        """
        data, count, stored = memoryview(data), integers.numel(shape), integers.check_target(dtype)
        length, start = varint.read(data, 0)
        if length > len(data) - start or count == 0:
            raise FileError("a Huffman stream is shorter than its header, or of an empty array")
        header, body = BitReader(data[start : start + length]), data[start + length :]
        low, shift = varint.unzigzag(header.gamma()), header.fixed(6)
        if shift >= 8 * stored.itemsize or (shift > 32 and shift % 8):
            raise FileError(f"a Huffman stream with {shift} low bits doesn't fit {dtype}")
        values = alphabet.read_values(header, MOST_SYMBOLS, np.dtype(np.int64)).tolist()
        lengths = np.cumsum(bits.unzigzag(header.rice(len(values)))) + 1
        symbols, sizes = decoding_table(lengths, LIMIT)
        packed = packing.packed_size(count, shift)
        if packed > len(body):
            raise FileError("a Huffman stream is cut off in its low bits")
        size, runs = header.gamma(), 1 << header.fixed(4)
        run_bits = np.array([header.fixed(size.bit_length()) for _ in range(runs)], np.int64)
        header.close()
        if -(-size // 8) != len(body) - packed or int(run_bits.sum()) != size:
            raise FileError("the runs of a Huffman stream don't fit its size")
        integers.check_range(low + (values[0] << shift), low + (values[-1] << shift), dtype)
        # modulo 2^64: what lies out of range is refused below, on Python's integers
        table = np.array([(low + (v << shift)) % (1 << 64) for v in values], np.uint64).astype(f"u{stored.itemsize}")
        out = np.empty(count, stored)
        unsigned = out.view(f"u{stored.itemsize}")
        _read_words(body[: len(body) - packed], run_bits, (symbols, sizes), table, unsigned)
        if shift:
            rest = np.empty(count, unsigned.dtype)
            packing.unpack(body[len(body) - packed :], count, shift, rest)
            top = unsigned == table[-1]
            if top.any():
                highest = low + (values[-1] << shift) + int(rest[top].max())
                integers.check_range(highest, highest, dtype)
            unsigned += rest
        return integers.finish(out, shape, dtype)


@dataclass(frozen=True)
class _Plan:
    """Minimum, cut, alphabet of the high parts and its code lengths."""

    minimum: int
    shift: int
    high: np.ndarray
    low: np.ndarray
    letters: Alphabet
    lengths: np.ndarray

    @staticmethod
    def of(flat: np.ndarray) -> "_Plan":
        least, most = integers.bounds(flat)
        letters = alphabet.of_array(flat)
        if len(letters) <= MOST_SYMBOLS:
            return _Plan(0, 0, flat, flat[:0], letters, code_lengths(letters.counts, LIMIT))
        shift = packing.usable_width(1 << ((most - least).bit_length() - MOST_SYMBOLS.bit_length()))
        raised = (flat.astype(np.int64) - np.int64(least)).view(np.uint64)  # wraps to the right difference
        high = (raised >> np.uint64(shift)).astype(np.int64)
        letters = alphabet.of_array(high)
        low = raised & np.uint64((1 << shift) - 1)
        return _Plan(least, shift, high, low, letters, code_lengths(letters.counts, LIMIT))

    @property
    def size(self) -> int:
        """Bits of all code words together."""
        return int(self.lengths @ self.letters.counts)

    def header(self) -> BitWriter:
        header = BitWriter()
        header.gamma(varint.zigzag(self.minimum))
        header.fixed(self.shift, 6)
        self.letters.write(header)
        header.rice(bits.zigzag(np.diff(self.lengths, prepend=1)))
        header.gamma(self.size)
        header.fixed(_runs(self.size).bit_length() - 1, 4)
        return header


def _runs(size: int) -> int:
    """Number of runs of a stream of `size` bits, a power of two."""
    return min(1 << max((size // RUN_BITS).bit_length() - 1, 0), MOST_RUNS)


def _write_words(words: np.ndarray, widths: np.ndarray, ends: np.ndarray) -> bytes:
    """Code words one behind the other, most significant bit first."""
    stream = np.zeros(int(ends[-1]), np.uint8)
    for start in range(0, words.size, 1 << 20):
        part = slice(start, start + (1 << 20))
        word, width, end = words[part], widths[part], ends[part]
        for bit in range(int(width.max())):
            live = width > bit
            stream[end[live] - 1 - bit] = (word[live] >> bit) & 1
    return np.packbits(stream).tobytes()


def _read_words(
    data: memoryview, run_bits: np.ndarray, code: tuple[np.ndarray, np.ndarray], table: np.ndarray, out: np.ndarray
) -> None:
    """Decode all runs in step into `out`.

    Raises:
        FileError: bits that are no code word, or a run that doesn't end where the next one starts.
    """
    symbols, sizes = code
    runs, each = run_bits.size, -(-out.size // run_bits.size)
    used = np.clip(out.size - np.arange(runs) * each, 0, each)  # elements of each run: the last ones may be short
    padded = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(4, np.uint8)]).astype(np.uint32)
    windows = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
    stops = np.cumsum(run_bits)
    at = stops - run_bits
    if runs <= FEW_RUNS and windows.size <= SMALL:
        for run, start in enumerate(at.tolist()):
            found, at[run] = _walk(windows, start, int(used[run]), code)
            out[run * each : run * each + len(found)] = table[found]
    for step in range(each if runs > FEW_RUNS or windows.size > SMALL else 0):
        live = int((used > step).sum())
        position = at[:live]
        place = position >> 3
        if live and int(place.max()) >= windows.size:
            raise FileError("a Huffman stream ends before its values do")
        following = (windows[place] << (position & 7).astype(np.uint32)) >> np.uint32(32 - LIMIT)
        width = sizes[following]
        if not width.all():
            raise FileError("a Huffman stream holds bits that are no code word")
        out[step : (live - 1) * each + step + 1 : each] = table[symbols[following]]
        at[:live] += width
    if (at != stops).any():
        raise FileError("a run of a Huffman stream doesn't end where the next one starts")
    spare = 8 * len(data) - int(stops[-1])
    if spare and data[-1] & ((1 << spare) - 1):
        raise FileError("unused bits at the end of a Huffman stream are not zero")


def _walk(windows: np.ndarray, at: int, count: int, code: tuple[np.ndarray, np.ndarray]) -> tuple[list[int], int]:
    """Decode one run from bit `at` on, a symbol at a time: the symbols and the bit behind them."""
    ahead, symbols, sizes, found = windows.tolist(), code[0].tolist(), code[1].tolist(), []
    shift, mask, last = 32 - LIMIT, (1 << LIMIT) - 1, 8 * len(ahead) - 8
    for _ in range(count):
        if at > last + 7:
            raise FileError("a Huffman stream ends before its values do")
        following = ahead[at >> 3] >> (shift - (at & 7)) & mask
        width = sizes[following]
        if not width:
            raise FileError("a Huffman stream holds bits that are no code word")
        found.append(symbols[following])
        at += width
    return found, at
