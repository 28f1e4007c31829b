"""k-means of values on a line: the optimum, Lloyd's iteration, and the three classical initialisations."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.native import extension
from lilliput.solve.buckets import CHUNK, Floats, Groups, Integers, group, keys
from lilliput.solve.interval_partition import LARGEST_K, TABLE_CELLS, partition

Start = Literal["forgy", "density", "linear"]

# Up to so many groups the dynamic program meets all of them; more are merged to half as many points first.
EXACT = TABLE_CELLS // LARGEST_K - 1
MERGED = 1 << 14
ITERATIONS = 1000
# How often the groups around the thresholds are opened before the polish is called done.
ROUNDS = 8


def optimal(values: Tensor, k: int) -> Tensor:
    """Finds the k centroids of the least squared error: min over c of sum_i min_j (w_i - c_j)^2.

    Dynamic programming over the sorted values (Wang and Song 2011), which is exact where there are at most
    32,767 different values. More are grouped by their float32 bits, solved by groups, and polished on the values
    by Lloyd's iteration: within 0.01 % of the optimum, as measured. Zeros are values like others.

    Args:
        values: 1-D, floating-point, any device; half types are computed as float32, all sums in float64.
        k: number of centroids, 1 to 1024.

    Returns:
        min(k, number of different values) centroids, float64, ascending, on the CPU.

    Raises:
        MethodError: if values are no finite 1-D floating-point tensor, or k is out of range.

    >>> optimal(torch.tensor([1.2, 1.3, 6.1, 0.9, 0.7, 6.9, -1.0, -0.9, 1.0]), 3)
    tensor([-0.9500,  1.0200,  6.5000], dtype=torch.float64)
    """
    array = _array(values)
    _check_k(k)
    if not len(array):
        return torch.empty(0, dtype=torch.float64)
    groups = _opened_if_few(group(array), k)
    if k >= len(groups.counts):
        return torch.from_numpy(groups.means.copy())
    begins = _merged(groups)
    weights = np.add.reduceat(groups.counts, begins).astype(np.float64)
    points = _interval_means(groups, begins)
    centroids = _interval_means(groups, begins[partition(points, weights, k)])
    return torch.from_numpy(_settled(groups, centroids, ITERATIONS))


def initial(values: Tensor, k: int, how: Start, generator: torch.Generator | None = None) -> Tensor:
    """Returns a start for Lloyd's iteration in one of the ways of Deep Compression (Han 2016, 1510.00149).

    * `forgy`: k of the values, drawn at random without replacement; they crowd where the weights are dense.
    * `density`: the values at (j + 1/2) / k of the cumulative distribution.
    * `linear`: min + j (max - min) / (k - 1); keeps the few large weights apart, best in the paper.

    Args:
        values: 1-D, floating-point, at least one.
        k: number of centroids, 1 to 1024.
        how: `"forgy"`, `"density"` or `"linear"`.
        generator: for `forgy`, on the CPU; None draws the same every time.

    Returns:
        k centroids, float64, ascending, on the CPU; some may be equal, and fewer if `forgy` has fewer values.

    Raises:
        MethodError: as for `optimal`, and if there are no values or no such way.

    >>> initial(torch.tensor([-1.0, 0.0, 0.0, 0.0, 3.0]), 3, "linear")
    tensor([-1.,  1.,  3.], dtype=torch.float64)
    """
    array = _array(values)
    _check_k(k)
    if not len(array):
        raise MethodError("k-means: no values to start from")
    if how == "forgy":
        return torch.from_numpy(np.sort(array[_draw(len(array), k, generator)].astype(np.float64) + 0.0))
    if how == "density":
        return torch.from_numpy(_quantiles(group(array), k))
    if how == "linear":
        low, high = float(array.min()), float(array.max())
        return torch.from_numpy(np.linspace(low, high, k) if k > 1 else np.array([low / 2 + high / 2]))
    raise MethodError(f"k-means: no initialisation '{how}'; there are forgy, density, linear")


def lloyd(values: Tensor, centroids: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Improves centroids by Lloyd's iteration until nothing changes; the squared error never grows.

    Each value goes to its nearest centroid, each centroid to the mean of its values; an empty cluster moves to
    the value farthest from its centroid. Beyond 2^18 values the iterations run on groups of a relative width of
    2^-11, and those around the thresholds are opened in the end, so that the last iterations are exact.

    Args:
        values: 1-D, floating-point.
        centroids: the start, 1-D, in any order.
        iterations: the most to do.

    Returns:
        Centroids, float64, ascending, on the CPU: as many as given, or as there are different values.

    Raises:
        MethodError: as for `optimal`.

    >>> lloyd(torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0.0, 1.0]))
    tensor([ 0.5000, 10.5000], dtype=torch.float64)
    """
    array, start = _array(values), np.sort(_array(centroids).astype(np.float64))
    _check_k(len(start))
    if not len(array):
        return torch.empty(0, dtype=torch.float64)
    groups = _opened_if_few(group(array), len(start))
    if len(start) >= len(groups.counts):
        return torch.from_numpy(groups.means.copy())
    return torch.from_numpy(_settled(groups, start, iterations))


