"""What a trained model knows: held-out loss, probe accuracy by how often a fact was seen, and the report of both.

Hands out `Scorer` (one jitted forward pass that everything is measured with), `held_out_loss`, `probe_accuracy` and the
report functions. Every measurement is made for a *mode* of the memory: none, generic, fetched or wrong path.
"""

from hiermem_jax.evaluation.measure import Probe, held_out_loss, probe_accuracy
from hiermem_jax.evaluation.scoring import MODES, Scorer, mode_leaves

__all__ = ["MODES", "Probe", "Scorer", "held_out_loss", "mode_leaves", "probe_accuracy"]
