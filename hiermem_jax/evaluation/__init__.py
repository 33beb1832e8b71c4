"""What a trained model knows: held-out loss, probe accuracy by how often a fact was seen, and the report of both.

Hands out `Scorer` (the jitted forward pass and generation that everything is measured with), `held_out_loss`,
`probe_accuracy` and the report functions. Every measurement is made for a *mode* of the memory: none, generic,
fetched, wrong path, or some levels of the fetched one.
"""

from hiermem_jax.evaluation.measure import Probe, held_out_loss, probe_accuracy
from hiermem_jax.evaluation.modes import MODES, check_mode, keep_levels, mode_leaves, mode_levels
from hiermem_jax.evaluation.scoring import Scorer

__all__ = [
  "MODES",
  "Probe",
  "Scorer",
  "check_mode",
  "held_out_loss",
  "keep_levels",
  "mode_leaves",
  "mode_levels",
  "probe_accuracy",
]
