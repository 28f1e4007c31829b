import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import MethodError
from lilliput.core.native import extension
from lilliput.solve import buckets, kmeans1d
from lilliput.solve.interval_partition import partition
from lilliput.solve.kmeans1d import assign, initial, lloyd, objective, optimal

STAND_IN = torch.tensor([[1.2, 1.3, 6.1], [0.9, 0.7, 6.9], [-1.0, -0.9, 1.0]]).flatten()
HOW = ("forgy", "density", "linear")


@pytest.fixture(params=["compiled", "numpy"])
def path(request, monkeypatch):
    """Both ways of computing."""
    monkeypatch.setenv("LILLIPUT_PURE", "1" if request.param == "numpy" else "0")
    if request.param == "compiled" and extension() is None:
        pytest.skip("the compiled extension lilliput._cpp isn't built")


def heavy_tailed(length, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp(torch.randn(length, generator=generator, dtype=torch.float64))
    return (0.02 * scale * torch.randn(length, generator=generator, dtype=torch.float64)).to(dtype)


def brute_force(values, k):
    """Least error over every partition of the sorted values into at most k intervals, by two-pass sums."""
    ordered = np.sort(values.double().numpy())
    best = np.inf
    for clusters in range(1, k + 1):
        for cuts in itertools.combinations(range(1, len(ordered)), clusters - 1):
            parts = np.split(ordered, cuts)
            best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in parts))
    return best


def test_the_example_of_the_survey(path):
    centroids = optimal(STAND_IN, 3)
    assert torch.allclose(centroids, torch.tensor([-0.95, 1.02, 6.5], dtype=torch.float64), atol=1e-7)
    codes = assign(STAND_IN, centroids).reshape(3, 3)
    # The paper numbers the clusters 1 (about 1), 2 (6.5), 3 (-0.95).
    assert codes.tolist() == [[1, 1, 2], [1, 1, 2], [0, 0, 1]]


@pytest.mark.parametrize("seed", range(12))
def test_optimal_is_the_best_of_all_partitions(seed, path):
    values = heavy_tailed(3 + seed % 7, seed)
    for k in range(1, len(values) + 1):
        assert objective(values, optimal(values, k)) == pytest.approx(brute_force(values, k), rel=1e-9, abs=1e-18)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.25, 3.0, 1e4]), min_size=1, max_size=9),
    st.data(),
)
def test_optimal_with_duplicates_is_the_best_of_all_partitions(numbers, data):
    values = torch.tensor(numbers)
    k = data.draw(st.integers(1, len(numbers)))
    assert objective(values, optimal(values, k)) == pytest.approx(brute_force(values, k), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8), st.integers(1, 8))
def test_optimal_over_all_magnitudes(numbers, k):
    values = torch.tensor(numbers, dtype=torch.float64)
    best = brute_force(values, k)
    # Relative to the error itself, or to what double precision resolves of the greatest square.
    tolerance = 1e-6 * best + 1e-31 * max(abs(n) for n in numbers) ** 2 * len(numbers)
    assert abs(objective(values, optimal(values, k)) - best) <= tolerance


@pytest.mark.parametrize(("length", "k"), [(300, 5), (2000, 32), (5000, 16)])
def test_optimal_is_the_optimum_of_kmeans1d(length, k, path):
    kmeans1d_package = pytest.importorskip("kmeans1d", reason="the oracle kmeans1d from PyPI isn't installed")
    for values in (heavy_tailed(length), torch.rand(length), torch.randn(length).round(decimals=2)):
        oracle = torch.tensor(kmeans1d_package.cluster(values.double().numpy(), k).centroids, dtype=torch.float64)
        assert objective(values, optimal(values, k)) <= objective(values, oracle) * (1 + 1e-9)


def test_many_values_stay_within_a_hundredth_of_a_percent_of_the_optimum():
    if extension() is None:
        pytest.skip("the oracle, the exact program over all values, needs the compiled extension lilliput._cpp")
    values = heavy_tailed(buckets.SORTED + 1)
    single, counts = values.double().unique(return_counts=True)
    assert len(single) > kmeans1d.EXACT
    for k in (4, 16):
        starts = partition(single.numpy(), counts.double().numpy(), k)
        codes = np.repeat(np.arange(k), np.diff(np.append(starts, len(single))))
        means = np.bincount(codes, single * counts) / np.bincount(codes, counts)
        least = objective(values, torch.from_numpy(means))
        assert least * (1 - 1e-9) <= objective(values, optimal(values, k)) <= least * 1.0001


