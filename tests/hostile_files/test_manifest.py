"""Manifests that lie about shapes, lengths, codings, methods, settings, copies, aliases, cuts, recipes; all sealed."""

import json
from dataclasses import replace

import pytest

from lilliput.testing.mutate import Forged

SIZES = [-1, 2.0, True, "2", None, [2], 2**31, 2**40, 2**63, 2**64, 1e308]


def one(entry, streams=b"", **more):
    """A file of one weight `w`."""
    return Forged(json.dumps({"w": {"w": entry}, **more}).encode(), streams).seal()


def packed(**changes):
    """A file of one uniform weight, 2 x 3, some of it replaced."""
    codes = ["I8", [2, 3], "=", "03"]
    entry = {"m": "quantize/uniform", "s": [2, 3], "x": {"per": "row", "group": 0}}
    entry["p"] = {"codes": codes, "scale": ["F32", [2], "=", "0000803f"]}
    return one({k: v for k, v in (entry | changes).items() if v != "absent"})


def test_the_forged_ones_would_be_read():
    from lilliput.file import read

    assert read.loads(packed()).state_dict()["w"].tolist() == [[3.0] * 3] * 2
    assert read.loads(one(["U8", [2], "bitpack", 2], b"\x06\x00")).weights["w"].tolist() == [3, 3]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_axes(refused, size):
    for how in (["="], ["=", "00"], ["raw"], []):
        refused(one(["U8", [size], *how]))
    refused(one(["U8", [size], "bitpack", 2], b"\x06\x00")) if size != 2**31 else None
    refused(packed(s=[size, 3]))
    refused(packed(s=[2, 3, size]))


@pytest.mark.parametrize("shape", [[0, 2**40], [2**40, 0], [2**32, 2**32], [2**21] * 3, [1] * 65, {}, "x", 3, None])
def test_shapes(refused, shape):
    # A shape of no elements is harmless but for its sizes, which no reader should have to multiply.
    for how in (["=", ""], ["=", "00"], ["bitpack", 0]):
        refused(one(["U8", shape, *how]))
    refused(one(["U8", shape, "bitpack", 2], b"\x06\x00"))


@pytest.mark.parametrize("count", [2**31 + 1, 2**40, 2**62])
def test_a_small_file_that_declares_too_much(refused, count):
    for code, how in (("U8", ["=", "00"]), ("BOOL", ["rans", 4]), ("F64", ["=", "00" * 8])):
        data = one([code, [count], *how], b"\0" * 4 if "rans" in how else b"")
        assert len(data) < 1000
        assert any(word in refused(data) for word in ("beyond", "no size"))
    assert any(word in refused(packed(s=[count, 1])) for word in ("beyond", "no size"))


def test_many_that_together_declare_too_much(refused):
    table = {"w": {f"w{i}": ["F32", [2**20], "=", "00000000"] for i in range(65)}}
    assert "beyond" in refused(Forged(json.dumps(table).encode()).seal())


@pytest.mark.parametrize("length", [*SIZES, 1, 3, 0])
def test_lengths_of_streams(refused, length):
    refused(one(["U8", [2], "bitpack", length], b"\x06\x00"))


@pytest.mark.parametrize(
    "coding", ["", "zip", "choose", "parts", "../rans", "__init__", "os", "RANS", None, 3, [], "x" * 999, "raw", "copy"]
)
def test_codings(refused, coding):
    refused(one(["U8", [2], coding, 2], b"\x06\x00"))


@pytest.mark.parametrize("element", ["", "0", "000", "zz", "0x", "-1", " 1", "02", None, 3, "00" * 9])
def test_elements(refused, element):
    refused(one(["BOOL", [2], "=", element]))


@pytest.mark.parametrize(
    "entry",
    [None, 3, "x", [], {}, ["U8"], ["U8", [2], "=", "00", 1], ["F32", [2], "raw", 8], ["U8", [2], "raw"], ["U8", [2]]],
)
def test_entries(refused, entry):
    refused(one(entry))


@pytest.mark.parametrize("source", [0, 1, 2, -1, True, "0", None, 2**63])
def test_copies_of_nothing(refused, source):
    table = {"a": ["F32", [1], "=", "00000000"], "w": ["F32", [1], "copy", source]}
    refused(Forged(json.dumps({"w": table}).encode()).seal())


@pytest.mark.parametrize(
    "method",
    [
        "", "os", "os/system", "quantize/", "quantize/none", "quantize/__init__", "../quantize/uniform",
        "quantize/../share/kmeans", "Quantize/uniform", "distill/logits", "run/dense", "prune/unstructured",
        "quantize/uniform/x", "quantize/solvers", 3, None, [], "quantize/" + "x" * 999, "quantize/uniform\0",
    ],
)  # fmt: skip
def test_methods(refused, method):
    refused(packed(m=method))


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"per": "row"}, {"per": "column", "group": 0}, {"per": "group", "group": 0},
        {"per": "group", "group": -1}, {"per": "group", "group": 2**70}, {"per": "row", "group": 0.5},
        {"per": "row", "group": True}, {"per": ["row"], "group": 0}, {"per": None, "group": 0}, {"../x": 1},
        {"x" * 99: 1}, {"per": "x" * 9999}, [], None, 3, {f"s{i}": i for i in range(99)},
    ],
)  # fmt: skip
def test_settings(refused, settings):
    refused(packed(x=settings))


