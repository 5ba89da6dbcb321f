"""One file or folder per library; imported as ``robust_plugin.adapters``.

The folder stands beside ``robust_plugin/`` in the repository and is installed inside it. Each
file bears the name of its library and is the only place that imports it: ``torch_pruning.py``,
``torchattacks.py``, ``autoattack.py``, ``auto_lirpa/`` and ``onnx.py``. Import the file you need:
nothing is imported here, so that no library has to be installed for another.
"""
