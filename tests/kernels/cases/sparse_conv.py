"""Random arguments of the operator in kernels/sparse_conv.py."""

import torch

from lilliput.kernels.sparse import blocks
from lilliput.kernels.window import Window


def sparse_conv_case(draw, floats):
    block = (1, 4, 16)[draw(0, 2)]
    groups = draw(1, 3) if draw(0, 2) == 0 else 1
    outputs = groups * block * draw(1, 3) if groups > 1 else draw(1, 40)
    own = draw(1, 5)
    kernel = (1, 1) if draw(0, 1) else (draw(1, 4), draw(1, 4))
    stride, padding, dilation = ([(low, low), (draw(low, 3), draw(low, 3))][draw(0, 1)] for low in (1, 0, 1))
    height, width = (draw(gap * (side - 1) + 1, 20) for side, gap in zip(kernel, dilation))
    window = Window(kernel, stride, padding, dilation, groups)
    matrix = floats(outputs, own * kernel[0] * kernel[1])
    density = (0.0, 0.1, 0.5, 1.0)[draw(0, 3)]
    matrix = torch.where(floats(*matrix.shape).abs() < density * 2, matrix, 0)
    if draw(0, 1):
        matrix[draw(0, outputs - 1)] = 0
    part = blocks(matrix, block, groups)
    bias = floats(outputs) if draw(0, 1) else None
    x = floats(draw(1, 3), groups * own, height, width)
    return x, part.start, part.column, part.value, bias, outputs, window.numbers


CASES = {"sparse_conv": sparse_conv_case}
TOLERANCES = {"sparse_conv": 1e-5}
