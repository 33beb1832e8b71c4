"""Results item by item, kept beside a report, so that two models can be compared on the same items.

  items.jsonl   a line per held-out sequence and per probe

  {"set": "held_out", "item": "3f2a...", "tokens": 126, "loss": {"none": 310.2, "fetched": 290.7}}
  {"set": "probes", "item": "The owl likes plum", "count": 3, "tokens": 2, "bytes": 6,
   "correct": {"none": false}, "log_likelihood": {"none": -4.1}}

Losses and log-likelihoods are sums over the item's tokens, nats. A held-out sequence is named by a digest of its tokens
and of the tokenizer, so that it has the same name wherever it is packed.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hiermem_jax import files
from hiermem_jax.data.packed.reading import PackedDataset
from hiermem_jax.evaluation.probes import Probe

NAME = "items.jsonl"
_CHUNK = 1024  # sequences that are read at a time


def lines(
  dataset: PackedDataset,
  losses: Mapping[str, np.ndarray],
  probes: Sequence[Probe],
  results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Iterator[dict[str, Any]]:
  """The lines of the file.

  Args:
    dataset: n held-out sequences.
    losses: by series, float [n], summed over the sequence's tokens, nats.
    probes: the questions.
    results: by series, of each question what `probes.score_probes` gives.
  """
  starts = range(0, len(dataset), _CHUNK) if losses else ()
  for start in starts:
    numbers = np.arange(start, min(start + _CHUNK, len(dataset)))
    _, targets, segments = dataset.read(numbers)
    for number, *arrays in zip(numbers.tolist(), targets, segments):
      content = dataset.manifest.tokenizer_fingerprint.encode() + b"".join(array.tobytes() for array in arrays)
      yield {
        "set": "held_out",
        "item": hashlib.sha256(content).hexdigest()[:16],
        "tokens": int(np.count_nonzero(arrays[1])),
        "loss": {name: float(values[number]) for name, values in losses.items()},
      }
  for number, probe in enumerate(probes):
    of_series = {name: found[number] for name, found in results.items()}
    yield {
      "set": "probes",
      "item": f"{probe.text} {probe.record['answer']}",
      "count": probe.count,
      "tokens": len(probe.answer),
      "bytes": probe.answer_bytes,
      **{name: {series: found[name] for series, found in of_series.items()} for name in ("correct", "log_likelihood")},
    }


def read(directory: str) -> list[dict[str, Any]]:
  """The lines in a report's directory; none where it keeps none."""
  path = os.path.join(directory, NAME)
  return files.read_jsonl(path) if os.path.exists(path) else []
