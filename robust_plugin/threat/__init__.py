"""What the adversary may change, and in which units.

Start with ``model.py``: ``ThreatModel`` holds the norm, eps and the legal range of the inputs,
and projects points onto the allowed set. ``units.py`` reads an eps such as "8/255" and checks noise
levels and the range of inputs. ``layers.py`` has the layers that change the units of inputs, and
``projection.py`` the projection onto the L1 ball.

Not here: attacks (``attacks``), which search inside a threat model.

Uses: runtime.
Used by: attacks, certificates, objectives, evaluation.
"""

from robust_plugin.threat.layers import (
    Normalize,
    UnitBox,
)
from robust_plugin.threat.model import (
    Norm,
    ThreatModel,
)
from robust_plugin.threat.units import (
    parse_eps,
)

__all__ = ["Normalize", "UnitBox", "Norm", "ThreatModel", "parse_eps"]


def __dir__() -> list[str]:
    return sorted(__all__)
