"""The few calls of the NVIDIA driver that running a plan needs, through ctypes.

`libcuda` is part of every NVIDIA driver, on servers, PCs and Jetson boards, and its C interface is stable, so a
board needs no CUDA toolkit and no Python package for it. The device's primary context is used, which is the one
that TensorRT, PyTorch and ONNX Runtime share.

Source: CUDA driver API reference, sections device, primary context, memory and stream management.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any

from numpy.typing import NDArray

from bevkd_deploy.contracts.errors import BevkdError, CannotRunHere

_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit synchronisation with the default stream

#: Argument types of each call; all return a CUresult. Device pointers are 64 bits wide.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_int,),
    "cuGetErrorString": (c_int, c_void_p),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_int),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
}


class CudaDriver:
    """The first visible GPU, its primary context and one stream.

    Attributes:
        device_name: marketing name.
        compute_capability: such as "8.9".
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
        device = c_int()
        self._call("cuDeviceGet", byref(device), 0)
        self._device = device.value
        name_buffer = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name_buffer, len(name_buffer), self._device)
        self.device_name = name_buffer.value.decode()
        self.compute_capability = f"{self._attribute(_CAPABILITY_MAJOR)}.{self._attribute(_CAPABILITY_MINOR)}"
        self._buffers: list[int] = []
        self._context = c_void_p()
        self._stream: c_void_p | None = None

    @classmethod
    def load(cls) -> CudaDriver:
        """Open the driver and look at the first GPU; no context is created yet.

        Raises:
            CannotRunHere: there is no driver or no GPU.
        """
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise CannotRunHere(f"no NVIDIA GPU: the driver's {_LIBRARY} is not on this machine") from error
        count = c_int()
        status = library.cuInit(0) or library.cuDeviceGetCount(byref(count))
        if status or not count.value:
            raise CannotRunHere(f"no NVIDIA GPU: the driver is installed but shows none (code {status})")
        return cls(library)

    def start(self) -> None:
        """Retain the primary context, make it current in this thread and create the stream."""
        stream = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self.activate()
        self._call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self._stream = stream

    def activate(self) -> None:
        """Make the context current in the calling thread; whatever follows in it uses this GPU."""
        self._call("cuCtxSetCurrent", self._context)

    @property
    def stream(self) -> int:
        """Handle of the stream, as TensorRT takes it."""
        if self._stream is None or self._stream.value is None:
            raise BevkdError("the CUDA stream is not open; call start() first")
        return self._stream.value

    def allocate(self, size_bytes: int) -> int:
        """Device memory, freed by `close`."""
        pointer = c_uint64()
        self._call("cuMemAlloc_v2", byref(pointer), max(size_bytes, 1))
        self._buffers.append(pointer.value)
        return pointer.value

    def upload(self, pointer: int, array: NDArray[Any]) -> None:
        """Queue a copy of a C-contiguous array to device memory."""
        self._call("cuMemcpyHtoDAsync_v2", pointer, array.ctypes.data, array.nbytes, self.stream)

    def download(self, array: NDArray[Any], pointer: int) -> None:
        """Queue a copy of device memory into a C-contiguous array; valid after `synchronize`."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, pointer, array.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait until everything queued on the stream is done."""
        self._call("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free memory and stream and give the context back."""
        if self._stream is None:
            return
        self.activate()
        for pointer in self._buffers:
            self._call("cuMemFree_v2", pointer)
        self._buffers.clear()
        self._call("cuStreamDestroy_v2", self._stream)
        self._stream = None
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), attribute, self._device)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = c_char_p()
            self._library.cuGetErrorString(status, byref(text))
            reason = text.value.decode() if text.value else "unknown error"
            raise BevkdError(f"the NVIDIA driver refused {name}: {reason} (code {status})")
