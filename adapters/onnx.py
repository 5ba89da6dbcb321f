"""Export pruned networks as ONNX files, and check each file against torch.

ONNX has no product with a CSR or 2:4 weight, so layers with such weights are exported as dense
layers that contain the zeros. A network whose channels were removed has a smaller file.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.copies.agreement import run
from robust_plugin.export.replace_layers import dense_copy
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.prunable import refuse_fixed
from robust_plugin.runtime.calls import explain_wrong_calls
from robust_plugin.runtime.files import replacing
from robust_plugin.runtime.tolerances import ONNX_OUTPUTS
from robust_plugin.runtime.values import check_path, is_number

__all__ = ["OnnxFile", "export_onnx"]


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was written, and how far its outputs are from torch's.

    Attributes:
        path: path of the file.
        size: size of the file in bytes.
        difference: largest absolute difference between an output of onnxruntime and of torch,
            divided by the largest absolute output of torch, over all batch sizes that were tried.
        batch_sizes: the batch sizes that were tried.
    """

    path: Path
    size: int
    difference: float
    batch_sizes: tuple[int, ...]

    def __str__(self) -> str:
        """Return one line: name and size of the file, largest difference, and batch sizes."""
        sizes = ", ".join(map(str, sorted(set(self.batch_sizes))))
        return (
            f"{self.path.name}: {self.size:,} bytes, outputs within {self.difference:.1e} of "
            f"torch's (relative to the largest) at batch sizes {sizes}"
        )


@explain_wrong_calls
def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    tolerance: float = ONNX_OUTPUTS,
) -> OnnxFile:
    """Write a network as an ONNX file for any batch size, and check the file.

    onnxruntime runs the file on the example inputs, on the first example alone, and on a batch with
    every example twice. The file is written to ``path``, atomically, only if all outputs agree with
    torch's.

    Args:
        model: finalized network; it is not changed. It is exported in evaluation mode on the CPU.
        path: path of the file; its folder must exist.
        example_inputs: the inputs of one forward pass; dimension 0 of each tensor is the batch.
        tolerance: largest allowed absolute difference between outputs of onnxruntime and torch,
            divided by the largest absolute output of torch.

    Raises:
        ImportError: if a library is missing or torch is too old; the message says what to install.
        TypeError: if the model is not an nn.Module, or inputs or output are not tensors.
        ValueError: if a pruner is attached, the folder does not exist, the network cannot be
            exported or run, or its outputs differ.
    """
    onnxruntime = _libraries()
    refuse_fixed(model)
    path = check_path(path, written=True)
    if not (is_number(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance!r}; legal: at least 0.")
    if next(masked_weights(model), None) is not None:
        raise ValueError("a pruner is attached to the network; call pruner.finalize() first.")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} to write {path.name} to.")
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not all(isinstance(each, Tensor) for each in inputs):
        raise TypeError(f"example_inputs is a {type(example_inputs).__name__}; give tensors.")
    shapes = [tuple(each.shape) for each in inputs]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            f"example_inputs have shapes {shapes}; they need one batch size in common."
        )
    plain = dense_copy(model).cpu().eval().requires_grad_(False)
    inputs = tuple(each.detach().cpu() for each in inputs)
    try:
        with torch.no_grad():
            plain(*inputs)
    except (RuntimeError, IndexError, ValueError, TypeError):
        run(plain, inputs)  # raises an error that names the shapes
        raise
    with replacing(path) as partial:
        _write(plain, partial, inputs)
        difference, sizes = _compare(onnxruntime, plain, partial, inputs, tolerance)
    return OnnxFile(path, path.stat().st_size, difference, sizes)


def _write(model: nn.Module, path: Path, inputs: tuple[Tensor, ...]) -> None:
    """Write the network to an ONNX file that takes any batch size.

    Args:
        model: the network in evaluation mode on the CPU.
        path: path of the file.
        inputs: the inputs of one forward pass.

    Raises:
        ValueError: if torch cannot export the network.
    """
    # The inputs are doubled below, because torch.export takes a batch size of 1 as a constant.
    batch = torch.export.Dim("batch")
    try:
        torch.onnx.export(
            model,
            _twice(inputs),
            path,
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # exporting fails in many ways
        raise ValueError(f"torch cannot export {type(model).__name__}: {error}") from error


def _compare(
    onnxruntime: Any,
    model: nn.Module,
    path: Path,
    inputs: tuple[Tensor, ...],
    tolerance: float,
) -> tuple[float, tuple[int, ...]]:
    """Compare the outputs of an ONNX file in onnxruntime to those of the network in torch.

    Args:
        onnxruntime: the module onnxruntime.
        model: the network in evaluation mode on the CPU.
        path: the ONNX file.
        inputs: the inputs of one forward pass.
        tolerance: largest allowed relative difference.

    Returns:
        The largest absolute difference of two outputs, divided by the largest absolute output of
        torch, and the batch sizes that were tried.

    Raises:
        TypeError: if the network does not return a tensor.
        ValueError: if onnxruntime cannot run the file, or a difference is too large.
    """
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"onnxruntime cannot run the network: {error}") from error
    names = [each.name for each in session.get_inputs()]
    largest, sizes = 0.0, []
    for batch in (inputs, tuple(each[:1] for each in inputs), _twice(inputs)):
        with torch.no_grad():
            expected = model(*batch)
        if not isinstance(expected, Tensor):
            raise TypeError(
                f"the network returns a {type(expected).__name__}; wrap it in a module that "
                "returns a tensor."
            )
        fed = {name: each.numpy() for name, each in zip(names, batch, strict=True)}
        try:
            found = torch.from_numpy(session.run(None, fed)[0])
        except Exception as error:  # the exported graph may fit one batch size only
            raise ValueError(
                f"onnxruntime cannot run the network at batch size {len(batch[0])}: {error}"
            ) from error
        scale = max(float(expected.abs().amax()), torch.finfo(expected.dtype).tiny)
        difference = float((found - expected).abs().amax()) / scale
        if not difference <= tolerance:  # also raises for NaN
            raise ValueError(
                f"onnxruntime's outputs differ from torch's by {difference:.3g} of the largest, at "
                f"batch size {len(batch[0])}; the tolerance is {tolerance}. No file was written."
            )
        largest = max(largest, difference)
        sizes.append(len(batch[0]))
    return largest, tuple(sizes)


def _twice(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the inputs with every example twice along the batch dimension."""
    return tuple(torch.cat([each, each]) for each in inputs)


def _libraries() -> Any:
    """Return the module onnxruntime, or raise if something that the export needs is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "ONNX export needs three libraries: pip install onnx onnxruntime onnxscript"
        ) from error
    if "dynamo" not in inspect.signature(torch.onnx.export).parameters:
        raise ImportError(f"ONNX export needs torch 2.6 or newer; this is {torch.__version__}.")
    return onnxruntime


def __dir__() -> list[str]:
    return sorted(__all__)