def test_tight_clusters_far_apart():
    # Two groups about +1 and -1 with a jitter that the square of 1 drowns in double precision.
    jitter = torch.arange(40, dtype=torch.float64) * 2.0**-24
    values = torch.cat([1 + jitter, -1 - jitter])
    for k in (4, 8, 20):
        # Equal halves of an arithmetic sequence, cut evenly: clusters of 80 / k steps each.
        size = 80 // k
        least = k * size * (size**2 - 1) / 12 * 2.0**-48
        assert objective(values, optimal(values, k)) == pytest.approx(least, rel=1e-6)


def test_heavy_outliers_keep_their_own_centroid_and_spare_the_rest(path):
    bulk = heavy_tailed(3000)
    values = torch.cat([bulk, torch.tensor([-1e30, 1e30])])
    centroids = optimal(values, 10)
    assert centroids[0].item() == -np.float32(1e30)
    assert centroids[-1].item() == np.float32(1e30)
    assert torch.allclose(centroids[1:-1], optimal(bulk, 8), rtol=1e-9)


def test_heavy_outliers_among_many_values(path):
    bulk = heavy_tailed(buckets.SORTED + 1)
    values = torch.cat([bulk, torch.tensor([-1e30, 1e30])])
    assert objective(bulk, optimal(values, 10)[1:-1]) == pytest.approx(objective(bulk, optimal(bulk, 8)), rel=1e-4)


@pytest.mark.parametrize("k", [1, 3, 7, 300])
def test_enough_centroids_give_no_error(k, path):
    values = torch.tensor([0.1, -0.3, 7.7]).repeat(50)
    centroids = optimal(values, k)
    if k >= 3:
        assert torch.equal(centroids, torch.tensor([-0.3, 0.1, 7.7]).double())
        assert objective(values, centroids) == 0.0
    else:
        assert torch.allclose(centroids, values.double().mean().reshape(1))


def test_enough_centroids_give_no_error_for_many_values(path):
    values = torch.tensor([0.1, -0.3, 7.7, 0.1000001]).repeat(buckets.SORTED // 3)
    assert torch.equal(optimal(values, 4), torch.tensor([-0.3, 0.1, 0.1000001, 7.7]).double())
    assert torch.equal(optimal(values, 1024), optimal(values, 4))


def test_many_values_so_near_one_another_that_they_share_their_leading_bits(path):
    generator = torch.Generator().manual_seed(0)
    values = 1 + 1e-4 * torch.rand(buckets.SORTED + 5, generator=generator)
    with_outlier = torch.cat([values, torch.tensor([-5.0])])
    single, counts = values.double().unique(return_counts=True)
    starts = partition(single.numpy(), counts.double().numpy(), 8)
    parts = np.split(np.arange(len(single)), starts[1:])
    means = [float((single[p] * counts[p]).sum() / counts[p].sum()) for p in parts]
    least = objective(values, torch.tensor(means, dtype=torch.float64))
    assert objective(values, optimal(values, 8)) == pytest.approx(least, rel=1e-4)
    assert objective(with_outlier, optimal(with_outlier, 9)) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_constant_single_and_empty(dtype):
    assert optimal(torch.full((7,), 0.5, dtype=dtype), 4).tolist() == [0.5]
    assert optimal(torch.tensor([-2.0], dtype=dtype), 1).tolist() == [-2.0]
    assert optimal(torch.empty(0, dtype=dtype), 4).shape == (0,)
    assert lloyd(torch.empty(0, dtype=dtype), torch.zeros(3)).shape == (0,)
    assert assign(torch.empty(0, dtype=dtype), torch.empty(0)).shape == (0,)
    assert optimal(torch.tensor([1.0, 2.0, 9.0], dtype=dtype), 2).dtype == torch.float64
    assert optimal(torch.tensor([1.0, 2.0, 9.0], dtype=dtype), 2).tolist() == [1.5, 9.0]


def test_negative_zero_is_zero(path):
    values = torch.tensor([-0.0, 0.0, 1.0])
    centroids = optimal(values, 3)
    assert centroids.tolist() == [0.0, 1.0]
    assert not torch.signbit(centroids[0])
    assert assign(values, centroids).tolist() == [0, 0, 1]
    assert assign(torch.tensor([-0.0, 0.0]), torch.tensor([-1.0, 1.0])).tolist() == [0, 0]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("k", [1, 4, 16])
def test_lloyd_never_grows_the_error_and_never_beats_the_optimum(how, k, path):
    values = heavy_tailed(4000)
    centroids = initial(values, k, how, torch.Generator().manual_seed(3))
    best, errors = objective(values, optimal(values, k)), [objective(values, centroids)]
    for _ in range(40):
        centroids = lloyd(values, centroids, 1)
        errors.append(objective(values, centroids))
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(errors))
    assert errors[-1] >= best * (1 - 1e-12)
    assert errors[-1] < errors[0] or k == 1
    settled = lloyd(values, centroids)
    assert torch.equal(lloyd(values, settled, 5), settled)


