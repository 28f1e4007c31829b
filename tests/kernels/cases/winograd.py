"""Random arguments of the operator in kernels/winograd.py."""

from lilliput.kernels.winograd import prepare


def winograd_case(draw, floats):
    batch, channels, filters = draw(1, 2), draw(1, 40), draw(1, 50)
    padding = [draw(0, 2), draw(0, 2)]
    height, width = draw(3, 22), draw(3, 70)
    output = (2, 4, 6)[draw(0, 2)]
    bias = floats(filters) if draw(0, 1) else None
    weight = prepare(floats(filters, channels, 3, 3), output)
    return floats(batch, channels, height, width), weight, bias, filters, output, padding, bool(draw(0, 1))


CASES = {"winograd": winograd_case}
# Of the largest number: the transforms of F(6, 3) multiply by up to 32 and add in another order.
TOLERANCES = {"winograd": 1e-4}
