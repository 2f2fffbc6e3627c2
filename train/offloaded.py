"""AdamW whose momenta wait in the host's memory: a parameter's come to its device for its update, and go back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .host_memory import HostMemory
from .shares import local_part, shared_as

MOMENTA = ("exp_avg", "exp_avg_sq")


class OffloadedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, to the bit: of its momenta only those of two parameters at a time are on their device.

    Parameters may be shared out to processes: each has the momenta of its own rows. `state` holds the steps alone, so
    that nobody who moves it (Lightning does, after loading) moves momenta; a state dict has them, as torch's would.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, fused=True)
        self._momenta: dict[nn.Parameter, dict[str, Tensor]] = {}
        self._streams: list[torch.cuda.Stream] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Raises RuntimeError where the host's memory can't be pinned, in the first one."""
        with torch.enable_grad():
            loss = closure() if closure else None
        self._reserve()
        with self._overlapped() as streams:
            for group in self.param_groups:
                moved = (x for x in group["params"] if x.grad is not None)
                for parameter, stream in zip(moved, streams):  # noqa: B905 - there is always another stream
                    with stream:
                        self._update(parameter, group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """As torch's AdamW has it. The momenta are what waits on the host, not a copy."""
        if self._streams:
            torch.cuda.synchronize()
        whole, parameters = super().state_dict(), self._parameters
        whole["state"] = {index: step | self._shared(parameters[index]) for index, step in whole["state"].items()}
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of torch's AdamW or this one. Momenta may be any mappings, of which one tensor at a time is read."""
        steps = {index: {"step": momenta["step"]} for index, momenta in state_dict["state"].items()}
        super().load_state_dict(state_dict | {"state": steps})
        self._reserve()
        for index, momenta in state_dict["state"].items():
            self._put(self._parameters[index], momenta)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [x for group in self.param_groups for x in group["params"]]

    def _reserve(self) -> None:
        """When they are first needed: until then parameters may lie on the meta device."""
        if self._momenta:
            return
        parts = {x: local_part(x) for x in self._parameters}
        on_gpu = any(x.is_cuda for x in parts.values())
        self._memory = HostMemory([x for x in parts.values() for _ in MOMENTA], pinned=on_gpu)
        self._momenta = {x: {name: self._memory.zeros_like(part) for name in MOMENTA} for x, part in parts.items()}
        # kept: torch's allocator has memory apart for each stream
        self._streams = [torch.cuda.Stream() for _ in range(2)] if on_gpu else []

    def _update(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        part, waiting, state = local_part(parameter), self._momenta[parameter], self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=part.device)
        near = {name: x.to(part.device, non_blocking=True) for name, x in waiting.items()}
        adamw(
            [part], [local_part(parameter.grad)], [near["exp_avg"]], [near["exp_avg_sq"]], [], [state["step"]],
            fused=True, amsgrad=False, maximize=False, lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
            eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip
        for name, x in waiting.items():
            x.copy_(near[name], non_blocking=True)  # on a CPU both are the same

    def _shared(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {name: shared_as(x, parameter) for name, x in self._momenta[parameter].items()}

    def _put(self, parameter: nn.Parameter, momenta: Mapping[str, Tensor]) -> None:
        for name, x in self._momenta[parameter].items():
            x.copy_(local_part(momenta[name]))

    @contextmanager
    def _overlapped(self) -> Iterator[Iterator[AbstractContextManager]]:
        """Two streams in turn: while one brings momenta, the other takes those before back. What was queued before is
        done before them, what is queued next after them.
        """
        if not self._streams:
            yield cycle([nullcontext()])
            return
        now = torch.cuda.current_stream()
        for stream in self._streams:
            stream.wait_stream(now)
        yield cycle([torch.cuda.stream(x) for x in self._streams])
        for stream in self._streams:
            now.wait_stream(stream)
