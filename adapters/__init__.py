"""Adapters to other libraries, one file or folder per library.

This folder is next to ``robust_plugin/`` in the repository and is installed as
``robust_plugin.adapters``. Each file or folder has the name of its library and is the only place
that imports it: ``torch_pruning/``, ``torchattacks.py``, ``autoattack/``, ``auto_lirpa/``,
``lightning/``, ``transformers.py`` and ``onnx.py``. Import the one you need. Nothing is imported
here, so the other libraries need not be installed.
"""
