"""Random arguments of the operator in kernels/mec.py."""

from lilliput.kernels.mec import prepare


def mec_case(draw, floats):
    groups, batch = (1, 2, 3)[draw(0, 2)], draw(1, 2)
    channels, filters = draw(1, 6), draw(1, 20)
    kernel = draw(1, 4), draw(1, 4)
    window = [draw(1, 3), draw(1, 3), draw(0, 2), draw(0, 2), 1, draw(1, 2)]
    height, width = draw(kernel[0], 16), draw(2 * kernel[1], 70)
    bias = floats(groups * filters) if draw(0, 1) else None
    weight = prepare(floats(groups * filters, channels, *kernel))
    return floats(batch, groups * channels, height, width), weight, bias, window, groups, bool(draw(0, 1))


CASES = {"mec": mec_case}
TOLERANCES = {"mec": 1e-6}
