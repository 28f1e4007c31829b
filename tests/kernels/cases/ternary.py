"""Random arguments of the operators in kernels/ternary.py."""

from lilliput.kernels.ternary import prepare


def ternary(floats, *shape):
    return floats(*shape).round().clamp(-1, 1)


def total(draw, floats):
    channels, outputs, kernel = draw(1, 70), draw(1, 140), [draw(1, 3), draw(1, 3)]
    stride, padding, dilation = ([draw(low, 2), draw(low, 2)] for low in (1, 0, 1))
    size = [draw((k - 1) * d + 1, 8) for k, d in zip(kernel, dilation, strict=True)]
    x = (floats(draw(0, 3), *size, channels) * 100).clamp(-128, 127).char()
    weight = prepare(ternary(floats, outputs, channels, *kernel))
    return x, weight, outputs, [*kernel, *stride, *padding, *dilation], draw(-128, 127)


def conv(draw, floats):
    x, weight, outputs, geometry, border = total(draw, floats)
    second, bias = (floats(outputs) if draw(0, 1) else None for _ in range(2))
    return x, weight, geometry, border, floats(outputs), second, bias


def linear(draw, floats):
    rows, n, outputs = draw(0, 4), draw(1, 150), draw(1, 140)
    values = floats(3).tolist()
    weight = prepare(ternary(floats, outputs, n))
    return floats(rows, n), weight, values, floats(outputs), floats(outputs) if draw(0, 1) else None


CASES = {"ternary_total": total, "ternary_conv": conv, "ternary_linear": linear}
TOLERANCES = {"ternary_conv": 1e-6, "ternary_linear": 1e-5}