def test_lloyd_on_many_values_ends_where_every_centroid_is_the_mean_of_its_values(path):
    values = heavy_tailed(buckets.SORTED + 1000)
    centroids = lloyd(values, optimal(values, 6), 200)
    codes = assign(values, centroids).long()
    sums = torch.zeros(6, dtype=torch.float64).index_add_(0, codes, values.double())
    assert torch.allclose(sums / codes.bincount(minlength=6), centroids, rtol=1e-12)


def test_empty_clusters_move_to_the_farthest_value():
    values = torch.tensor([0.0, 1.0, 2.0, 50.0])
    # All values are nearest to the first: the second is empty, and 50 is farthest from the mean 13.25.
    assert lloyd(values, torch.tensor([0.0, 1000.0]), 1).tolist() == [13.25, 50.0]
    assert lloyd(values, torch.tensor([0.0, 1000.0])).tolist() == [1.0, 50.0]
    assert lloyd(torch.arange(64.0), torch.full((16,), 5.0)).unique().numel() == 16


def test_linear_start_spans_the_values():
    values = heavy_tailed(1000)
    start = initial(values, 9, "linear")
    assert start[0] == values.min()
    assert start[-1] == values.max()
    assert torch.allclose(start.diff(), start.diff().mean().expand(8))
    assert initial(torch.tensor([1.0, 3.0]), 1, "linear").tolist() == [2.0]


def test_density_start_is_evenly_spaced_on_uniform_values(path):
    values = torch.linspace(-1, 1, 16_001)[torch.randperm(16_001, generator=torch.Generator().manual_seed(0))]
    k = 16
    start = initial(values, k, "density")
    assert torch.allclose(start, -1 + 2 * (torch.arange(k).double() + 0.5) / k, atol=1e-3)
    # Within half a cell of the linear start, whose ends lie on the extremes.
    assert (start - initial(values, k, "linear")).abs().max() <= 1 / k + 1e-3


def test_density_start_on_many_values_gives_the_order_statistics(path):
    values = heavy_tailed(buckets.SORTED + 77)
    wanted = ((torch.arange(8) + 0.5) / 8 * len(values)).long()
    assert torch.equal(initial(values, 8, "density"), values.sort().values[wanted].double())


def test_forgy_start_draws_values_and_repeats():
    values = torch.arange(1000.0)
    drawn = initial(values, 20, "forgy")
    assert drawn.unique().numel() == 20
    assert set(drawn.tolist()) <= set(values.tolist())
    assert torch.equal(drawn, initial(values, 20, "forgy", torch.Generator().manual_seed(0)))
    assert not torch.equal(drawn, initial(values, 20, "forgy", torch.Generator().manual_seed(1)))
    assert torch.equal(initial(values[:5], 20, "forgy"), values[:5].double())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=12),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_assignment_is_by_the_midpoints_in_both_ways_of_computing(numbers, centers, dtype):
    centroids = torch.tensor(sorted(centers), dtype=torch.float64)
    middles = 0.5 * centroids[:-1] + 0.5 * centroids[1:]
    values = torch.cat([torch.tensor(numbers, dtype=torch.float64), centroids, middles]).to(dtype)
    expected = (values.double()[:, None] > middles).sum(1)
    with pytest.MonkeyPatch.context() as patch:
        for pure in ("0", "1"):
            patch.setenv("LILLIPUT_PURE", pure)
            assert torch.equal(assign(values, centroids).long(), expected)


