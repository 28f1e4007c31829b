"""Random arguments of the operator in kernels/product.py."""

from lilliput.kernels.product import prepare


def product_linear_case(draw, floats):
    outputs, runs, width, k = draw(1, 90), draw(1, 20), draw(1, 9), (1, 16, 20, 33, 256)[draw(0, 4)]
    codes = (floats(outputs, runs).abs() * 1e4).long() % k
    word, book = prepare(codes, floats(runs, k, width))
    inputs = runs * width - draw(0, width - 1)
    return floats(draw(0, 3), inputs), word, book, floats(outputs) if draw(0, 1) else None, outputs


CASES = {"product_linear": product_linear_case}
TOLERANCES = {"product_linear": 1e-5}
