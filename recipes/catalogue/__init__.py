"""What there is: presets, published figures, and the files of a finished run.

``preset_list.py`` is the command ``list``, ``published.py`` prints published figures
(``published.yaml``) beside a run's own, ``folder.py`` says what each file of a run's folder is.

 Uses: papers, config. Used by: dry, cli.
"""

from robust_plugin.recipes.catalogue.preset_list import (
    listing,
)
from robust_plugin.recipes.catalogue.published import (
    beside_published,
)

__all__ = ["listing", "beside_published"]
