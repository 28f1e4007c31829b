"""Random arguments of the operators in kernels/codebook_linear.py."""

import torch

from lilliput.kernels.codebook_linear import SIZES, prepare


def codes(draw, floats):
    outputs, inputs, values = draw(1, 20), draw(1, 300), SIZES[draw(0, 3)]
    code = (floats(outputs, inputs).abs() * 1e4).long() % values
    return outputs, inputs, values, prepare(code, values)


def codebook_linear_case(draw, floats):
    outputs, inputs, values, code = codes(draw, floats)
    book = floats(values).to((torch.float32, torch.bfloat16)[draw(0, 1)])
    return floats(draw(0, 3), inputs), code, book, floats(outputs) if draw(0, 1) else None, outputs


def codebook_int8_case(draw, floats):
    outputs, inputs, values, code = codes(draw, floats)
    x, book = ((floats(*shape) * 100).clamp(-128, 127).to(torch.int8) for shape in ((draw(0, 3), inputs), (values,)))
    return x, code, book, outputs


CASES = {"codebook_linear": codebook_linear_case, "codebook_int8": codebook_int8_case}
TOLERANCES = {"codebook_linear": 1e-5}
