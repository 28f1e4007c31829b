"""Random arguments of the operators in kernels/integer_conv.py."""

import torch

from lilliput.kernels.integer_conv import prepare
from lilliput.kernels.window import Window


def layer(draw, floats):
    groups = draw(1, 3) if draw(0, 2) == 0 else 1
    outputs, own = groups * draw(1, 3) if groups > 1 else draw(1, 140), draw(1, 9)
    kernel = (1, 1) if draw(0, 1) else (draw(1, 3), draw(1, 4))
    stride, padding, dilation = ((draw(low, 2), draw(low, 2)) for low in (1, 0, 1))
    height, width = (draw(gap * (side - 1) + 1, 12) for side, gap in zip(kernel, dilation))
    x = (floats(draw(1, 2), groups * own, height, width) * 200).clamp(-255, 255).to(torch.int16)
    return x, outputs, own, Window(kernel, stride, padding, dilation, groups)


def shift_case(draw, floats):
    x, outputs, own, window = layer(draw, floats)
    most = (2, 8, 13)[draw(0, 2)]
    codes = (floats(draw(1, 3), outputs, own, *window.kernel) * most / 2).clamp(-most, most).to(torch.int8)
    return x, prepare(codes, window.groups), outputs, window.numbers


def codebook_case(draw, floats):
    x, outputs, own, window = layer(draw, floats)
    codes = (floats(1, outputs, own, *window.kernel).abs() * 1e4).long() % (16, 256)[draw(0, 1)]
    book = (floats(256) * 100).clamp(-128, 127).to(torch.int8)
    return x, prepare(codes.to(torch.uint8), window.groups), book, outputs, window.numbers


CASES = {"shift_conv": shift_case, "codebook_conv": codebook_case}
