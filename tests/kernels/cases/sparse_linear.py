"""Random arguments of the operators in kernels/sparse_linear.py."""

import torch

from lilliput.kernels import sparse_linear
from lilliput.kernels.sparse import blocks


def sizes(draw):
    return draw(1, 3), draw(1, 70), draw(1, 200)


def thinned(draw, floats, outputs, inputs):
    """Some rows empty, some columns full, which the tiles' steps don't hold."""
    matrix = floats(outputs, inputs)
    live = floats(outputs, inputs).abs() < (0.0, 0.05, 0.3, 1.0)[draw(0, 3)]
    live[:, draw(0, inputs - 1)] = True
    live[draw(0, outputs - 1)] = draw(0, 1) == 1
    return torch.where(live, matrix, 0)


def end(draw, floats, outputs):
    return floats(outputs) if draw(0, 1) else None, outputs


def shared_case(draw, floats):
    rows, outputs, inputs = sizes(draw)
    book = floats((1, 16, 30, 64)[draw(0, 3)])
    matrix = thinned(draw, floats, outputs, inputs)
    code = (matrix.abs() * 1000).long() % len(book)
    word, steps, found, rest = sparse_linear.shared(torch.where(matrix != 0, book[code], 0))
    return floats(rows, inputs), word, steps, found, rest, *end(draw, floats, outputs)


def single_case(draw, floats):
    rows, outputs, inputs = sizes(draw)
    place, value, steps, rest = sparse_linear.single(thinned(draw, floats, outputs, inputs))
    return floats(rows, inputs), place, value, steps, rest, *end(draw, floats, outputs)


def blocks_case(draw, floats):
    rows, outputs, inputs = sizes(draw)
    part = blocks(thinned(draw, floats, outputs, inputs), (4, 16)[draw(0, 1)])
    return floats(rows, inputs), part.start, part.column, part.value, *end(draw, floats, outputs)


def two_four_case(draw, floats):
    rows, outputs, inputs = sizes(draw)
    matrix = floats(outputs, inputs)
    for first in range(0, inputs, 4):
        four = matrix[:, first : first + 4]
        four.masked_fill_(four.abs() < four.abs().topk(min(2, four.shape[1])).values[:, -1:], 0)
    return floats(rows, inputs), *sparse_linear.two_four(matrix), *end(draw, floats, outputs)


CASES = {
    "sparse_shared": shared_case,
    "sparse_single": single_case,
    "sparse_blocks": blocks_case,
    "sparse_two_four": two_four_case,
}
TOLERANCES = dict.fromkeys(CASES, 1e-5)
