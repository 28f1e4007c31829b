"""Random arguments of the operators in kernels/binary_linear.py."""

from lilliput.kernels.binary_linear import pack_signs, prepare


def pack_signs_case(draw, floats):
    return (floats(draw(0, 5), draw(0, 200)),)


def binary_linear_case(draw, floats):
    rows, n, outputs = draw(0, 9), draw(1, 200), draw(1, 140)
    x = floats(rows, n)
    bias = floats(outputs) if draw(0, 1) else None
    return pack_signs(x) if draw(0, 1) else x, prepare(floats(outputs, n)), floats(outputs), bias, n


CASES = {"pack_signs": pack_signs_case, "binary_linear": binary_linear_case}
# How far a variant may be from the reference (default: not at all), relative to its largest number.
TOLERANCES = {"binary_linear": 1e-6}