def test_the_index_type_grows_with_the_codebook(path):
    values = torch.linspace(0, 1, 5000)
    assert assign(values, torch.linspace(0, 1, 256)).dtype == torch.uint8
    codes = assign(values, torch.linspace(0, 1, 257))
    assert codes.dtype == torch.int16
    assert codes.max() == 256


@pytest.mark.parametrize("length", [500, 40_000, buckets.SORTED + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compiled_and_numpy_code_give_the_same_centroids(length, dtype, monkeypatch):
    if extension() is None:
        pytest.skip("the compiled extension lilliput._cpp isn't built")
    values = torch.cat([heavy_tailed(length, dtype=dtype), torch.full((length // 50,), 0.01, dtype=dtype)])
    compiled = optimal(values, 12), lloyd(values, initial(values, 12, "linear"), 30)
    monkeypatch.setenv("LILLIPUT_PURE", "1")
    assert extension() is None
    pure = optimal(values, 12), lloyd(values, initial(values, 12, "linear"), 30)
    assert torch.equal(compiled[0], pure[0])
    assert torch.equal(compiled[1], pure[1])


def test_both_ways_cut_tight_clusters_alike(monkeypatch):
    if extension() is None:
        pytest.skip("the compiled extension lilliput._cpp isn't built")
    generator = np.random.default_rng(0)
    points = np.unique(np.concatenate([s + 1e-9 * generator.random(100) for s in (-1.0, 0.3, 1.0)]))
    weights = generator.integers(1, 1000, len(points)).astype(np.float64)
    compiled = partition(points, weights, 9)
    monkeypatch.setenv("LILLIPUT_PURE", "1")
    assert np.array_equal(compiled, partition(points, weights, 9))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=2, max_size=30))
def test_keys_order_floats(numbers):
    values = np.array(numbers, dtype=np.float32)
    keys = buckets.keys(values)
    assert np.array_equal(keys[:, None] < keys, values[:, None] < values)


def test_more_centroids_are_never_worse():
    values = heavy_tailed(3000)
    errors = [objective(values, optimal(values, k)) for k in (1, 2, 3, 4, 7, 15, 31, 63, 127, 255)]
    assert all(finer < coarser for coarser, finer in itertools.pairwise(errors))


@pytest.mark.parametrize(
    ("values", "k", "words"),
    [
        (torch.tensor([1.0, float("nan")]), 2, "NaN"),
        (torch.tensor([1.0, -float("inf")]), 2, "infinity"),
        (torch.tensor([1.0, 1e200], dtype=torch.float64), 2, "float32"),
        (torch.ones(2, 2), 2, "1-D"),
        (torch.ones(2, dtype=torch.int64), 2, "floating-point"),
        (torch.ones(2), 0, "0 clusters"),
        (torch.ones(2), 1025, "1025 clusters"),
    ],
)
def test_refusals(values, k, words):
    with pytest.raises(MethodError, match=words):
        optimal(values, k)
    with pytest.raises(MethodError, match=words):
        initial(values, k, "linear")
    with pytest.raises(MethodError, match=words):
        lloyd(values, torch.zeros(k))


def test_refusals_of_starts_and_centroids():
    with pytest.raises(MethodError, match="forgy, density, linear"):
        initial(torch.ones(3), 2, "nearest")
    with pytest.raises(MethodError, match="no values"):
        initial(torch.empty(0), 2, "linear")
    with pytest.raises(MethodError, match="ascend"):
        assign(torch.ones(3), torch.tensor([1.0, 0.0]))
    with pytest.raises(MethodError, match="0 clusters"):
        assign(torch.ones(3), torch.empty(0))
    with pytest.raises(MethodError, match="NaN"):
        assign(torch.ones(3), torch.tensor([float("nan")]))
