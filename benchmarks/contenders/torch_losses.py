"""torch, eager and compiled, and Liger's Triton kernels: on the CPU, or on the GPU where JAX has one.

The arrays are JAX's own, shared without a copy. `kernel` is the exception: torch's linear layers hold it as [V, D].
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.cases import LABEL_SMOOTHING, Case
from benchmarks.contenders.base import Contender, Program, optional
from benchmarks.data import Data

IGNORED = -100
Loss = Callable[[dict[str, Any]], Any]  # torch is optional: a dict of tensors in, a tensor out


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def no_device() -> str | None:
    torch = optional("torch")
    if jax.default_backend() not in ("cpu", "gpu"):
        return f"torch does not run on {jax.default_backend()}"
    return "this torch cannot use the GPU" if on_gpu() and not torch.cuda.is_available() else None


def no_gpu() -> str | None:
    return no_device() if on_gpu() else "runs on a GPU only"


def no_linear_cross_entropy() -> str | None:
    torch = optional("torch")
    if not hasattr(torch.nn.functional, "linear_cross_entropy"):
        return f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy"
    return no_device()


def tensors(case: Case, data: Data) -> dict[str, Any]:
    """The data as torch's losses want them: int64 ids, the mask as an ignored id, the kernel as [V, D]."""
    torch = optional("torch")
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


def eager(case: Case) -> Loss:
    functional = optional("torch.nn.functional")
    match case.kind:
        case "linear":
            return lambda t: functional.cross_entropy(functional.linear(t["hidden"], t["kernel"]), t["labels"])
        case "multilabel":
            return lambda t: functional.binary_cross_entropy_with_logits(t["logits"], t["labels"])
        case "weighted":
            return lambda t: functional.cross_entropy(
                t["logits"],
                t["labels"],
                weight=t["class_weight"],
                ignore_index=IGNORED,
                label_smoothing=LABEL_SMOOTHING,
            )
    return lambda t: functional.cross_entropy(t["logits"], t["labels"])


def compiled(case: Case) -> Loss:
    torch = optional("torch")
    # Else it counts the cases before this one as recompilations, and gives up after some.
    torch.compiler.reset()
    return torch.compile(eager(case), dynamic=False)


def chunked(case: Case) -> Loss:
    nn = optional("torch.nn")
    options = nn.LinearCrossEntropyOptions()
    return lambda t: nn.functional.linear_cross_entropy(t["hidden"], t["kernel"], t["labels"], options=options)


def liger(case: Case) -> Loss:
    functional = optional("liger_kernel.transformers.functional")
    if case.kind == "linear":
        return lambda t: functional.liger_fused_linear_cross_entropy(t["hidden"], t["kernel"], t["labels"])
    return lambda t: functional.liger_cross_entropy(t["logits"], t["labels"])


def prepare(
    loss_of: Callable[[Case], Loss], case: Case, data: Data, *, compiles: bool = False, overwrites: bool = False
) -> Program:
    """`compiles`: at its first call. `overwrites`: it may leave the gradient where the logits were."""
    torch = optional("torch")
    if on_gpu():
        torch.set_float32_matmul_precision("high")  # TensorFloat-32, as JAX does
    loss, arguments = loss_of(case), tensors(case, data)
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

    start = time.perf_counter()
    if compiles:
        call()
    seconds = time.perf_counter() - start if compiles else None
    return Program(
        call=call,
        outputs=partial(outputs, case),
        output_bytes=sum(t.numel() * t.element_size() for t in by) if case.mode == "grad" else 0,
        compile_seconds=seconds,
        device_growth=partial(device_growth, call) if by[0].is_cuda else None,
        restore=restore if overwrites else None,
    )


def outputs(case: Case, result: Any) -> tuple[float, dict[str, np.ndarray]]:
    loss, gradients = result
    named = dict(zip(case.differentiated, (g.float().cpu().numpy() for g in gradients), strict=False))
    if "kernel" in named:
        named["kernel"] = named["kernel"].T
    return loss.item(), named


def device_growth(call: Callable[[], Any]) -> int:
    """What one call takes of the GPU's memory at its peak."""
    torch = optional("torch")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


CONTENDERS = [
    Contender("torch", partial(prepare, eager), modules=("torch",), missing=no_device),
    Contender(
        "torch linear_cross_entropy",
        partial(prepare, chunked),
        kinds=("linear",),
        modules=("torch",),
        missing=no_linear_cross_entropy,
    ),
    Contender("torch.compile", partial(prepare, compiled, compiles=True), modules=("torch",), missing=no_gpu),
    Contender(
        "liger",
        partial(prepare, liger, compiles=True, overwrites=True),
        kinds=("ids", "linear"),
        modules=("torch", "liger_kernel"),
        missing=no_gpu,
    ),
]
