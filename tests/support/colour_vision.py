"""How colours look to readers: contrast, and distance with and without colour blindness.

Contrast is that of WCAG 2.1. Colour blindness is simulated by the matrices of Machado, Oliveira and
Fernandes (2009) at full severity, and distances are Euclidean in CIELAB.
"""

import numpy as np

BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# From linear sRGB to XYZ, with the white of D65.
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def linear(code: str) -> np.ndarray:
    """A code such as ``"#4983fc"`` as linear red, green and blue."""
    values = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21."""
    dark, light = sorted(float(linear(code) @ XYZ[1]) for code in (one, other))
    return (light + 0.05) / (dark + 0.05)


def distance(one: str, other: str, blindness: str) -> float:
    """How far two colours are apart to a reader; 2 is just visible side by side."""
    first, second = (_lab(BLINDNESS[blindness] @ linear(code)) for code in (one, other))
    return float(np.linalg.norm(first - second))


def _lab(rgb: np.ndarray) -> np.ndarray:
    relative = XYZ @ rgb.clip(0, 1) / WHITE
    f = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
