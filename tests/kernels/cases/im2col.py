"""Random arguments of the operator in kernels/im2col.py."""


def im2col_case(draw, floats):
    groups, batch = (1, 2, 3)[draw(0, 2)], draw(1, 2)
    channels, filters = draw(1, 6), draw(1, 20)
    kernel = draw(1, 4), draw(1, 4)
    window = [draw(1, 3), draw(1, 3), draw(0, 2), draw(0, 2), draw(1, 2), draw(1, 2)]
    height, width = draw(2 * kernel[0], 16), draw(2 * kernel[1], 70)
    bias = floats(groups * filters) if draw(0, 1) else None
    x = floats(batch, groups * channels, height, width)
    return x, floats(groups * filters, channels, *kernel), bias, window, groups, bool(draw(0, 1))


CASES = {"im2col": im2col_case}
TOLERANCES = {"im2col": 1e-6}
