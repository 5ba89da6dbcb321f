"""How far two computations of the same values may lie apart: one constant per purpose.

Two ways to compute the same outputs differ by rounding, and how much depends on what is compared. A
difference above the constant means that the two did not compute the same. Unless the comment above
it says otherwise, a constant is relative to the largest output that is compared.
"""

from __future__ import annotations

# A folded network sums in another order than the original one; its logits still agree to four
# digits.
FOLDED_OUTPUTS = 1e-4

# Input gradients differ more than outputs, because rounding decides on which side of a kink an
# activation lies; a copy that has lost a custom backward pass is farther away. Relative to the L2
# norm of all input gradients.
INPUT_GRADIENTS = 1e-2

# CSR products sum in another order than dense layers; the outputs still agree to four digits.
SPARSE_OUTPUTS = 1e-4

# onnxruntime's kernels sum in another order than torch's; the outputs still agree to four digits.
ONNX_OUTPUTS = 1e-4

# Removing channels changes the order of sums only, so that the outputs keep half of their digits.
# An exponent: the outputs may differ by the machine epsilon of their dtype to this power.
REMOVED_CHANNELS_POWER = 0.5

# Training mode, and networks with random weights, magnify rounding by the statistics of small
# batches. An exponent like REMOVED_CHANNELS_POWER: 5e-7 in float64.
MAGNIFIED_CHANNELS_POWER = 0.4

# A run that goes on with another number of threads, or on another machine, rounds differently; a
# network with other weights or code is farther away.
JOURNAL_LOGITS = 1e-3

# A second forward pass of the same points may round differently; a network that is random, or
# depends on the other points of the batch, is farther away.
REPEATED_LOGITS = 1e-3

# Bounds at eps = 0 and the network compute the same margins in float32 in different ways, and deep
# networks magnify rounding. Relative to 1 + the largest margin of the point.
BOUNDS_OF_THE_NETWORK = 1e-3

# Two methods compute the same bound in float32 in different ways. Relative to 1 + the largest
# margin of the point.
BOUNDS_BY_TWO_METHODS = 1e-4

# Bounds are sums in float32: a margin this small may be rounding alone, and proves nothing.
# Relative to 1 + the largest margin of the point.
PROVED_MARGIN = 1e-5
