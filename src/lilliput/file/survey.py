"""What can be told of a file without decoding a tensor: what it holds, and where its bytes are."""

from __future__ import annotations

from typing import Any

from lilliput.core.errors import FileError
from lilliput.file import entries, layout, manifest, strict_json
from lilliput.file.entries import Node
from lilliput.file.leaf import Leaf
from lilliput.file.source import Opened, entries_of, table_of


def describe(opened: Opened) -> dict[str, Any]:
    """Describes a file as plain data that JSON can hold.

    Args:
        opened: a file whose digest has been checked.

    Returns:
        `size` and its parts `header`, `graph`, `manifest`, `streams`, `floats` (bytes); `version`, `digest`, `form`;
        `parameters` (elements of all weights); `weights` and `constants`: by name, each with `shape`, `dtype`, `bytes`,
        `leaves` (`part`, `dtype`, `shape`, `coding`, `bytes`) and, if packed, `method` (as in
        `prune/sparse > share/kmeans`); `aliases`, `cuts`, `blocks`, `recipe`, `facts`, `quantizers` (a word on each, by
        layer); `nodes`: of the graph, or None.

    Raises:
        FileError: a manifest that is wrong.
    """
    table, streams = table_of(opened)
    found, weights, constants = entries_of(opened, table, streams, 2**62)
    aliases = entries.aliases(table.get("a", {}), weights, constants)
    whole = len(opened.buffers[layout.MANIFEST])
    bare = manifest.deflate(strict_json.dump({k: v for k, v in table.items() if k != "g"}, "manifest"))
    graph = whole - len(bare) if "g" in table else 0
    named = any(leaf.how == "named" for leaf in found.leaves)
    return {
        "size": opened.size,
        "header": opened.head,
        "graph": graph,
        "manifest": whole - graph,
        "streams": sum(_stored(leaf) for leaf in found.leaves if leaf.code not in layout.FLOATS),
        "floats": sum(_stored(leaf) for leaf in found.leaves if leaf.code in layout.FLOATS),
        "version": layout.VERSION,
        "digest": opened.digest,
        "form": "named" if named else "solid",
        "weights": {name: _weight(node, found.leaves) for name, node in weights.items()},
        "constants": {name: _weight(node, found.leaves) for name, node in constants.items()},
        "aliases": aliases,
        "cuts": [
            {"parameter": cut.parameter, "axis": cut.axis, "size": cut.size, "kept": len(cut.kept)}
            for cut in entries.cuts(table.get("k", []))
        ],
        "blocks": [skip.module for skip in entries.blocks(table.get("b", []))],
        "recipe": table.get("r"),
        "facts": table.get("f", {}),
        "quantizers": {path: own.describe() for path, own in entries.quantizers(table.get("q", {})).items()},
        "nodes": _nodes(table["g"]) if "g" in table else None,
    }


def _stored(leaf: Leaf) -> int:
    """Bytes that a leaf takes in the file, manifest aside."""
    if leaf.how in {"=", "copy"}:
        return 0
    if leaf.how == "named":
        return leaf.decoded
    return int(leaf.argument)


def _weight(node: Node | int, leaves: list[Leaf]) -> dict[str, Any]:
    own = [leaves[number] for number in _numbers(node)]
    shape, code = (node.shape, layout.CODES[node.dtype]) if isinstance(node, Node) else (own[0].shape, own[0].code)
    about: dict[str, Any] = {"shape": list(shape), "dtype": code, "bytes": sum(_stored(leaf) for leaf in own)}
    if isinstance(node, Node):
        about["method"] = _methods(node)
        about["settings"] = dict(node.settings)
    about["leaves"] = [
        {
            "part": leaf.part,
            "dtype": leaf.code,
            "shape": list(leaf.shape),
            "coding": leaf.how,
            "bytes": _stored(leaf),
        }
        for leaf in own
    ]
    return about


def _numbers(node: Node | int) -> list[int]:
    if isinstance(node, int):
        return [node]
    return [number for part in node.parts.values() for number in _numbers(part)]


def _methods(node: Node) -> str:
    """Path of the methods, the outermost first, in the order of the parts."""
    inner = [_methods(part) for part in node.parts.values() if isinstance(part, Node)]
    return " > ".join([node.method, *dict.fromkeys(inner)])


def _nodes(data: Any) -> int:
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        raise FileError("manifest: the graph has no list of nodes")
    return len(data["nodes"])
