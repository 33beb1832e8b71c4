"""Ahead-of-time analysis: what a compiled training step needs of a TPU pod, found on a machine that has none.

  topology.py      TPU chips and slices: published numbers, and devices to compile for
  peaks.py         published peak FLOP/s by device kind
  hlo.py           reads the text of a compiled program
  cost.py          FLOPs and HBM bytes of a compiled program, loops counted
  least.py         the least bytes that a step moves through HBM
  collectives.py   what a compiled program sends between devices
  tensor_names.py  which weight, bank level or gradient a collective moves
  report.py        all of this for one training step: what `compile_pod` prints

Knows `models` and `parallel`; a trainer hands it the step to compile.
"""
