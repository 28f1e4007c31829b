"""Random arguments of the operators in kernels/bit_conv.py: every kind, kernel, stride, padding and dilation."""

import torch

from lilliput.kernels.bit_layers import (
    Codes,
    Steps,
    pack_planes,
    plane_layer,
    sign_planes,
    ternary_layer,
    ternary_planes,
    xnor_layer,
)


def layer(draw, floats):
    channels, outputs, kernel = draw(1, 140), draw(1, 140), (draw(1, 3), draw(1, 3))
    steps = Steps(*((draw(low, 2), draw(low, 2)) for low in (1, 0, 1)))
    size = [draw((k - 1) * d + 1, 8) for k, d in zip(kernel, steps.dilation, strict=True)]
    x, weight, kind = floats(draw(0, 3), channels, *size), floats(outputs, channels, *kernel), draw(0, 2)
    if kind == 0:
        return sign_planes(x), xnor_layer(weight, steps, draw(-1, 1))
    if kind == 1:
        own, of_x = Codes(draw(1, 4), draw(1, 2), draw(-3, 3)), Codes(draw(1, 4), draw(1, 2), draw(-3, 3))
        codes = (weight * 10).int().abs() % 2**own.bits
        return pack_planes((x * 10).int().abs().byte(), of_x.bits), plane_layer(codes, own, of_x, steps)
    return ternary_planes(x.round()), ternary_layer(weight.round().clamp(-1, 1), steps)


def total(draw, floats):
    x, made = layer(draw, floats)
    return x, made.layer, made.numbers, made.geometry


def real(draw, floats):
    x, layer, numbers, geometry = total(draw, floats)
    outputs = len(layer[2])
    out = torch.ops.lilliput.bit_conv_total(x, layer, numbers, geometry)
    bias, k = floats(outputs) if draw(0, 1) else None, floats(len(out), 1, *out.shape[2:]) if draw(0, 1) else None
    return x, layer, numbers, geometry, floats(outputs), bias, k


def signs(draw, floats):
    x, layer, numbers, geometry = total(draw, floats)
    at = (floats(len(layer[2])) * 30).int()
    return x, layer, numbers, geometry, at, torch.where(floats(len(at)) > 0, 1, -1).int()


def whole(draw, floats):
    channels, outputs, kernel = draw(1, 140), draw(1, 140), (draw(1, 3), draw(1, 3))
    steps, scaled = Steps(*((draw(low, 2), draw(low, 2)) for low in (1, 0, 1))), bool(draw(0, 1))
    steps = Steps(steps.stride, steps.padding) if scaled else steps
    size = [draw((k - 1) * d + 1, 8) for k, d in zip(kernel, steps.dilation, strict=True)]
    x, made = floats(draw(0, 3), channels, *size), xnor_layer(floats(outputs, channels, *kernel), steps, draw(-1, 1))
    x = x.contiguous(memory_format=torch.channels_last) if draw(0, 1) else x
    return x, made.layer, made.geometry, floats(outputs), floats(outputs) if draw(0, 1) else None, scaled


CASES = {"bit_conv_total": total, "bit_conv": real, "bit_conv_signs": signs, "xnor_conv": whole}
TOLERANCES = {"bit_conv": 1e-6, "xnor_conv": 1e-6}
