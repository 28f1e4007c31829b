"""`docs/file-format.md` is enough: a reader of its own, NumPy and zlib alone, written from the document."""

import hashlib
import json
import re
import zlib
from bisect import bisect_right
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "file-format.md"
TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}


def dictionary():
    """The bytes of section 6."""
    lines = re.search(r"```text\n(.*?)\n```", DOCUMENT.read_text("utf-8"), re.DOTALL)[1]
    return lines.replace("\n", "").encode("ascii")


def elements(data, code, shape):
    """A float or integer array from its bytes; bfloat16 as float32."""
    if code == "BF16":
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(data, TYPES[code]).reshape(shape)


class Bytes:
    """Varints and packed values from the front of a stream."""

    def __init__(self, data):
        self.data = data

    def take(self, count):
        part, self.data = self.data[:count], self.data[count:]
        assert len(part) == count
        return part

    def varint(self):
        value, shift = 0, 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def packed(self, count, width):
        whole = int.from_bytes(self.take(-(-count * width // 8)), "little")
        return [whole >> (i * width) & ((1 << width) - 1) for i in range(count)]


class Bits:
    """A header read bit by bit."""

    def __init__(self, data):
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def fixed(self, width):
        assert width <= self.left
        part, self.value, self.left = self.value & ((1 << width) - 1), self.value >> width, self.left - width
        return part

    def unary(self):
        count = 0
        while self.fixed(1):
            count += 1
        return count

    def gamma(self):
        k = self.unary()
        return (1 << k) + self.fixed(k) - 1

    def rice(self, count):
        p = self.fixed(4)
        quotients = [self.unary() for _ in range(count)]
        return [(q << p) + self.fixed(p) for q in quotients]

    def alphabet(self):
        low, count = signed(self.gamma()), self.gamma() + 1
        gaps = [self.gamma() + 1 for _ in range(count - 1)] if self.fixed(1) else [1] * (count - 1)
        return list(accumulate([low, *gaps]))


def signed(value):
    """Undoes zigzag."""
    return -(value + 1) // 2 if value % 2 else value // 2


def bitpack(data, shape):
    source, count = Bytes(data), int(np.prod(shape))
    low, (width,) = signed(source.varint()), source.take(1)
    return [low + value for value in source.packed(count, width)], source


def compressed(data, rows, columns):
    source, matrix = Bytes(data), np.zeros((rows, columns), np.int64)
    a, low, (width,) = source.varint(), signed(source.varint()), source.take(1)
    values, places = source.packed(a, width), source.packed(a, (columns - 1).bit_length())
    starts = source.packed(rows + 1, a.bit_length())
    assert not source.data
    for row in range(rows):
        for i in range(starts[row], starts[row + 1]):
            matrix[row, places[i]] = low + values[i]
    return matrix


def csr(data, shape):
    rows = shape[0] if shape else 1
    return compressed(data, rows, int(np.prod(shape)) // rows).reshape(-1)


def csc(data, shape):
    rows = shape[0] if shape else 1
    return compressed(data, int(np.prod(shape)) // rows, rows).T.reshape(-1)


def relative(data, shape):
    source, out = Bytes(data), [0] * int(np.prod(shape))
    count, (p, kinds) = source.varint(), source.take(2)
    length, codings = source.varint(), (bitpack, huffman)
    if count == 0:
        return out
    assert 2 <= p <= 8
    gaps = list(plain(codings[kinds & 15], source.take(length), (count,)))
    values = plain(codings[kinds >> 4], source.data, (count,))
    at = -1
    for gap, value in zip(gaps, values):
        at += gap + 1
        out[at] = value
    return out


def huffman(data, shape):
    source, count = Bytes(data), int(np.prod(shape))
    header = Bits(source.take(source.varint()))
    low, shift, highs = signed(header.gamma()), header.fixed(6), header.alphabet()
    lengths = [1 + total for total in accumulate(signed(step) for step in header.rice(len(highs)))]
    size = header.gamma()
    run_bits = [header.fixed(size.bit_length()) for _ in range(1 << header.fixed(4))]
    assert sum(run_bits) == size
    words, word, before = {}, -1, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        word = (word + 1) << (length - before) if before else 0
        words[length, word], before = highs[symbol], length
    code = source.take(-(-size // 8))
    text, out, at = "".join(f"{byte:08b}" for byte in code), [], 0
    for _ in range(count):
        length = 1
        while (length, int(text[at : at + length], 2)) not in words:
            length += 1
        out.append(words[length, int(text[at : at + length], 2)])
        at += length
    rest = source.packed(count, shift)
    assert not source.data
    return [low + (high << shift) + part for high, part in zip(out, rest)]


MANTISSA = [round(2**24 * 2 ** (i / 16)) for i in range(16)]


def frequencies(heights, k):
    """Section 4, rans: from a curve to frequencies that sum to 2^k."""
    weights = []
    for height in heights:
        z = min(max(heights) - height, 288)
        octaves = -(-z // 16)
        weights.append(MANTISSA[16 * octaves - z] >> octaves)
    small = set()
    while True:
        total, mass = 2**k - len(small), sum(w for s, w in enumerate(weights) if s not in small)
        more = {s for s, w in enumerate(weights) if s not in small and w * total < mass}
        if not more:
            break
        small |= more
    shares = [1 if s in small else w * total // mass for s, w in enumerate(weights)]
    order = sorted((-(w * total % mass), s) for s, w in enumerate(weights) if s not in small)
    for _, symbol in order[: 2**k - sum(shares)]:
        shares[symbol] += 1
    return shares


MET = set()


def curves(header, size):
    """Section 4, rans: heights of each level."""
    finesse, resolution, centre = header.fixed(4), header.fixed(3), header.fixed((size - 1).bit_length())
    levels = header.fixed(6) + 1
    anchors = header.fixed(6) + 1 if levels > 1 else 1
    d, found = 0, {centre}
    while d < size:
        d += max(1, d >> finesse)
        found |= {max(centre - d, 0), min(centre + d, size - 1)}
    places = sorted(found)
    MET.add((levels > 1, anchors > 1, len(places) < size))
    middle, slopes, kept = places.index(centre), [0] * (len(places) - 1), []
    for _ in range(anchors):
        slopes = [slope + signed(step) for slope, step in zip(slopes, header.rice(len(places) - 1))]
        right = len(places) - 1 - middle
        knots = [*list(accumulate(slopes[right:]))[::-1], 0, *accumulate(slopes[:right])]
        knots = [height * 2 ** (4 - resolution) for height in knots]
        curve = [knots[0]]
        for (a, b), (h, g) in zip(pairwise(places), pairwise(knots)):
            curve += [h + (g - h) * (x - a) // (b - a) for x in range(a + 1, b + 1)]
        kept.append(curve)
    result = []
    for level in range(levels):
        if anchors == 1 or levels == 1:
            result.append(kept[0])
            continue
        t = level * (anchors - 1)
        i = min(t // (levels - 1), anchors - 2)
        q = t - i * (levels - 1)
        result.append([low + (high - low) * q // (levels - 1) for low, high in zip(kept[i], kept[i + 1])])
    return result


def rans(data, shape):
    source = Bytes(data)
    header = Bits(source.take(source.varint()))
    k, lanes, values = 12 + header.fixed(2), 1 << header.fixed(4), header.alphabet()
    tables = [frequencies(heights, k) for heights in curves(header, len(values))]
    sizes = [*shape[:1], *[1] * (1 - len(shape)), *shape[1:2], *[1] * (2 - max(len(shape), 1)), int(np.prod(shape[2:]))]
    maps = [[0] * size for size in sizes]
    for number, size in enumerate(sizes if len(tables) > 1 else ()):
        if header.fixed(1):
            middle = header.fixed(6)
            maps[number] = [middle + signed(step) for step in header.rice(size)]
    assert header.left < 8
    starts = [[0, *accumulate(table)][:-1] for table in tables]
    states, words = (
        np.frombuffer(source.take(4 * lanes), "<u4").tolist(),
        iter(np.frombuffer(source.data, "<u2").tolist()),
    )
    out, lane = [], 0
    for level in (r + j + p for r in maps[0] for j in maps[1] for p in maps[2]):
        x = states[lane]
        slot = x % 2**k
        symbol = bisect_right(starts[level], slot) - 1
        x = tables[level][symbol] * (x >> k) + slot - starts[level][symbol]
        states[lane] = x if x >= 2**16 else x << 16 | next(words)
        out.append(values[symbol])
        lane = (lane + 1) % lanes
    assert set(states) == {2**16}
    assert next(words, None) is None
    return out


CODINGS = {"bitpack": bitpack, "csr": csr, "csc": csc, "relative": relative, "huffman": huffman, "rans": rans}


def plain(coding, data, shape):
    """The values alone; every byte must have been used."""
    if coding is not bitpack:
        return coding(data, shape)
    values, source = bitpack(data, shape)
    assert not source.data
    return values


def uniform(packed, parts):
    codes, scale = parts["codes"].reshape(-1), parts["scale"]
    run = len(codes) // max(len(scale), 1)
    step = codes.astype(np.int64) - np.repeat(parts.get("zero", np.zeros(len(scale), np.int64)).astype(np.int64), run)
    values = step.astype(scale.dtype)
    if "levels" in parts:
        values = parts["levels"].astype(scale.dtype)[step - min(0, int(step.min()))]
    return values * np.repeat(scale, run)


def sparse(packed, parts):
    if "mask" not in parts:
        return parts["values"]
    weight = np.zeros(parts["mask"].shape, parts["values"].dtype)
    weight[parts["mask"]] = parts["values"]
    return weight


def kmeans(packed, parts):
    zero = [0] if packed["x"]["zero"] else []
    return np.concatenate([np.array(zero, parts["codebook"].dtype), parts["codebook"]])[parts["codes"]]


def minifloat(packed, parts):
    width, mantissa = packed["x"]["exponent"], packed["x"]["mantissa"]
    exponent, fraction = np.divmod(np.abs(parts["codes"].astype(np.int64)), 2**mantissa)
    value = 2.0 ** (exponent - 2 ** (width - 1) + 1) * (1 + fraction / 2**mantissa)
    return np.where(exponent > 0, np.sign(parts["codes"]) * value, 0.0)


def power_of_two(packed, parts):
    codes = parts["codes"].astype(np.int64)
    total = sum(np.sign(c) * 2.0 ** (packed["x"]["top"] - t + 1 - np.abs(c)) for t, c in enumerate(codes))
    return total * parts.get("scale", np.ones(1)).astype(np.float64)


def incremental(packed, parts):
    codes = parts["codes"].astype(np.int64)
    weight = np.where(codes == -128, 0.0, np.sign(codes) * 2.0 ** (packed["x"]["top"] + 1 - np.abs(codes)))
    weight[codes == -128] = parts["values"]
    return weight


def trained_ternary(packed, parts):
    zero = np.zeros(1, parts["positive"].dtype)
    return np.concatenate([-parts["negative"], zero, parts["positive"]])[parts["codes"].astype(np.int64) + 1]


def binary_bases(packed, parts):
    rows = parts["scale"].shape[1]
    weight = np.zeros((rows, parts["codes"][0].size // max(rows, 1)), parts["scale"].dtype)
    for codes, scale in zip(parts["codes"], parts["scale"]):
        weight = weight + np.where(codes.reshape(weight.shape), scale[:, None], -scale[:, None])
    return weight


def product(packed, parts):
    codes, codebook = parts["codes"].astype(np.int64), parts["codebook"]
    found = codebook[np.arange(len(codebook)).reshape(-1, *[1] * (codes.ndim - 2)), codes]
    weight = np.moveaxis(found, -1, 2).reshape(codes.shape[0], -1, *codes.shape[2:])
    return weight[:, : packed["s"][1]]


def xxh32(data, seed):
    """The specification, for fewer than 16 bytes and whole words."""
    rotated = lambda x, r: (x << r | x >> (32 - r)) & 0xFFFFFFFF  # noqa: E731
    value = (seed + 374761393 + len(data)) & 0xFFFFFFFF
    for word in np.frombuffer(data, "<u4").tolist():
        value = rotated((value + word * 3266489917) & 0xFFFFFFFF, 17) * 668265263 & 0xFFFFFFFF
    value = (value ^ value >> 15) * 2246822519 & 0xFFFFFFFF
    value = (value ^ value >> 13) * 3266489917 & 0xFFFFFFFF
    return value ^ value >> 16


def hashed(packed, parts):
    values, seed, weight = parts["values"], packed["x"]["seed"], []
    for i in range(packed["s"][0]):
        for j in range(int(np.prod(packed["s"][1:]))):
            key = np.array([i, j], "<u4").tobytes()
            value = values[xxh32(key, seed) * len(values) >> 32]
            weight.append(-value if xxh32(key, (seed + 1) % 2**32) >= 2**31 else value)
    return np.array(weight, values.dtype)


METHODS = {
    "share/product": product,
    "share/hashed": hashed,
    "quantize/binary_bases": binary_bases,
    "quantize/factorized": lambda packed, parts: (parts["x"] * parts["d"].astype(float)) @ parts["y"].T.astype(float),
    "quantize/incremental": incremental,
    "quantize/trained_ternary": trained_ternary,
    "quantize/uniform": uniform,
    "quantize/minifloat": minifloat,
    "quantize/power_of_two": power_of_two,
    "quantize/float16": lambda packed, parts: parts["values"],
    "prune/sparse": sparse,
    "share/kmeans": kmeans,
    "factorize/svd": lambda packed, parts: parts["u"] @ parts["v"],
}


class Reader:
    """Reads a file as the document says."""

    def __init__(self, data):
        size = int.from_bytes(data[:8], "little")
        header, self.codings = data[8 : 8 + size], set()
        match = re.match(rb'\{"__metadata__":\{"format":"lilliput","version":"1","sha256":"([0-9a-f]{64})"\}', header)
        assert hashlib.sha256(data.replace(match[1], b"0" * 64, 1)).hexdigest() == match[1].decode()
        self.entries, body = json.loads(header), data[8 + size :]
        del self.entries["__metadata__"]
        self.bytes = {name: body[slice(*entry["data_offsets"])] for name, entry in self.entries.items()}
        text = zlib.decompressobj(-15, dictionary()).decompress(self.bytes["lilliput.manifest"])
        self.manifest, self.streams = json.loads(text), Bytes(self.bytes.get("lilliput.streams", b""))
        self.leaves = []
        self.weights = {name: self.weight(name, "", entry) for name, entry in self.manifest["w"].items()}
        self.constants = {name: self.weight(name, "", entry) for name, entry in self.manifest.get("c", {}).items()}
        assert not self.streams.data

    def weight(self, name, path, entry):
        if isinstance(entry, list):
            self.leaves.append(self.leaf(f"{name}/{path}" if path else name, *entry))
            return self.leaves[-1]
        parts = {part: self.weight(name, f"{path}.{part}" if path else part, item) for part, item in entry["p"].items()}
        weight = METHODS[entry["m"]](entry, parts).reshape(entry["s"])
        return weight.astype(TYPES[entry.get("d", "F32")])

    def leaf(self, name, code, shape, how=None, argument=None):
        count = int(np.prod(shape))
        if how is None:
            assert (self.entries[name]["dtype"], self.entries[name]["shape"]) == (code, shape)
            return elements(self.bytes[name], code, shape)
        if how == "raw":
            return elements(
                self.streams.take(count * (2 if code == "BF16" else np.dtype(TYPES[code]).itemsize)), code, shape
            )
        if how == "=":
            return elements(bytes.fromhex(argument) * count, code, shape)
        if how == "copy":
            return self.leaves[argument]
        self.codings.add(how)
        return np.array(plain(CODINGS[how], self.streams.take(argument), shape)).astype(TYPES[code]).reshape(shape)


# From here on the package itself, for what is to be read and what it should be.


def compare(artifact, form):
    """Reads what the package writes; returns the codings that were met."""
    from lilliput.file import write

    reader = Reader(write.dumps(artifact, form))
    for name in artifact.weights:
        expected = artifact.weight(name)
        if any(product in str(reader.manifest["w"][name]) for product in ("svd", "quantize/factorized")):
            np.testing.assert_allclose(
                reader.weights[name], expected.numpy(), rtol=1e-5 if expected.itemsize > 2 else 1e-3, atol=1e-7
            )
        else:
            expected = expected.float() if str(expected.dtype) == "torch.bfloat16" else expected
            np.testing.assert_array_equal(reader.weights[name], expected.numpy())
    for name, tensor in artifact.constants.items():
        np.testing.assert_array_equal(reader.constants[name], tensor.numpy())
    return reader.codings


@pytest.mark.parametrize("form", ["named", "solid"])
@pytest.mark.parametrize("name", ["shared", "uniform", "affine", "sparse", "factors", "odd"])
def test_the_document_is_enough(name, form):
    from lilliput.testing import small_files

    compare(small_files.odd() if name == "odd" else small_files.artifact(name, graph=False), form)


@pytest.mark.parametrize("per", ["tensor", "row", "group"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("cell_mean", [True, False])
def test_every_kind_of_uniform(per, bits, symmetric, cell_mean):
    import torch

    from lilliput.file.artifact import Artifact
    from lilliput.quantize.uniform import Uniform

    numbers = torch.Generator().manual_seed(bits)
    weight = torch.randn(24, 32, generator=numbers) * torch.logspace(-1, 1, 24)[:, None]
    method = Uniform(bits=bits, symmetric=symmetric, per=per, group=16, cell_mean=cell_mean)
    compare(Artifact({"a": method.pack(weight), "b": method.pack(weight.double())}), "named")


def quantizers():
    from lilliput.quantize.binary_bases import BinaryBases
    from lilliput.quantize.factorized import Factorized
    from lilliput.quantize.fixed_point import FixedPoint
    from lilliput.quantize.flexpoint import Flexpoint
    from lilliput.quantize.incremental import Incremental
    from lilliput.quantize.minifloat import Minifloat
    from lilliput.quantize.power_of_two import PowerOfTwo
    from lilliput.quantize.qnn import Qnn
    from lilliput.quantize.shift import Shift
    from lilliput.quantize.trained_ternary import TrainedTernary
    from lilliput.share.hashed import Hashed
    from lilliput.share.product import Product

    return (
        *(FixedPoint(bits=12), Minifloat(bits=8), Minifloat(bits=14), PowerOfTwo(), Shift(terms=3), TrainedTernary()),
        *(
            Incremental(portion=0.4),
            Incremental(bits=3),
            Qnn(spacing="log"),
            BinaryBases(bases=3),
            Factorized(),
            Flexpoint(),
            Product(width=5, k=6, correct=False),
            Hashed(seed=2**32 - 1),
        ),
    )


@pytest.mark.parametrize("method", quantizers(), ids=repr)
def test_forms_of_quantizers(method):
    import torch

    from lilliput.core.packed import finished
    from lilliput.file.artifact import Artifact

    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(5)) / 3
    weights = {"a": weight, "b": weight.double(), "c": weight.half()}
    packed = {name: finished(method, method.pack(value)) for name, value in weights.items()}
    compare(Artifact(packed), "named")


def test_a_convolution_of_runs():
    import torch

    from lilliput.file.artifact import Artifact
    from lilliput.share.product import Product

    weight = torch.randn(10, 5, 3, 2, generator=torch.Generator().manual_seed(5))
    compare(Artifact({"a": Product(width=2, k=6, correct=False).pack(weight)}), "named")


def test_every_coding(monkeypatch):
    """Levels and gaps too: skewed rows and columns, wide values, few non-zeros."""
    import torch

    from lilliput.coding import choose
    from lilliput.file.artifact import Artifact

    numbers = torch.Generator().manual_seed(3)
    spread = torch.logspace(0, 1.3, 64)
    leveled = torch.randn(64, 48, 3, 3, generator=numbers) * spread[:, None, None, None] * spread[:48, None, None] / 4
    held = {
        "leveled": leveled.clamp(-127, 127).to(torch.int8),
        "few": (torch.randn(40, 90, generator=numbers) * (torch.rand(40, 90, generator=numbers) < 0.04) * 3).to(
            torch.int16
        ),
        "wide": (torch.randn(3000, generator=numbers) * 1e6).to(torch.int32),
        "wider": torch.randint(-(2**62), 2**62, (40,), generator=numbers),
        "zero": torch.cat([torch.zeros(300, dtype=torch.int8), torch.ones(1, dtype=torch.int8)]),
    }
    met = compare(Artifact(held), "solid")
    for name, coding in choose.codings().items():

        def only(array, name=name, coding=coding):
            data = coding.encode(array)
            return (name, data) if data is not None else ("bitpack", choose.codings()["bitpack"].encode(array))

        monkeypatch.setattr(choose, "encode", only)
        met |= compare(Artifact(held), "solid")
    assert met == set(choose.codings()) == set(CODINGS)
    # Several levels, several anchors, and knots apart from one another have been met.
    assert all(any(each[part] for each in MET) for part in range(3))


def test_the_document_names_every_method_and_limit():
    from lilliput.coding import huffman, rans
    from lilliput.coding.parts import bits, curves, model, varint
    from lilliput.file import dictionary as written
    from lilliput.file import layout

    text = DOCUMENT.read_text("utf-8")
    assert dictionary() == written.DICTIONARY
    assert hashlib.sha256(dictionary()).hexdigest() in text
    assert f"Format version: **{layout.VERSION}**" in text
    for method in METHODS:
        assert f"**`{method}`**" in text
    for limit in (
        f"{layout.MAX_TENSORS:,}",
        f"{layout.MAX_TOKENS:,}",
        f"{layout.MAX_STRINGS:,}",
        f"{layout.MAX_DEPTH} deep",
    ):
        assert limit in text
    for number, constant in (
        (bits.LONGEST, "header (bits) of `rans` and `huffman` | {:,} bytes"),
        (bits.MOST_RICE, "n at most {:,}"),
        (model.MOST_SYMBOLS, "alphabet | {:,} values"),
        (huffman.MOST_SYMBOLS, "alphabet | {:,} values"),
        (rans.TABLE, "levels x 2^k at most {:,}"),
        (curves.STEEPEST, "from -{0:,} to {0:,}"),
        (huffman.LIMIT, "code words of 1 to {} bits"),
        (varint.LONGEST, "varint | {} bytes"),
    ):
        assert constant.format(number) in text


def header(*fields):
    """A decoder's header of fields (number, width), of gamma codes (number,), and of numbers in a rice code (list)."""
    from lilliput.coding.parts.bits import BitReader, BitWriter

    writer = BitWriter()
    for field in fields:
        if isinstance(field, list):
            writer.rice(np.array(field))
        else:
            writer.gamma(*field) if len(field) == 1 else writer.fixed(*field)
    return BitReader(memoryview(writer.to_bytes()))


def test_the_decoders_hold_to_the_limits_that_the_document_states():
    """At each limit the field is read, one beyond it is refused."""
    from lilliput.coding import rans
    from lilliput.coding.parts import alphabet, curves, varint
    from lilliput.coding.parts.bits import BitReader, BitWriter
    from lilliput.core.errors import FileError

    def refused(function, *arguments):
        with pytest.raises(FileError):
            function(*arguments)

    BitReader(memoryview(bytes(4 << 20)))
    refused(BitReader, memoryview(bytes((4 << 20) + 1)))
    zeros = bytes((1 << 20) // 8 + 2)
    assert BitReader(memoryview(zeros)).rice(1 << 20).size == 1 << 20
    refused(BitReader(memoryview(zeros)).rice, (1 << 20) + 1)
    assert varint.read(memoryview(varint.write(2**64 - 1)), 0) == (2**64 - 1, 10)
    refused(varint.read, memoryview(varint.write(2**64)), 0)
    assert alphabet.read_values(header((0,), (4095,), (0, 1)), 4096, np.dtype(np.int16)).size == 4096
    refused(alphabet.read_values, header((0,), (4096,), (0, 1)), 4096, np.dtype(np.int16))
    # Two symbols, the centre the first: one slope, of 2^20 or one more; zigzag doubles it.
    fields = [(15, 4), (4, 3), (0, 1), (0, 6)]
    for slope, fine in ((1 << 20, True), ((1 << 20) + 1, False), (-(1 << 20), True), (-(1 << 20) - 1, False)):
        numbers = [2 * slope if slope >= 0 else -2 * slope - 1]
        if fine:
            assert abs(int(curves.read(header(*fields, numbers), 2).knots.min())) in {0, 1 << 20}
        else:
            refused(curves.read, header(*fields, numbers), 2)
    refused(curves.apportion, np.ones((1, 2049), np.int64), 4096)
    assert curves.apportion(np.ones((1, 2048), np.int64), 4096).sum() == 4096
    # 64 levels x 2^14 slots is the most; with 2^15 it is refused for its table.
    for k, fine in ((14, True), (15, False)):
        writer = BitWriter()
        for number, width in ((k - 12, 2), (0, 4)):
            writer.fixed(number, width)
        for number in (0, 1):
            writer.gamma(number)
        for number, width in ((0, 1), *fields[:3], (63, 6), (0, 6)):
            writer.fixed(number, width)
        writer.rice(np.array([0]))
        writer.fixed(0, 3)
        head = writer.to_bytes()
        data = varint.write(len(head)) + head + (1 << 16).to_bytes(4, "little")
        with pytest.raises(FileError) as caught:
            rans.Rans().decode(data, (3,), np.dtype(np.int8))
        assert ("too many" in str(caught.value)) != fine
