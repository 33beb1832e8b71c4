"""What a trained model knows: perplexity, facts by how often they were seen, public question sets.

Every measurement is made in a *mode* of the memory: none, generic, fetched, some levels, another path.

  config.py         what an evaluation is told, as dataclasses
  loading.py        `load`: checkpoint, tokenizer and tree, checked against each other
  modes.py          `Mode`, and `MemoryModes`: a model ready to be measured in any of them
  scoring.py        `Scorer`: log-likelihoods, greedy agreement and generation, on any mesh
  probes.py         questions about facts of known frequency
  perplexity.py     of held-out packed text, and of articles
  series.py         what `evaluate` measures: one model in several modes
  tasks.py          what `evaluate_tasks` measures, with store.py for results that are kept
  rag.py            documents in front of questions
  attribution.py    which level's block holds a fact
  report.py         tables, JSON and plots of the one; task_report.py of the other
  harness.py        the model for EleutherAI's lm-evaluation-harness
"""
