"""Where a pipeline's networks live: on one device in one dtype, or offloaded until their turn comes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from langevin.checkpoints import weights
from langevin.pipelines.parts import Parts

logger = logging.getLogger(__name__)

Self = TypeVar("Self", bound="Placement")

_ENTRANCES = ("encode", "decode", "embed_condition")
"""Methods besides ``forward`` by which networks are entered."""


class Placement(Parts):
    """Parts whose networks can be moved, converted and offloaded."""

    #: order in which networks take turns on the accelerator, ``"text_encoder->unet->vae"``
    model_cpu_offload_seq: str | None = None
    _exclude_from_cpu_offload: list[str] = []
    _offload_device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Device of the first network; the CPU while networks are offloaded."""
        if self._offload_device is not None:
            return torch.device("cpu")
        return next((tensor.device for tensor in self._first_weights()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first network."""
        return next((tensor.dtype for tensor in self._first_weights() if tensor.is_floating_point()), torch.float32)

    def _first_weights(self) -> Iterator[torch.Tensor]:
        for network in self._networks().values():
            yield from network.parameters()

    @property
    def _execution_device(self) -> torch.device:
        """Where networks run, which under offloading is not where they rest."""
        return self._offload_device or self.device

    def to(self: Self, *args: Any, silence_dtype_warnings: bool = False, **kwargs: Any) -> Self:
        """Move or convert all networks: ``to("cuda")``, ``to(torch.float16)``, ``to("cuda", torch.float16)``.

        Args:
            args: a device, a dtype, or both.
            silence_dtype_warnings: do not warn of half precision on the CPU.
            kwargs: ``device=`` and ``dtype=`` (also ``torch_device=`` and ``torch_dtype=``).

        Returns:
            The pipeline itself.

        Raises:
            ValueError: two devices or two dtypes are given, or something that is neither.
        """
        dtypes = [kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs]
        devices = [kwargs.pop(name) for name in ("device", "torch_device") if name in kwargs]
        if kwargs:
            raise ValueError(f"to() takes no {', '.join(kwargs)}; it takes device and dtype.")
        for value in args:
            (dtypes if isinstance(value, torch.dtype) else devices).append(value)
        dtypes, devices = [d for d in dtypes if d is not None], [d for d in devices if d is not None]
        if len(dtypes) > 1 or len(devices) > 1:
            raise ValueError(f"to() got devices {devices} and dtypes {dtypes}; give at most one of each.")
        dtype = weights.parse_dtype(dtypes[0]) if dtypes else None
        device = torch.device(devices[0]) if devices else None

        if self._offload_device is not None and device is not None:
            if device.type != "cpu":
                raise ValueError(
                    "The networks of this pipeline are offloaded and move by themselves; call remove_all_hooks() first."
                )
            self.remove_all_hooks()
        for network in self._networks().values():
            network.to(device=device, dtype=dtype)
        half_on_cpu = self.dtype == torch.float16 and device is not None and device.type == "cpu"
        if half_on_cpu and not silence_dtype_warnings:
            logger.warning("This pipeline is in float16, which is slow on a CPU; pipe.to(torch.float32) is faster.")
        return self

    # -- offloading (accelerate's hooks)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep networks on the CPU, and bring each to the accelerator when its turn comes.

        Args:
            gpu_id: which accelerator, where there are several.
            device: the device to compute on; the machine's accelerator where None.

        Raises:
            ImportError: accelerate is not installed.
            RuntimeError: there is no accelerator.
        """
        accelerate = _accelerate("enable_model_cpu_offload")
        device = _accelerator(gpu_id, device)
        self.remove_all_hooks()
        networks = self._networks()
        order = [name for name in (self.model_cpu_offload_seq or "").split("->") if name in networks]
        self.to("cpu", silence_dtype_warnings=True)
        hooks: list[Any] = []
        for name in order:
            _, hook = accelerate.cpu_offload_with_hook(networks[name], device, hooks[-1] if hooks else None)
            hooks.append(hook)
            _hook_methods(networks[name])
        for name in networks.keys() - order:
            if name in self._exclude_from_cpu_offload:
                networks[name].to(device)
            else:
                _, hook = accelerate.cpu_offload_with_hook(networks[name], device)
                hooks.append(hook)
                _hook_methods(networks[name])
        self.__dict__["_hooks"] = hooks
        self._offload_device = device

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Bring single layers to the accelerator when their turn comes: the least memory, and much slower.

        Arguments and errors are those of :meth:`enable_model_cpu_offload`.
        """
        accelerate = _accelerate("enable_sequential_cpu_offload")
        device = _accelerator(gpu_id, device)
        self.remove_all_hooks()
        self.to("cpu", silence_dtype_warnings=True)
        for name, network in self._networks().items():
            if name in self._exclude_from_cpu_offload:
                network.to(device)
            else:
                both = {**network.state_dict(), **{key: p.detach() for key, p in network.named_parameters()}}
                accelerate.cpu_offload(network, device, offload_buffers=bool(network._parameters), state_dict=both)
        self._offload_device = device

    def maybe_free_model_hooks(self) -> None:
        """At the end of a call: send the network that is still on the accelerator back to the CPU."""
        for hook in self.__dict__.get("_hooks", ()):
            hook.offload()

    def remove_all_hooks(self) -> None:
        """End offloading; networks are on the CPU afterwards."""
        if self._offload_device is None:
            return
        from accelerate.hooks import remove_hook_from_module

        self.maybe_free_model_hooks()
        for network in self._networks().values():
            remove_hook_from_module(network, recurse=True)
            for name in _ENTRANCES:
                network.__dict__.pop(name, None)
        self.__dict__["_hooks"] = []
        self._offload_device = None


def _accelerate(purpose: str) -> Any:
    try:
        import accelerate
    except ImportError:
        raise ImportError(f"{purpose} needs accelerate: pip install accelerate.") from None
    return accelerate


def _accelerator(gpu_id: int | None, device: torch.device | str | None) -> torch.device:
    device = device or weights.accelerator()
    if device is None:
        raise RuntimeError(
            "Offloading moves networks between CPU and accelerator; this machine has none. Pass device=… to name one."
        )
    device = torch.device(device)
    return torch.device(device.type, gpu_id) if gpu_id is not None else device


def _hook_methods(network: nn.Module) -> None:
    """Have a network's other entrances run its hook, as ``forward`` does."""
    for name in _ENTRANCES:
        method = getattr(network, name, None)
        if method is None:
            continue

        @functools.wraps(method)
        def entered(*args: Any, _method: Any = method, **kwargs: Any) -> Any:
            hook: Any = network._hf_hook
            args, kwargs = hook.pre_forward(network, *args, **kwargs)
            return _method(*args, **kwargs)

        network.__dict__[name] = entered
