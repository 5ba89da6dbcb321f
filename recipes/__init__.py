"""One command per paper method; imported as ``robust_plugin.recipes``.

The folder stands beside ``robust_plugin/`` in the repository and is installed inside it. Start
with ``papers/``: each file reads like its paper. ``cli.py`` is the command ``robust-plugin``,
``configs/`` holds its presets; README and docs/recipes.md show how to use it.
"""
