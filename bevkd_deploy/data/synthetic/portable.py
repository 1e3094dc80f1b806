"""Arithmetic that gives the same bits on every machine, so that the same seed writes the same files.

NumPy's `+ - * /`, `sqrt`, comparisons and rounding work number by number and are exact by IEEE 754 whatever the CPU.
Its sine, exponential, matrix products (BLAS), `einsum` and `hypot` are not: they pick a kernel by CPU and differ in the
last bit. The generator therefore computes what it writes with the functions below, which use the former alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: pi / 2 in two parts; the first has 33 bits, so its small multiples are exact.
_QUARTER_HIGH, _QUARTER_LOW = 1.57079632673412561417, 6.07710050650619224932e-11
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_DIVISORS = [np.array([n * (n + 1.0), n * (n - 1.0)]) for n in range(16, 0, -2)]
_NORMAL_STEP = 2.0**-24


def cos_sin(angle_rad: ArrayLike) -> tuple[Any, Any]:
    """Cosine and sine, to 2e-15 for angles up to a few hundred turns."""
    angle = np.asarray(angle_rad, dtype=np.float64)
    if not angle.shape:
        one = cos_sin_of(float(angle))
        return np.float64(one[0]), np.float64(one[1])
    quarters = np.round(angle * (2 / np.pi))
    rest = (angle - quarters * _QUARTER_HIGH) - quarters * _QUARTER_LOW
    square = rest * rest
    both = np.ones((2, *square.shape))  # sine / rest, cosine
    for divisors in _DIVISORS:  # Taylor series on [-pi/4, pi/4], innermost term first
        both *= square
        both /= divisors.reshape(2, *(1,) * square.ndim)
        np.subtract(1.0, both, out=both)
    sine, cosine = both[0] * rest, both[1]
    turn = quarters.astype(np.int64) & 3
    swapped = (turn & 1).astype(bool)
    first, second = np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)
    return np.where((turn == 1) | (turn == 2), -first, first), np.where(turn >= 2, -second, second)


def cos_sin_of(angle_rad: float) -> tuple[float, float]:
    """The same bits as `cos_sin` for one number, at a fortieth of the time."""
    quarters = round(angle_rad * (2 / np.pi))
    rest = (angle_rad - quarters * _QUARTER_HIGH) - quarters * _QUARTER_LOW
    square = rest * rest
    sine = cosine = 1.0
    for n in range(16, 0, -2):
        sine = 1.0 - sine * square / (n * (n + 1))
        cosine = 1.0 - cosine * square / (n * (n - 1))
    sine *= rest
    turn = quarters & 3
    if turn & 1:
        sine, cosine = cosine, sine
    return -cosine if turn in (1, 2) else cosine, -sine if turn >= 2 else sine


def exp(value: ArrayLike) -> Array:
    """Exponential, to 1e-15 of its value."""
    x = np.asarray(value, dtype=np.float64)
    twos = np.round(x * (1 / 0.6931471805599453))
    rest = (x - twos * _LN2_HIGH) - twos * _LN2_LOW
    series = np.ones_like(rest)
    for n in range(14, 0, -1):
        series *= rest
        series *= 1.0 / n
        series += 1.0
    result: Array = np.ldexp(series, twos.astype(np.int32))
    return result


def length(*components: Array) -> Array:
    """Euclidean length of vectors given by their components."""
    total = components[0] * components[0]
    for component in components[1:]:
        total = total + component * component
    result: Array = np.sqrt(total)
    return result


def extent(values: Array) -> tuple[Array, Array]:
    """Least and greatest over axis 1, which is short: NumPy is quick over a long last axis only."""
    leading = np.ascontiguousarray(np.moveaxis(values, 1, 0))
    return leading.min(axis=0), leading.max(axis=0)


def dot(a: Array, b: Array) -> Array:
    """Scalar product over a last axis of three."""
    result: Array = a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]
    return result


def rotate(rotation: Array, vectors: Array) -> Array:
    """Vectors [..., 3] turned by one matrix [3, 3]."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    result = np.empty(np.shape(vectors))
    for row in range(3):
        result[..., row] = rotation[row, 0] * x + rotation[row, 1] * y + rotation[row, 2] * z
    return result


def transform(src2dst: Array, points: Array) -> Array:
    """Points [..., 3] moved by a 4x4 matrix."""
    result: Array = rotate(src2dst[:3, :3], points) + src2dst[:3, 3]
    return result


def product(a: Array, b: Array) -> Array:
    """Matrix product of two 3x3 matrices."""
    return rotate(a, b.T).T


def invert_rigid(src2dst: Array) -> Array:
    """Inverse of a rotation and translation, [4, 4]."""
    result = np.eye(4)
    result[:3, :3] = src2dst[:3, :3].T
    result[:3, 3] = -rotate(src2dst[:3, :3].T, src2dst[:3, 3])
    return result


def turn_z(yaw_rad: float) -> Array:
    """Rotation about +z, [3, 3]."""
    cos, sin = cos_sin_of(yaw_rad)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def interpolate(where: Array, start: float, step: float, values: Array) -> Array:
    """Linear interpolation in `values` [K], which lie at start, start + step, ...; the ends go on as they are."""
    place = np.clip((where - start) / step, 0.0, len(values) - 1.0)
    index = np.minimum(place.astype(np.int64), len(values) - 2)
    share = place - index
    result: Array = values[index] * (1.0 - share) + values[index + 1] * share
    return result


class PortableGenerator(np.random.Generator):
    """A PCG64 generator whose real numbers are the same on every machine.

    Raw bits, integers, permutations and `random()` are exact already. NumPy scales uniform and normal numbers in
    compiled code, where some compilers fuse the multiplication and the addition, and takes the normal distribution's
    tail from the C library's logarithm: here the scaling is NumPy arithmetic, and normal numbers are rounded to 2**-24.
    A last-bit difference in the tail (3 of 10 000 draws) survives that rounding about once in 10**12 draws.
    """

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random(size)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """Normal numbers in steps of 2**-24."""
        if dtype is not np.float64 or out is not None:
            raise TypeError("PortableGenerator.standard_normal makes new float64 numbers only")
        return np.round(super().standard_normal(size) * (1 / _NORMAL_STEP)) * _NORMAL_STEP

    def normal(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        """Normal numbers of a mean and a standard deviation."""
        return loc + scale * self.standard_normal(size)


def generators(entropy: list[int], count: int) -> list[PortableGenerator]:
    """Independent streams of one seed."""
    return [PortableGenerator(np.random.PCG64(stream)) for stream in np.random.SeedSequence(entropy).spawn(count)]