def assign(values: Tensor, centroids: Tensor) -> Tensor:
    """Returns the index of the nearest centroid of each value; a value in the middle goes to the lower one.

    Args:
        values: 1-D, floating-point.
        centroids: 1-D, ascending.

    Returns:
        Indices on the device of `values`: uint8 for up to 256 centroids, else int16.

    Raises:
        MethodError: as for `optimal`, and if there are values but no centroids, or they don't ascend.

    >>> assign(torch.tensor([0.0, 0.5, 0.6]), torch.tensor([0.0, 1.0]))
    tensor([0, 0, 1], dtype=torch.uint8)
    """
    array, centers = _array(values), _array(centroids).astype(np.float64)
    if len(array):
        _check_k(len(centers))
    if (np.diff(centers) < 0).any():
        raise MethodError("k-means: the centroids must ascend; sort them first")
    thresholds = _thresholds(centers)
    indices = np.empty(len(array), dtype=np.uint8 if len(centers) <= 256 else np.int16)
    native = extension(len(array), "k-means")
    if native is not None:
        first = np.searchsorted(keys(thresholds) >> 16, np.arange((1 << 16) + 1)).astype(np.int32)
        native.kmeans1d_assign(array, thresholds, first, indices)
    else:
        edges = torch.from_numpy(thresholds)
        for start in range(0, len(array), CHUNK):
            chunk = torch.from_numpy(array[start : start + CHUNK].astype(np.float64))
            indices[start : start + CHUNK] = torch.bucketize(chunk, edges, out_int32=True).numpy()
    return torch.from_numpy(indices).to(values.device)


def objective(values: Tensor, centroids: Tensor) -> float:
    """Returns the sum of the squared distances of the values from their nearest centroids, in float64.

    >>> objective(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0]))
    0.25
    """
    total = 0.0
    centers = centroids.detach().to("cpu", torch.float64)
    for chunk in torch.split(values.detach(), CHUNK):
        nearest = centers[assign(chunk, centers).cpu().to(torch.int64)]
        total += float((chunk.cpu().to(torch.float64) - nearest).square().sum())
    return total


def _array(values: Tensor) -> NDArray[Any]:
    """A finite 1-D tensor as a float32 or float64 array."""
    if values.ndim != 1 or not values.dtype.is_floating_point:
        raise MethodError(f"k-means: takes a 1-D floating-point tensor, not {values.dtype} {tuple(values.shape)}")
    wide = values.detach().to("cpu", torch.float64 if values.dtype == torch.float64 else torch.float32).contiguous()
    if wide.numel():
        low, high = torch.aminmax(wide)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise MethodError("k-means: the values hold NaN or infinity; repair the model first")
        largest = max(-float(low), float(high))
        if largest > torch.finfo(torch.float32).max:
            raise MethodError(f"k-means: {largest:g} is beyond the range of float32; scale the values first")
    array: NDArray[Any] = wide.numpy()
    return array


def _check_k(k: int) -> None:
    if not 1 <= k <= LARGEST_K:
        raise MethodError(f"k-means: {k} clusters; take 1 to {LARGEST_K}")


def _thresholds(centroids: Floats) -> Floats:
    return 0.5 * centroids[:-1] + 0.5 * centroids[1:]


def _interval_means(groups: Groups, begins: Integers) -> Floats:
    """Mean of the values of each interval of groups; unrounded where that is a single value."""
    means = np.add.reduceat(groups.sums, begins) / np.add.reduceat(groups.counts, begins)
    ends = np.append(begins[1:], len(groups.counts))
    return np.clip(means, groups.means[begins], groups.means[ends - 1])


