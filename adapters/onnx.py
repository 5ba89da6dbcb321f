"""ONNX files of pruned networks, run and compared before they are handed out.

ONNX has no product with a CSR or 2:4 weight: such layers are exported as the dense layers they
came from, with zeros in place. A network whose channels were removed is smaller in the file too.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugin.export.csr_layers import dense_copy
from robust_plugin.masks.attach import masked_weights
from robust_plugin.masks.prunable import refuse_fixed


@dataclass(frozen=True)
class OnnxFile:
    """A file that was written, and how far its outputs are from torch's.

    Attributes:
        path: the file.
        size: in bytes.
        difference: the largest, over the largest output; at the batch sizes that were compared.
        batch_sizes: those.
    """

    path: Path
    size: int
    difference: float
    batch_sizes: tuple[int, ...]

    def __str__(self) -> str:
        """Return one line."""
        sizes = ", ".join(map(str, sorted(set(self.batch_sizes))))
        return (
            f"{self.path.name}: {self.size:,} bytes, outputs within {self.difference:.1e} of "
            f"torch's (relative to the largest) at batch sizes {sizes}"
        )


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    tolerance: float = 1e-4,
) -> OnnxFile:
    """Write a network as ONNX, with any number of examples in a batch, and check the file.

    The file is run in onnxruntime on the example inputs, on the first of them alone, and on twice
    as many; only if all outputs are torch's does it take its place, atomically.

    Args:
        model: finalized; it is left as it is, and exported in evaluation mode from the CPU.
        path: the file; its folder must exist.
        example_inputs: what one forward pass takes; dimension 0 of each tensor is the batch.
        tolerance: the largest difference of an output that passes, over the largest output.

    Raises:
        ImportError: saying what to install.
        TypeError: if the model is no nn.Module, or inputs or output are no tensors.
        ValueError: if a pruner is attached, there is no such folder, the network cannot be
            exported or run, or its outputs differ.
    """
    onnxruntime = _libraries()
    refuse_fixed(model)
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path is {path}, a folder; give the name of a file.")
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _write(plain, partial, inputs)
        difference, sizes = _compare(onnxruntime, plain, partial, inputs, tolerance)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return OnnxFile(path, path.stat().st_size, difference, sizes)


def _write(model: nn.Module, path: Path, inputs: tuple[Tensor, ...]) -> None:
    # torch.export takes a size of 1 for a constant, so that the batch would not be dynamic.
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
    except Exception as error:  # Exporting fails in as many ways as there are networks.
        raise ValueError(f"torch cannot export {type(model).__name__}: {error}") from error


def _compare(
    onnxruntime: Any,
    model: nn.Module,
    path: Path,
    inputs: tuple[Tensor, ...],
    tolerance: float,
) -> tuple[float, tuple[int, ...]]:
    """Return the largest relative difference, and the batch sizes compared."""
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
        except Exception as error:  # A network that depends on the batch size has just one.
            raise ValueError(
                f"onnxruntime cannot run the network at batch size {len(batch[0])}: {error}"
            ) from error
        scale = max(float(expected.abs().amax()), torch.finfo(expected.dtype).tiny)
        difference = float((found - expected).abs().amax()) / scale
        if not difference <= tolerance:  # NaN is no small difference.
            raise ValueError(
                f"onnxruntime's outputs differ from torch's by {difference:.3g} of the largest, at "
                f"batch size {len(batch[0])}; the tolerance is {tolerance}. No file was written."
            )
        largest = max(largest, difference)
        sizes.append(len(batch[0]))
    return largest, tuple(sizes)


def _twice(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.cat([each, each]) for each in inputs)


def _libraries() -> Any:
    """Return onnxruntime, once everything is there that the export needs."""
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
