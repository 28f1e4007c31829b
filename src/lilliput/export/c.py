"""Steps as one C99 file with its weights: no library but the standard one, no memory but its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from lilliput.export.steps import Add, Affine, Clip, Levels, Pool, Product, Shape, Steps

HEAD = """/* {name}: made by Lilliput. C99, no dependencies; -ffp-contract=off gives the same bits everywhere.
 *
 *     void {name}_run(const float *input, float *output);    {inputs} floats in ({shape}), {outputs} floats out
 *
 * One call at a time: it works in memory of its own, {memory} bytes.
 */
#include <math.h>
#include <stdint.h>

"""

READ = {
    "float": "{w}[k]",
    "int8": "{w}[k]",
    "shift": "({w}[k] == 0 ? 0 : {w}[k] > 0 ? (int32_t)1 << ({w}[k] - 1) : -((int32_t)1 << (-{w}[k] - 1)))",
    "ternary": "((int32_t)(({w}[k >> 2] >> ((k & 3) * 2)) & 3) - 1)",
    "binary": "(((int32_t)(({w}[k >> 3] >> (k & 7)) & 1)) * 2 - 1)",
}
"""How place k of a weight is read, by its form."""


def to_c(net: Steps, name: str = "net") -> str:
    """Writes a network as C.

    Args:
        net: of fixed sizes.
        name: what its functions and tables begin with.

    Returns:
        The whole file. `tests/export/test_c.py` compiles it with `-Wall -Werror`, runs it under the sanitizers of
        addresses and undefined behaviour, and compares it with `Steps` bit for bit.
    """
    sizes = [int(np.prod(shape)) for shape in net.shapes]
    tables: list[str] = []
    body: list[str] = []
    memory = 0
    for place, step in enumerate(net.steps):
        target = place + 1
        if not isinstance(step, Shape):
            tables.append(f"static float {name}_v{target}[{sizes[target]}];")
            memory += 4 * sizes[target]
        if isinstance(step, Levels):
            tables.append(f"static int16_t {name}_q{target}[{sizes[target]}];")
            memory += 2 * sizes[target]
        tables += _tables(net, step, target, name)
        body += ["    {", *(f"        {line}" for line in _lines(net, step, target, name)), "    }"]
    head = HEAD.format(
        name=name,
        inputs=sizes[0],
        shape=" x ".join(map(str, net.shapes[0])),
        outputs=sizes[net.output],
        memory=memory,
    )
    last = _value(net, net.output, name)
    body.append(f"    for (int32_t i = 0; i < {sizes[net.output]}; i++) output[i] = {last}[i];")
    run = [
        f"void {name}_run(const float *input, float *output);",
        f"void {name}_run(const float *input, float *output)",
    ]
    return head + "\n".join([*tables, "", *run, "{", *body, "}", ""])


def _value(net: Steps, place: int, name: str) -> str:
    """The array that holds a value."""
    while place and isinstance(net.steps[place - 1], Shape):
        place = net.steps[place - 1].source
    return f"{name}_v{place}" if place else "input"


def _codes(net: Steps, place: int, name: str) -> str:
    while isinstance(net.steps[place - 1], Shape):
        place = net.steps[place - 1].source
    return f"{name}_q{place}"


def _float(value: Any) -> str:
    number = float(np.float32(value))
    if not np.isfinite(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    return f"{number.hex()}f"


def _array(kind: str, label: str, items: Any) -> str:
    words = [_float(item) if kind == "float" else str(int(item)) for item in items]
    rows = [", ".join(words[start : start + 16]) for start in range(0, len(words), 16)]
    return f"static const {kind} {label}[{len(words)}] = {{\n    " + ",\n    ".join(rows) + "\n};"


def _tables(net: Steps, step: Any, target: int, name: str) -> list[str]:
    """The constants of a step."""
    label = f"{name}_w{target}"
    if isinstance(step, Affine):
        return [_array("float", f"{label}_a", step.factor), _array("float", f"{label}_b", step.shift)]
    if not isinstance(step, Product):
        return []
    levels = net.coded(step)
    values, form = step.weight.values.ravel(), step.weight.form
    beside = [
        _array("float", f"{label}_s", step.factors(None if levels is None else levels.scale)),
        _array("float", f"{label}_b", step.bias),
    ]
    if form == "float":
        return [_array("float", label, values), *beside]
    if form == "int8":
        return [_array("int8_t", label, values), *beside]
    if form == "shift":
        exponents = [0 if v == 0 else (int(abs(v)).bit_length()) * (1 if v > 0 else -1) for v in values]
        return [_array("int8_t", label, exponents), *beside]
    each, bits = (4, values + 1) if form == "ternary" else (8, values > 0)
    padded = np.pad(bits.astype(np.int64), (0, -len(bits) % each)).reshape(-1, each)
    packed = (padded << (np.arange(each) * (8 // each))).sum(1)
    return [_array("uint8_t", label, packed), *beside]


def _lines(net: Steps, step: Any, target: int, name: str) -> list[str]:
    """What a step does."""
    size = int(np.prod(net.shapes[target]))
    y = f"{name}_v{target}"
    x = _value(net, step.source, name)
    loop = f"for (int32_t i = 0; i < {size}; i++)"
    match step:
        case Shape():
            lines = ["/* the same numbers in another shape */"]
        case Clip():
            low, high = _float(step.low), _float(step.high)
            lines = [f"{loop} {{", f"    float v = {x}[i];"]
            lines += [f"    v = v > {low} ? v : {low};"] if step.low > -np.inf else []
            lines += [f"    v = v < {high} ? v : {high};"] if step.high < np.inf else []
            lines += [f"    {y}[i] = v;", "}"]
        case Add():
            lines = [f"{loop} {y}[i] = {x}[i] + {_value(net, step.other, name)}[i];"]
        case Affine():
            each, label = size // len(step.factor), f"{name}_w{target}"
            lines = [f"{loop} {y}[i] = {x}[i] * {label}_a[i / {each}] + {label}_b[i / {each}];"]
        case Levels():
            lines = _levels(step, loop, (x, y, f"{name}_q{target}"))
        case Pool():
            lines = _pool(net, step, target, (x, y))
        case _:
            lines = _product(net, step, target, name)
    return lines


def _levels(step: Levels, loop: str, names: tuple[str, str, str]) -> list[str]:
    x, y, q = names
    if step.signs:
        return [f"{loop} {{", f"    {q}[i] = {x}[i] >= 0.0f ? 1 : -1;", f"    {y}[i] = (float){q}[i];", "}"]
    low, high = _float(step.low), _float(step.high)
    return [
        f"{loop} {{",
        f"    float v = rintf({x}[i] / {_float(step.scale)}) + {_float(step.zero)};",
        f"    v = v > {low} ? v : {low};",
        f"    v = v < {high} ? v : {high};",
        f"    {q}[i] = (int16_t)((int32_t)v - ({step.zero}));",
        f"    {y}[i] = (float){q}[i] * {_float(step.scale)};",
        "}",
    ]


def _pool(net: Steps, step: Pool, target: int, names: tuple[str, str]) -> list[str]:
    x, y = names
    (channels, height, width), (_, tall, wide) = net.shapes[step.source], net.shapes[target]
    each = "v + w" if step.mean else "v > w ? v : w"
    return [
        f"for (int32_t c = 0; c < {channels}; c++)",
        f"for (int32_t a = 0; a < {tall}; a++)",
        f"for (int32_t b = 0; b < {wide}; b++) {{",
        "    float v = 0.0f;",
        "    int32_t count = 0;",
        f"    for (int32_t m = 0; m < {step.kernel[0]}; m++)",
        f"    for (int32_t n = 0; n < {step.kernel[1]}; n++) {{",
        f"        const int32_t r = a * {step.stride[0]} - {step.padding[0]} + m;",
        f"        const int32_t s = b * {step.stride[1]} - {step.padding[1]} + n;",
        f"        if (r < 0 || r >= {height} || s < 0 || s >= {width}) continue;",
        f"        const float w = {x}[(c * {height} + r) * {width} + s];",
        f"        v = count == 0 ? w : {each};",
        "        count++;",
        "    }",
        f"    {y}[(c * {tall} + a) * {wide} + b] = {'v / (float)count' if step.mean else 'v'};",
        "}",
    ]


def _product(net: Steps, step: Product, target: int, name: str) -> list[str]:
    levels = net.coded(step)
    x = _codes(net, step.source, name) if levels is not None else _value(net, step.source, name)
    label, y, form = f"{name}_w{target}", f"{name}_v{target}", step.weight.form
    kind = "int32_t" if levels is not None else "float"
    read = READ[form].format(w=label)
    term = f"{read} * {x}" if levels is not None else f"(float){read} * {x}"
    rows, columns = step.weight.values.shape
    last = f"(float)t * {label}_s[o] + {label}_b[o]"
    if not step.image:
        return [
            f"for (int32_t o = 0; o < {rows}; o++) {{",
            f"    {kind} t = 0;",
            f"    for (int32_t i = 0; i < {columns}; i++) {{",
            f"        const int32_t k = o * {columns} + i;",
            f"        t += {term}[i];",
            "    }",
            f"    {y}[o] = {last};",
            "}",
        ]
    (channels, height, width), (_, tall, wide) = net.shapes[step.source], net.shapes[target]
    each, group = channels // step.groups, rows // step.groups
    (m, n), (down, right), (top, left), (p, q) = step.kernel, step.stride, step.padding, step.dilation
    return [
        f"for (int32_t o = 0; o < {rows}; o++)",
        f"for (int32_t a = 0; a < {tall}; a++)",
        f"for (int32_t b = 0; b < {wide}; b++) {{",
        f"    {kind} t = 0;",
        f"    for (int32_t c = 0; c < {each}; c++)",
        f"    for (int32_t m = 0; m < {m}; m++)",
        f"    for (int32_t n = 0; n < {n}; n++) {{",
        f"        const int32_t r = a * {down} - {top} + m * {p}, s = b * {right} - {left} + n * {q};",
        f"        if (r < 0 || r >= {height} || s < 0 || s >= {width}) continue;",
        f"        const int32_t k = ((o * {each} + c) * {m} + m) * {n} + n;",
        f"        t += {term}[((o / {group} * {each} + c) * {height} + r) * {width} + s];",
        "    }",
        f"    {y}[(o * {tall} + a) * {wide} + b] = {last};",
        "}",
    ]
