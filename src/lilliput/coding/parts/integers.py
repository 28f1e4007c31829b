"""Which integer arrays the codings take, and the checks that every decoder makes on its result."""

import math

import numpy as np

from lilliput.core.errors import FileError

DTYPES = ("bool", "uint8", "int8", "int16", "uint16", "int32", "int64")


def as_integers(array: np.ndarray) -> np.ndarray:
    """The array in C order, with bool as uint8.

    Raises:
        TypeError: the dtype isn't one of `DTYPES`.
    """
    if array.dtype.name not in DTYPES:
        raise TypeError(f"an array of {array.dtype} can't be coded: give one of {', '.join(DTYPES)}")
    flat = np.ascontiguousarray(array).reshape(array.shape)
    return flat.view(np.uint8) if flat.dtype == np.bool_ else flat


def bounds(array: np.ndarray) -> tuple[int, int]:
    """Smallest and largest value as Python integers; the array is not empty."""
    return int(array.min()), int(array.max())


def numel(shape: tuple[int, ...]) -> int:
    """Number of elements of a shape, exact however large."""
    return math.prod(shape)


def check_target(dtype: np.dtype) -> np.dtype:
    """The dtype that values are stored in before a final view: bool is coded as uint8.

    Raises:
        FileError: not a dtype that is coded.
    """
    if dtype.name not in DTYPES:
        raise FileError(f"coded integers can't be of type {dtype}: known are {', '.join(DTYPES)}")
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype


def check_range(low: int, high: int, dtype: np.dtype) -> None:
    """Refuse values that the dtype can't hold.

    Raises:
        FileError: `low` or `high` lies outside the dtype's range.
    """
    least, most = (0, 1) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if low < least or high > most:
        raise FileError(f"coded values run from {low} to {high}, outside the range of {dtype}")


def finish(values: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Give decoded values of the storage dtype their shape and final dtype."""
    return (values.view(np.bool_) if dtype == np.bool_ else values).reshape(shape)
