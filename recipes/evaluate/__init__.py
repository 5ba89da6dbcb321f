"""Measure one network: attacks, proofs, checks, tables.

``network.py`` is the command ``evaluate`` for any network, ``finish.py`` the end of a run,
``settings.py`` reads the settings of a finished run, ``certifiers.py`` makes provers by name,
``page.py`` is the HTML report, ``before_after.py`` the table of a network before and after
channels are removed.

 Uses: training, data, models, config, pages, runtime. Used by: papers, cli.
"""

from robust_plugin.recipes.evaluate.finish import (
    evaluate_run,
)
from robust_plugin.recipes.evaluate.network import (
    Evaluated,
    evaluate_network,
)

__all__ = ["evaluate_run", "Evaluated", "evaluate_network"]