def _opened_if_few(groups: Groups, k: int) -> Groups:
    """Opens all groups where there are hardly more of them than clusters."""
    several = np.flatnonzero(groups.buckets >= 0)
    return groups.opened(several) if len(groups.counts) <= 4 * k and len(several) else groups


def _merged(groups: Groups) -> Integers:
    """Where the points of the dynamic program begin: every group, or near ones together if they are too many.

    The error that merging can cost is least where the points share out the integral of density^(1/3) evenly, as
    the cells of an optimal quantizer do (Panter and Dite 1951). A group that exceeds a share stays alone.
    """
    length = len(groups.counts)
    if length <= EXACT:
        return np.arange(length)
    gaps = np.diff(groups.means, prepend=groups.means[0], append=groups.means[-1])
    width = np.maximum(gaps[:-1], gaps[1:])
    mass = np.cbrt(groups.counts * width * width)
    points = MERGED
    while True:
        share = float(mass.sum()) / points
        for _ in range(32):
            share = float(np.minimum(mass, share).sum()) / points
        alone = mass >= share
        cell = (np.cumsum(np.minimum(mass, share)) / share).astype(np.int64)
        begins = np.ones(length, dtype=bool)
        begins[1:] = (cell[1:] != cell[:-1]) | alone[1:] | alone[:-1]
        if int(begins.sum()) <= EXACT:
            return np.flatnonzero(begins)
        points = points * 3 // 4


def _settled(groups: Groups, centroids: Floats, iterations: int) -> Floats:
    """Lloyd's iteration on groups, then on the values about the thresholds, until none cuts a group."""
    centroids, left = _lloyd(groups, centroids, iterations)
    for _ in range(ROUNDS):
        edges = _thresholds(centroids)
        if left == 0 or not len(groups.holding(edges)):
            break
        groups = groups.opened(groups.holding(edges, beside=1))
        centroids, left = _lloyd(groups, centroids, left)
    return centroids


def _lloyd(groups: Groups, centroids: Floats, iterations: int) -> tuple[Floats, int]:
    """Lloyd's iteration on groups as they are; returns the centroids and how many iterations are left."""
    before = None
    for done in range(iterations):
        cuts = np.searchsorted(groups.means, _thresholds(centroids), side="right")
        begins = np.concatenate([[0], cuts])
        full = begins < np.append(cuts, len(groups.counts))
        if before is not None and full.all() and np.array_equal(begins, before):
            return centroids, iterations - done
        before = begins
        centroids = centroids.copy()
        centroids[full] = _interval_means(groups, begins[full])
        if not full.all():
            centroids = _reseeded(groups, centroids, begins[full], full)
    return centroids, 0


def _reseeded(groups: Groups, centroids: Floats, begins: Integers, full: NDArray[np.bool_]) -> Floats:
    """Moves the centroids of empty clusters to the values farthest from theirs, which end some cluster."""
    ends = np.append(begins[1:], len(groups.counts)) - 1
    points = np.concatenate([groups.means[begins], groups.means[ends]])
    far = np.abs(points - np.tile(centroids[full], 2))
    order = np.argsort(-far, kind="stable")
    order = order[far[order] > 0][: int((~full).sum())]
    centroids[np.flatnonzero(~full)[: len(order)]] = points[order]
    return np.sort(centroids)


def _draw(length: int, k: int, generator: torch.Generator | None) -> Integers:
    """Positions of k different values (or all, if they are fewer), without a permutation of them all."""
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    if length <= 4 * k:
        return torch.randperm(length, generator=generator)[:k].numpy()
    chosen: dict[int, None] = {}
    while len(chosen) < k:
        chosen.update(dict.fromkeys(torch.randint(length, (k,), generator=generator).tolist()))
    return np.array(list(chosen)[:k], dtype=np.int64)


def _quantiles(groups: Groups, k: int) -> Floats:
    """The values at (j + 1/2) / k of the distribution."""
    for _ in range(2):
        order = ((np.arange(k) + 0.5) / k * len(groups.values)).astype(np.int64)
        found = np.searchsorted(np.cumsum(groups.counts), order, side="right")
        several = np.unique(found[groups.buckets[found] >= 0])
        if not len(several):
            break
        groups = groups.opened(several)
    return groups.means[found]
