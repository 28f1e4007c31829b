"""A file appears whole under its name or not at all, whatever goes wrong; and what can't be written is said."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lilliput.core.errors import FileError
from lilliput.core.packed import Packed
from lilliput.file import read, write
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_folder
from lilliput.quantize.uniform import Uniform
from lilliput.testing.mutate import Forged

ARTIFACT = Artifact({"w": torch.arange(5000.0)})


def refused(artifact, path):
    with pytest.raises(FileError) as caught:
        write.write(artifact, path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_a_process(code, *arguments, **options):
    """Runs Python that sees this package and prints what it has to say."""
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **options)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "net.safetensors"
    write.write(Artifact({"old": torch.ones(3)}), path)
    before = path.read_bytes()
    code = (
        "import resource, sys, torch; from lilliput.file import write; from lilliput.file.artifact import Artifact\n"
        "artifact = Artifact({'w': torch.arange(5000.0)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write.write(artifact, sys.argv[1])\n"
        "except write.FileError as error: print(error)"
    )
    done = in_a_process(code, path)
    assert done.stdout.count("\n") == 1
    assert str(path) in done.stdout
    assert "File too large" in done.stdout
    assert os.listdir(tmp_path) == ["net.safetensors"]
    assert path.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_device_without_space(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        assert "No space left" in refused(ARTIFACT, tmp_path / "net.safetensors")
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write.write(ARTIFACT, tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == []


def test_a_folder_or_device_is_no_file(tmp_path):
    assert "folder or a device" in refused(ARTIFACT, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "folder or a device" in refused(ARTIFACT, tmp_path / "pipe")
    assert "folder or a device" in refused(ARTIFACT, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def made_folder(path, text):
    path.mkdir()
    (path / "Manifest.json").write_text(text)
    return path


def test_a_folder_appears_whole_and_is_replaced(tmp_path):
    target = tmp_path / "net.mlpackage"
    for text in ("one", "two"):
        write_folder(target, made_folder(tmp_path / text, text))
        assert (target / "Manifest.json").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.mlpackage", "one", "two"]


def test_a_folder_of_another_kind_is_not_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(FileError, match="something else is there"):
        write_folder(tmp_path / "home", made_folder(tmp_path / "new", "new"))
    assert (tmp_path / "home" / "letters.txt").read_text() == "dear"


def test_the_folder_that_was_there_stays_where_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    target = made_folder(tmp_path / "net.mlpackage", "old")
    new, rename = made_folder(tmp_path / "new", "new"), Path.rename

    def failing(self, other):
        if self.suffix == ".part":
            raise OSError(28, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(FileError, match="No space left"):
        write_folder(target, new)
    assert (target / "Manifest.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.mlpackage", "new"]


def test_a_missing_folder(tmp_path):
    assert "doesn't exist" in refused(ARTIFACT, tmp_path / "none" / "net.safetensors")


def test_a_folder_that_cannot_be_written_to():
    place = "/proc/net.safetensors" if os.geteuid() == 0 else "/net.safetensors"
    assert "can't be written" in refused(ARTIFACT, place)


def test_a_link_is_followed_and_permissions_stay(tmp_path):
    target, link = tmp_path / "real", tmp_path / "link"
    write.write(ARTIFACT, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~_mask()
    target.chmod(0o640)
    link.symlink_to(target)
    write.write(Artifact({"new": torch.ones(2)}), link)
    assert link.is_symlink()
    assert list(read.read(target).weights) == ["new"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def _mask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


BAD = {
    "complex": ({"w": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    "float8": ({"w": torch.ones(2).to(torch.float8_e4m3fn)}, "float8"),
    "path": ({"../../etc/passwd": torch.ones(2)}, "path"),
    "absolute": ({"/etc/passwd": torch.ones(2)}, "path"),
    "windows": ({"c:\\x": torch.ones(2)}, "path"),
    "control": ({"a\nb": torch.ones(2)}, "unprintable"),
    "empty": ({"": torch.ones(2)}, "empty"),
    "dots": ({"a..b": torch.ones(2)}, "empty"),
    "long": ({"x" * 513: torch.ones(2)}, "too long"),
    "own": ({"lilliput.manifest": torch.ones(2)}, "for itself"),
    "nan": ({"w": Uniform().pack(torch.ones(2, 2)).with_parts(scale=torch.tensor([1.0, torch.nan]))}, "NaN"),
    "method": ({"w": Packed("os/system", (2,), torch.float32, {})}, "no path of a weight method"),
    "setting": ({"w": Packed("quantize/uniform", (2,), torch.float32, {}, {"a": float("nan")})}, "finite"),
    "part": ({"w": Packed("quantize/uniform", (2,), torch.float32, {"a/b": torch.ones(2)})}, "name of a part"),
    "integer": ({"w": Packed("quantize/uniform", (2,), torch.int8, {})}, "floating-point"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_file_cannot_hold(name, tmp_path):
    held, word = BAD[name]
    assert word in refused(Artifact(held), tmp_path / "net.safetensors")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "artifact",
    [
        Artifact({"a": torch.ones(1)}, aliases={"b": "c"}),
        Artifact({"a": torch.ones(1)}, aliases={"a": "a"}),
        Artifact({"a": torch.ones(1)}, constants={"a": torch.ones(1)}),
        Artifact({}, facts={"model": torch.nn.Linear(1, 1)}),
        Artifact({}, facts={1: 2}),
        Artifact({}, facts={"big": 10**50}),
        Artifact({}, facts={"surrogate": "\ud800"}),
    ],
)
def test_artifacts_that_contradict_themselves(artifact):
    with pytest.raises(FileError):
        write.dumps(artifact)


def test_facts_nested_without_end():
    facts = {}
    facts["self"] = facts
    with pytest.raises(FileError, match="nested too deep"):
        write.dumps(Artifact({}, facts=facts))


def test_names_that_clash_only_when_floats_have_names():
    held = {"a/scale": torch.rand(3), "a": Uniform().pack(torch.rand(3, 4))}
    with pytest.raises(FileError, match="same name"):
        write.dumps(Artifact(held), "named")
    assert torch.equal(read.loads(write.dumps(Artifact(held))).weights["a/scale"], held["a/scale"])


def test_unknown_form():
    with pytest.raises(FileError, match="solid"):
        write.dumps(ARTIFACT, "zip")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["named", "solid"])
def test_a_large_tensor_takes_less_than_twice_its_memory(form, tmp_path):
    code = (
        "import re, sys, torch; from lilliput.file import read, write\n"
        "from lilliput.file.artifact import Artifact\n"
        "path, form, what = sys.argv[1:]\n"
        "read.loads(write.dumps(Artifact({'w': torch.rand(9)})))\n"
        # ru_maxrss would start from what the parent process had.
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "start = peak()\n"
        "if what == 'write': write.write(Artifact({'w': torch.arange(24 * 2**20, dtype=torch.float32)}), path, form)\n"
        "else: print(float(read.read(path).weights['w'][-1]), file=sys.stderr)\n"
        "print(peak() - start)"
    )
    path = tmp_path / "net.safetensors"
    size = 4 * 24 * 2**20
    assert int(in_a_process(code, path, form, "write").stdout) < 1.5 * size
    done = in_a_process(code, path, form, "read")
    limit = 1.25 if form == "named" else 2.1
    assert int(done.stdout) < limit * size
    assert float(done.stderr) == 24 * 2**20


def test_missing_files_and_folders_cannot_be_read(tmp_path):
    for path in (tmp_path / "none", tmp_path, Path("/dev/zero")):
        with pytest.raises(FileError, match=r"can't be read|not a file"):
            read.read(path)


def test_memory_that_is_not_there_is_said_in_a_line(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(Forged(b'{"w":{"w":["F32",[1073741824],"=","00000000"]}}').seal())
    code = (
        "import resource, sys; from lilliput.file import read\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "try: read.read(sys.argv[1])\n"
        "except read.FileError as error: print(error)"
    )
    assert f"{path}: there isn't memory enough for the {2**32} bytes" in in_a_process(code, path).stdout
