"""The host's memory in one piece, pinned where a GPU copies from and to it, out of which tensors are cut."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes, at a multiple of which each tensor begins


class HostMemory:
    """Zeros, of the bytes that its tensors take and no more.

    torch's own allocator rounds every pinned tensor up to a power of two, up to twice the bytes.

    Args:
        tensors: those that `zeros_like` will be asked for, each once.
        pinned: whether a GPU copies from it and to it.

    Raises RuntimeError where there is too little, or it can't be pinned.
    """

    def __init__(self, tensors: Iterable[Tensor], pinned: bool) -> None:
        self._taken, self.size = 0, max(mmap.PAGESIZE, sum(_room(x) for x in tensors))
        try:
            self._memory = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise _refused(self.size, error.strerror) from None
        if pinned:
            with suppress(OSError):  # of a kernel that doesn't know the advice
                self._memory.madvise(mmap.MADV_DONTFORK)  # else it copies all pinned pages for each data worker
                self._memory.madvise(mmap.MADV_HUGEPAGE)  # of which there are fewer to pin
            address = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
            _pin(address, self.size)
            weakref.finalize(self, _unpin, address).atexit = False

    def zeros_like(self, tensor: Tensor) -> Tensor:
        """Of its shape and dtype, as a storage of its own: saved alone, it brings no other along."""
        if not tensor.numel():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        start, self._taken = self._taken, self._taken + _room(tensor)
        cut = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=start)
        return cut.view(tensor.shape)


def _room(tensor: Tensor) -> int:
    """Bytes, up to where the next one may begin."""
    return -(-tensor.numel() * tensor.itemsize // ALIGNMENT) * ALIGNMENT


def _pin(address: int, size: int) -> None:
    try:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, size, 0))
    except torch.cuda.CudaError as error:
        raise _refused(size, error) from None


def _unpin(address: int) -> None:
    torch.cuda.synchronize()  # copies may be on their way
    torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(address))


def _refused(size: int, reason: object) -> RuntimeError:
    return RuntimeError(
        f"the optimizer's momenta can't wait in {size / 1e9:.1f} GB of the host's memory ({reason}): set "
        "model.offload_optimizer false, or share the model out to processes on more hosts"
    )
