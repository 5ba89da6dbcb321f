"""Processes that begin with torch and the recipes imported; importing takes a new one seconds.

Each is a process of its own, with its own memory, signals, exit status and output. All of them are
forked by one server of multiprocessing, which imports everything once and computes nothing.
"""

import importlib.util
import inspect
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_CONTEXT = get_context("forkserver")
# torch._dynamo is what the first optimizer of a process imports.
_CONTEXT.set_forkserver_preload(
    ["robust_plugin.recipes.cli", "torchvision", "torch._dynamo", "pytest"]
)


class Forked:
    """A process that calls one function; its methods are those of ``subprocess.Popen``.

    Its exit status is the integer that the function returns; for None it is 0.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        *arguments: Any,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        group: bool = False,
    ) -> None:
        """Start the process.

        Args:
            function: a function at the top of a module or of a test file.
            arguments: its arguments.
            cwd: the current folder of the process.
            env: environment variables that it has beside those of this process.
            group: whether it gets a process group of its own, as a command in a terminal does.
        """
        self._output = tempfile.TemporaryDirectory()
        # Not the function itself: a test file cannot be imported by its name.
        where = (function.__module__, inspect.getfile(function), function.__name__)
        settings = (self._output.name, cwd or Path.cwd(), dict(env or {}), group)
        self._process = _CONTEXT.Process(target=_run, args=(where, arguments, *settings))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the number of the signal; None while the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end; return the exit status, or raise after so many seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"the process still runs after {timeout} s: {self._said()}")
        return self.returncode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for the end; return what was written to standard output and to standard error."""
        self.wait(timeout)
        return self._said()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _said(self) -> tuple[str, str]:
        out, err = (Path(self._output.name, name) for name in ("out", "err"))
        return (out.read_text() if out.exists() else ""), (err.read_text() if err.exists() else "")


def _run(
    where: tuple[str, str, str],
    arguments: tuple[Any, ...],
    output: str,
    cwd: Path,
    env: dict[str, str],
    group: bool,
) -> None:
    """Call the function in the new process, with its output in files."""
    if group:
        os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        with open(Path(output, name), "w") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(env)
    os.chdir(cwd)
    import torch

    torch.set_num_threads(1)
    sys.exit(_function(*where)(*arguments))


def _function(module: str, file: str, name: str) -> Callable[..., int | None]:
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(module, file)
        assert spec is not None and spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    function: Callable[..., int | None] = getattr(sys.modules[module], name)
    return function
