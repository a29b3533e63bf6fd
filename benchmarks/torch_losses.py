"""torch, eager and compiled, and Liger's Triton kernels: on the CPU, or on the GPU where JAX has one.

The arrays are JAX's own, shared without a copy. `kernel` is the exception: torch's linear layers hold it as [V, D].
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.cases import Case, Data
from benchmarks.contenders import Contender, Program, not_installed
from benchmarks.losses import SMOOTHING

IGNORED = -100
KINDS = ("ids", "soft", "weighted", "segmentation", "multilabel", "log-probs", "linear")
Loss = Callable[[dict[str, Any]], Any]  # torch is optional: a dict of tensors in, a tensor out


def _torch() -> Any:
    """Imports torch, which is optional."""
    return importlib.import_module("torch")


def _why_absent(*modules: str, gpu: bool = False, function: str = "cross_entropy") -> str | None:
    backend = jax.default_backend()
    if reason := not_installed("torch", *modules):
        return reason
    if not hasattr(_torch().nn.functional, function):
        return f"torch {_torch().__version__} has no torch.nn.functional.{function}"
    if backend not in ("cpu", "gpu") or (backend == "gpu" and not _torch().cuda.is_available()):
        return f"this torch does not run on JAX's {backend}"
    return "runs on a GPU only" if gpu and backend != "gpu" else None


def _tensors(data: Data) -> dict[str, Any]:
    """The data as torch's losses want them: int64 ids, the mask as an ignored id, the kernel as [V, D]."""
    torch = _torch()
    result = {name: torch.from_dlpack(array) for name, array in data.items() if name != "where"}
    if not result["labels"].is_floating_point():
        result["labels"] = result["labels"].long()
    if "where" in data:
        where = torch.from_numpy(np.array(data["where"])).to(result["labels"].device)
        result["labels"] = result["labels"].masked_fill(~where, IGNORED)
    if "class_weight" in data:
        result["class_weight"] = result["class_weight"].to(result["logits"].dtype)
    if "kernel" in data:
        result["kernel"] = result["kernel"].T.contiguous()
    return result


def _eager(case: Case) -> Loss:
    functional = _torch().nn.functional
    match case.kind:
        case "linear":
            return lambda t: functional.cross_entropy(functional.linear(t["hidden"], t["kernel"]), t["labels"])
        case "multilabel":
            return lambda t: functional.binary_cross_entropy_with_logits(t["logits"], t["labels"])
        case "log-probs":
            return lambda t: functional.nll_loss(t["logits"], t["labels"])
    smoothing = SMOOTHING if case.kind == "weighted" else 0.0
    return lambda t: functional.cross_entropy(
        t["logits"], t["labels"], weight=t.get("class_weight"), ignore_index=IGNORED, label_smoothing=smoothing
    )


def _compiled(case: Case) -> Loss:
    # Otherwise it counts earlier cases as recompilations, and gives up after some.
    _torch().compiler.reset()
    return _torch().compile(_eager(case), dynamic=False)


def _chunked(case: Case) -> Loss:
    nn = _torch().nn
    options = nn.LinearCrossEntropyOptions()
    return lambda t: nn.functional.linear_cross_entropy(t["hidden"], t["kernel"], t["labels"], options=options)


def _liger(case: Case) -> Loss:
    functional = importlib.import_module("liger_kernel.transformers.functional")
    if case.kind == "linear":
        return lambda t: functional.liger_fused_linear_cross_entropy(t["hidden"], t["kernel"], t["labels"])
    return lambda t: functional.liger_cross_entropy(t["logits"], t["labels"])


def _prepare(
    loss_of: Callable[[Case], Loss], case: Case, data: Data, *, compiles: bool = False, overwrites: bool = False
) -> Program:
    """`compiles`: the first call compiles. `overwrites`: the gradient may overwrite the logits."""
    torch = _torch()
    if jax.default_backend() == "gpu":
        torch.set_float32_matmul_precision("high")  # TensorFloat-32, as in JAX
    loss, arguments = loss_of(case), _tensors(data)
    originals = {name: arguments[name] for name in case.differentiated} if overwrites else {}
    arguments.update({name: tensor.clone() for name, tensor in originals.items()})
    by = [arguments[name].requires_grad_(case.mode == "grad") for name in case.differentiated]

    def call() -> Any:
        if case.mode == "grad":
            value = loss(arguments)
            result = value.detach(), torch.autograd.grad(value, by)
        else:
            with torch.no_grad():
                result = loss(arguments), ()
        if by[0].is_cuda:
            torch.cuda.synchronize()
        return result

    def restore() -> None:
        with torch.no_grad():
            for name, original in originals.items():
                arguments[name].copy_(original)

    def growth() -> int:
        """The GPU memory that one call takes at its peak."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before

    start = time.perf_counter()
    if compiles:
        call()
    return Program(
        call=call,
        outputs=partial(_outputs, case),
        output_bytes=sum(t.numel() * t.element_size() for t in by) if case.mode == "grad" else 0,
        compile_seconds=time.perf_counter() - start if compiles else None,
        device_growth=growth if by[0].is_cuda else None,
        restore=restore if overwrites else None,
    )


def _outputs(case: Case, result: Any) -> tuple[float, dict[str, np.ndarray]]:
    loss, gradients = result
    named = dict(zip(case.differentiated, (g.float().cpu().numpy() for g in gradients), strict=False))
    if "kernel" in named:
        named["kernel"] = named["kernel"].T
    return loss.item(), named


def _contender(name: str, kinds: tuple[str, ...], prepare: Callable[..., Program], **absent: Any) -> Contender:
    modules = absent.pop("modules", ())
    return Contender(name, prepare, lambda case: case.kind in kinds, partial(_why_absent, *modules, **absent))


CONTENDERS = [
    _contender("torch", KINDS, partial(_prepare, _eager)),
    _contender("torch linear_cross_entropy", ("linear",), partial(_prepare, _chunked), function="linear_cross_entropy"),
    _contender("torch.compile", KINDS, partial(_prepare, _compiled, compiles=True), gpu=True),
    _contender(
        "liger",
        ("ids", "linear"),
        partial(_prepare, _liger, compiles=True, overwrites=True),
        modules=("liger_kernel",),
        gpu=True,
    ),
]
