"""Matrices of the minimal filtering algorithms F(m, r) of Toom, Cook and Winograd, in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import prod

from lilliput.core.errors import MethodError

Matrix = tuple[tuple[Fraction, ...], ...]

POINTS = tuple(Fraction(text) for text in ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))
"""Where the polynomials are evaluated; the last point is infinity."""


@cache
def matrices(outputs: int, taps: int) -> tuple[Matrix, Matrix, Matrix]:
    """Returns A^T, G and B^T with y = A^T [(G g) * (B^T d)], y the correlation of d with g (Lavin & Gray 2015).

    arXiv 1509.09308. The points a_0 .. a_{n-2} and infinity, n = outputs + taps - 1; f_i = prod_{k != i} (a_i - a_k),
    row 0 negated where f_0 < 0: A^T[j, i] = a_i^j, G[i, j] = a_i^j / f_i, row i of B^T the coefficients of
    prod_{k != i} (x - a_k), the lowest first; infinity's are 1 in the last place of A^T and G, and prod (x - a_k).

    Args:
        outputs: m, at least 1.
        taps: r of the filter, at least 1; m + r - 1 at most 8.

    Returns:
        Rows of fractions: (m, n), (n, r) and (n, n).

    Raises:
        MethodError: no outputs or taps, or more than there are points for.

    >>> [[int(value) for value in row] for row in matrices(2, 3)[0]]
    [[1, 1, 1, 0], [0, 1, -1, 1]]
    """
    size = outputs + taps - 1
    if min(outputs, taps) < 1 or size > len(POINTS) + 1:
        raise MethodError(f"F({outputs}, {taps}): outputs + taps - 1 must be 1 to {len(POINTS) + 1}, each at least 1")
    points = POINTS[: size - 1]
    signs = [prod((a - b for b in points if b != a), start=Fraction(1)) for a in points]
    flipped = bool(signs) and signs[0] < 0
    if flipped:
        signs[0] = -signs[0]
    last = Fraction(1)
    inverse = [[a**j for a in points] + [last if j == outputs - 1 else Fraction(0)] for j in range(outputs)]
    filters = [[a**j / sign for j in range(taps)] for a, sign in zip(points, signs)]
    filters.append([last if j == taps - 1 else Fraction(0) for j in range(taps)])
    data = [_polynomial([b for b in points if b != a], size) for a in points]
    if flipped:
        data[0] = [-value for value in data[0]]
    data.append(_polynomial(list(points), size))
    return _frozen(inverse), _frozen(filters), _frozen(data)


def _polynomial(roots: list[Fraction], size: int) -> list[Fraction]:
    """Coefficients of prod (x - root), the lowest first, padded with zeros."""
    found = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *found], [*(-root * value for value in found), Fraction(0)]
        found = [a + b for a, b in zip(shifted, scaled)]
    return found + [Fraction(0)] * (size - len(found))


def _frozen(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)
