"""k-means of short vectors, many small problems of one shape at a time: Lloyd's iteration from a seeded k-means++."""

from __future__ import annotations

import torch
from torch import Tensor

# Distances that exist at a time.
MOST = 1 << 24


def clustered(points: Tensor, k: int, seed: int = 0, rounds: int = 30) -> tuple[Tensor, Tensor]:
    """Returns k centroids for each of several sets of points, and which of them each point belongs to.

    Starts by k-means++ (Arthur and Vassilvitskii 2007): each next centroid is a point drawn with a probability in
    proportion to its squared distance from the nearest so far, so that k >= the number of different points finds them
    all. Then points go to the nearest centroid and centroids to their points' mean; neither makes the error larger.
    A centroid without points stays where it is.

    Args:
        points: (sets, n, width), float64, n > 0.
        k: 1 to n.
        seed: of the draws.
        rounds: of Lloyd's iteration, at most.

    Returns:
        Centroids (sets, k, width) and codes (sets, n), int64.

    >>> points = torch.tensor([[[0.0, 0.0], [0.0, 0.2], [5.0, 5.0]]], dtype=torch.float64)
    >>> centroids, codes = clustered(points, 2)
    >>> centroids[0, codes[0]].tolist()
    [[0.0, 0.1], [0.0, 0.1], [5.0, 5.0]]
    """
    generator = torch.Generator().manual_seed(seed)
    step = max(1, MOST // max(points.shape[1] * k, 1))
    found = [_clustered(part, k, generator, rounds) for part in torch.split(points, step)]
    return torch.cat([centroids for centroids, _ in found]), torch.cat([codes for _, codes in found])


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Returns the code of the nearest centroid, of equals the first; (sets, n).

    Args:
        points: (sets, n, width).
        centroids: (sets, k, width).
    """
    # The point's own square is the same for all centroids.
    half = centroids.square().sum(2)[:, None] / 2
    return torch.baddbmm(half, points, centroids.transpose(1, 2), alpha=-1).argmin(2)


def _clustered(points: Tensor, k: int, generator: torch.Generator, rounds: int) -> tuple[Tensor, Tensor]:
    centroids = _started(points, k, generator)
    codes = nearest(points, centroids)
    for _ in range(rounds):
        index = codes[:, :, None].expand_as(points)
        total = torch.zeros_like(centroids).scatter_add_(1, index, points)
        count = points.new_zeros(centroids.shape[:2]).scatter_add_(1, codes, torch.ones_like(points[:, :, 0]))
        centroids = torch.where(count[:, :, None] > 0, total / count.clamp(min=1)[:, :, None], centroids)
        before, codes = codes, nearest(points, centroids)
        if torch.equal(before, codes):
            break
    return centroids, codes


def _started(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    sets, n, width = points.shape
    first = torch.randint(n, (sets, 1), generator=generator).to(points.device)
    chosen = [points.gather(1, first[:, :, None].expand(-1, -1, width))]
    distance = (points - chosen[0]).square().sum(2)
    for _ in range(k - 1):
        # Points that coincide with a centroid have no chance, unless all do.
        chance = torch.where(distance.sum(1, keepdim=True) > 0, distance, 1.0)
        at = torch.rand(sets, 1, generator=generator, dtype=torch.float64).to(points.device)
        sums = chance.cumsum(1)
        place = torch.searchsorted(sums, at * sums[:, -1:], right=True).clamp(max=n - 1)
        chosen.append(points.gather(1, place[:, :, None].expand(-1, -1, width)))
        distance = torch.minimum(distance, (points - chosen[-1]).square().sum(2))
    return torch.cat(chosen, 1)
