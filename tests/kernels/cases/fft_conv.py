"""Random arguments of the operator in kernels/fft_conv.py."""

from lilliput.kernels.fft_conv import TILES, prepare


def fft_conv_case(draw, floats):
    groups, batch, tile = (1, 2, 3)[draw(0, 2)], draw(1, 2), TILES[draw(0, 1)]
    channels, filters = draw(1, 7), draw(1, 8)
    kernel = draw(1, 9), draw(1, 9)
    dilation = (draw(1, 2), draw(1, 2)) if max(kernel) < 8 else (1, 1)
    window = [draw(1, 3), draw(1, 3), draw(0, 4), draw(0, 4), *dilation]
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation)]
    # Large enough that strides don't leave the picture out: rounding is relative to all outputs, also those left out.
    height, width = draw(reach[0] + 5, 40), draw(reach[1] + 5, 45)
    bias = floats(groups * filters) if draw(0, 1) else None
    weight = prepare(floats(groups * filters, channels, *kernel), tile, groups, dilation)
    return floats(batch, groups * channels, height, width), weight, bias, list(kernel), window, bool(draw(0, 1))


CASES = {"fft_conv": fft_conv_case}
# Of the largest number: 2^-24 log2(32^2) for rounding in either of two transforms that differ, and some for the norms.
TOLERANCES = {"fft_conv": 2e-6}
