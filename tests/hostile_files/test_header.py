"""Headers of safetensors that lie: ranges, names, shapes, dtypes, doubled keys."""

from dataclasses import replace

import pytest

from lilliput.testing import mutate

BIAS = "4.bias"


def entry(pieces, **changes):
    """A file whose tensor `4.bias` (8 floats) is described in another way."""
    names = [name for name, *_ in pieces.floats]
    begin = sum(len(data) for *_, data in pieces.floats[: names.index(BIAS)])
    own = {"dtype": "F32", "shape": [8], "data_offsets": [begin, begin + 32]} | changes
    return replace(pieces, entries={BIAS: {k: v for k, v in own.items() if v != "absent"}}).seal()


def test_the_pieces_make_the_same_file(pieces):
    assert mutate.take_apart(entry(pieces())) == pieces()


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 32], [1, 33], [-32, 0], [32, 0], [0, 2**63], [2**63, 2**63 + 32], [0.0, 32], [True, 32], ["0", "32"],
        [None, 32], [0], [], [0, 32, 64], 32, None, {}, [[0], [32]], [10**9, 10**9 + 32],
    ],
)  # fmt: skip
def test_ranges(pieces, refused, offsets):
    refused(entry(pieces(), data_offsets=offsets))


@pytest.mark.parametrize(
    "shape",
    [
        [-8], [8.0], [True] * 8, ["8"], [None], 8, None, {}, [[8]], [2**63], [2**64], [0, 2**40], [2**40, 0],
        [2**32, 2**32, 0], [2**40], [7], [9], [], [1] * 65, [-2, -4], [2**62, 4], [1e400],
    ],
)  # fmt: skip
def test_shapes(pieces, refused, shape):
    refused(entry(pieces(), shape=shape))


@pytest.mark.parametrize(
    "code", ["F31", "f32", "C64", "F8_E4M3", "I32", "U32", "", None, 4, ["F32"], {}, "F32\0", "F64", "F16"]
)
def test_dtypes(pieces, refused, code):
    refused(entry(pieces(), dtype=code))


@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_missing_keys(pieces, refused, key):
    refused(entry(pieces(), **{key: "absent"}))


def test_keys_too_many(pieces, refused):
    refused(entry(pieces(), more=1))


@pytest.mark.parametrize("value", [None, [], "x", 3, True, {"dtype": "F32"}])
def test_entries_that_are_none(pieces, refused, value):
    refused(replace(pieces(), entries={"extra": value or []}).seal())


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "\\x",
        "c:/x",
        "c:\\x",
        "a\0b",
        "\n",
        "",
        ".",
        "a..b",
        "\x1b[31m",
        "\u202ex",
        "x" * 600,
    ],
)
def test_names(pieces, refused, name):
    """In the header, in the manifest, and in both."""
    whole = pieces()
    floats = tuple((name if old == BIAS else old, *rest) for old, *rest in whole.floats)
    table = whole.table
    table["w"] = {name if old == BIAS else old: value for old, value in table["w"].items()}
    refused(replace(whole, floats=floats).seal())
    refused(whole.with_table(table).seal())
    line = refused(replace(whole, floats=floats).with_table(table).seal())
    assert "\0" not in line


def test_missing_and_unmentioned_tensors(pieces, refused):
    whole = pieces()
    assert "no tensor of its own" in refused(replace(whole, floats=whole.floats[1:]).seal())
    extra = ("extra", "F32", (1,), b"\0" * 4)
    assert "not in the manifest" in refused(replace(whole, floats=(extra, *whole.floats)).seal())
    assert "manifest is missing" in refused(mutate.sealed(b"{}", b""))


def test_overlap_and_gap(pieces, refused):
    whole = pieces()
    first, second = (name for name, *_ in whole.floats[:2])
    length = len(whole.floats[0][3])
    own = {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}
    assert "overlaps" in refused(replace(whole, entries={second: own}).seal())
    assert "gap" in refused(replace(whole, entries={first: None}).seal())


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"\\u0061":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"x":"y"}}', b'{"\\u005f_metadata__":{"x":"y"}}',
    ],
)  # fmt: skip
def test_doubled_keys(refused, header):
    assert "stands twice" in refused(mutate.sealed(header, b""))


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b'"x"', b"{", b'{"a":}', b"{\xff}", b"{}{}", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}", b"{'a':1}", b'{"a":"\x01"}', b"{\xef\xbb\xbf}", '{"ä":1}'.encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_no_json(refused, header):
    refused(mutate.sealed(header, b""))