@pytest.mark.parametrize(
    "parts",
    [
        {}, [], None, {"codes": ["I8", [2, 3], "=", "03"]},
        {"codes": ["I8", [6], "=", "03"], "scale": ["F32", [2], "=", "0000803f"]},
        {"codes": ["U8", [2, 3], "=", "03"], "scale": ["F32", [2], "=", "0000803f"]},
        {"codes": ["I8", [2, 3], "=", "03"], "scale": ["F32", [3], "=", "0000803f"]},
        {"codes": ["I8", [2, 3], "=", "03"], "scale": ["I8", [2], "=", "03"]},
        {"codes": ["I8", [2, 3], "=", "03"], "scale": ["F32", [2], "=", "0000c07f"]},
        {"codes": ["I8", [2, 3], "=", "03"], "scale": ["F32", [2], "=", "0000807f"]},
        {"a/b": ["I8", [2, 3], "=", "03"]}, {f"p{i}": ["I8", [1], "=", "03"] for i in range(99)},
    ],
)  # fmt: skip
def test_parts(refused, parts):
    refused(packed(p=parts))


@pytest.mark.parametrize("value", ["0000c07f", "0000807f", "000080ff"])
def test_a_codebook_that_is_not_finite(refused, value):
    parts = {"codes": ["U8", [2, 3], "=", "00"], "codebook": ["F32", [4], "=", value]}
    assert "NaN or infinity" in refused(packed(m="share/kmeans", x={"zero": False}, p=parts))


def test_codes_beyond_the_codebook(refused):
    parts = {"codes": ["U8", [2, 3], "=", "04"], "codebook": ["F32", [4], "=", "0000803f"]}
    assert "weight 'w' can't be unpacked" in refused(packed(m="share/kmeans", x={"zero": False}, p=parts))


@pytest.mark.parametrize("dtype", ["I8", "BOOL", "F8", None, 3])
def test_dtypes_of_weights(refused, dtype):
    refused(packed(d=dtype))


@pytest.mark.parametrize("key", ["m", "s", "p", "x"])
def test_missing_keys(refused, key):
    refused(packed(**{key: "absent"}))


def test_packed_again_and_again(refused):
    entry = ["F32", [1], "=", "00000000"]
    for _ in range(17):
        entry = {"m": "quantize/float16", "s": [1], "p": {"values": entry}}
    assert "too many times" in refused(one(entry))


@pytest.mark.parametrize(
    "more",
    [
        {"x": 1}, {"a": []}, {"a": {"b": "none"}}, {"a": {"w": "w"}}, {"a": {"b": 3}}, {"a": {"../b": "w"}},
        {"c": []}, {"c": {"w": ["U8", [1], "=", "00"]}}, {"c": {"v": {"m": "quantize/float16", "s": [1], "p": {}}}},
        {"f": []}, {"f": None}, {"k": {}}, {"k": [1]}, {"k": [["w", 0, 4]]}, {"k": [["w", 0, 4, [5]]]},
        {"k": [["w", 0, 4, [1, 0]]]}, {"k": [["w", 0, 4, [2, 3]]]}, {"k": [["w", -1, 4, [1]]]},
        {"k": [["w", 0, -4, [1]]]}, {"k": [["w", 0, True, [1]]]}, {"k": [["w", 0, 4, [1.0]]]},
        {"k": [["w", 0, 2**40, [1]]]}, {"k": [["../w", 0, 4, [1]]]}, {"k": [["w", 99, 4, [1]]]}, {"r": []},
        {"r": {"version": 2}}, {"r": {"rule": [{"steps": ["os/system"]}]}},
        {"r": {"rule": [{"steps": [{"method": "quantize/uniform", "bits": 99}]}]}},
        {"r": {"rule": [{"steps": [{"method": "quantize/uniform", "bits": 2**70}]}]}}, {"r": {"rule": [{"x": 1}]}},
        {"r": {"rule": [{"steps": [{"method": "prune/magnitude", "pattern": "../x"}]}]}},
        {"r": {"rule": [{"match": "\n" * 9000, "z": 1}]}},
    ],
)  # fmt: skip
def test_the_rest_of_the_manifest(refused, more):
    refused(one(["U8", [1], "=", "00"], **more))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"w":[]}',
        b'{"w":{}}{}',
        b'{"w":{},"w":{}}',
        b'{"w":{"a":["F32",[1],"=","00000000"],"a":1}}',
    ],
)
def test_texts(refused, text):
    refused(Forged(text).seal())


def test_streams_that_nobody_speaks_of(refused):
    assert "describes 0 bytes" in refused(Forged(b'{"w":{}}', b"xyz").seal())


def test_a_compressed_form_that_goes_on_or_breaks_off(pieces, refused):
    from lilliput.file import layout
    from lilliput.testing import mutate

    good = mutate.deflated(b'{"w":{}}')
    for packed_text in (good + b"\0", good[:-1], b"", b"\xff" * 9, good * 2):
        entry = {"dtype": "U8", "shape": [len(packed_text)], "data_offsets": [0, len(packed_text)]}
        assert "manifest" in refused(mutate.sealed(json.dumps({layout.MANIFEST: entry}).encode(), packed_text))


def test_manifest_and_streams_of_another_type(pieces, refused):
    whole = pieces()
    for name in ("lilliput.manifest", "lilliput.streams"):
        for changes in ({"dtype": "I8"}, {"shape": [1, 1]}):
            refused(
                replace(whole, entries={name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1], **changes}}).seal()
            )


def test_what_cannot_be_shown_is_spelled_out(refused):
    assert r"\x00\x1b" in refused(one(["U8", [1], "=", "00"], r={"\0\x1b": 1}))
    assert r"\u202e" in refused(packed(x={"per": "\u202e", "group": 0}))
