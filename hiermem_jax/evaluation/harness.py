r"""EleutherAI's lm-evaluation-harness on our checkpoints, with memory fetched for each request.

Needs `pip install -e ".[harness]"`. This module is its command line with one more model, `hiermem`:

  python -m hiermem_jax.evaluation.harness --model hiermem --tasks arc_easy \
    --model_args run_dir=runs/a2,mode=fetched --batch_size 64

and the same model from Python: `lm_eval.simple_evaluate(model=HiermemLM(run_dir="runs/a2"), tasks=["arc_easy"])`.
"""

from collections.abc import Sequence

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from hiermem_jax.data.text.pairs import encode_pairs
from hiermem_jax.errors import InputError
from hiermem_jax.evaluation.config import ModelFiles, ScoringConfig
from hiermem_jax.evaluation.loading import load
from hiermem_jax.evaluation.modes import Mode, parse_modes
from hiermem_jax.evaluation.scoring import Scorer


@register_model("hiermem")
class HiermemLM(LM):
  """The newest checkpoint of a run, in one mode of its memory."""

  def __init__(
    self,
    run_dir: str,
    model: str = ".",
    mode: str = "fetched",
    tokenizer: str = "tokenizer.model",
    tree: str = "tree",
    max_length: int = 2048,
    max_gen_toks: int = 64,
    batch_size: int | str = 64,
    example_delimiter: str | None = None,
    **unused,
  ):
    """Loads the model.

    Args:
      run_dir: where relative paths start.
      model: training directory.
      mode: of the memory; evaluation/modes.py lists them. There are no documents for 'rag' modes. A model without a
        bank has 'none', whatever is given here.
      tokenizer: path of the tokenizer.
      tree: directory of the tree and its encoder.
      max_length: tokens of a prompt with what follows it; longer prompts lose their beginning.
      max_gen_toks: tokens generated where a task does not say.
      batch_size: sequences at once.
      example_delimiter: what stands between few-shot examples, as a rule "\\n\\n": the retriever sees the text behind
        the last one, the question alone. None: the retriever sees the whole context.
      **unused: what the harness gives to all models (device and the like).

    Raises:
      InputError: a file is missing, files do not belong together, or the model has no memory for the mode.
    """
    super().__init__()
    loaded = load(run_dir, ModelFiles(directory=model, tree=tree, tokenizer=tokenizer))
    if Mode.parse(mode).document:
      raise InputError(f"mode {mode!r}: the harness has no documents; choose {mode.removeprefix('rag ')!r}")
    (self._mode,) = parse_modes([mode if loaded.model.memory else "none"], loaded.model.memory)
    self._tokenizer, self._max_gen_toks, self._delimiter = loaded.tokenizer, int(max_gen_toks), example_delimiter
    self._modes = loaded.in_modes(ScoringConfig(batch_size=int(batch_size), max_length=int(max_length)))

  def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """Log-likelihood (nats) of each continuation, and whether it is what greedy decoding gives."""
    del disable_tqdm
    pairs = [request.args for request in requests]
    scorer, leaf = self._fetch([context for context, _ in pairs])
    prompts, continuations = zip(*encode_pairs(self._tokenizer, pairs))
    scores, greedy = scorer.score_continuations(prompts, continuations, leaf)
    return list(zip(scores.tolist(), greedy.tolist()))

  def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
    """Log-likelihood of whole texts (nats), in windows of the context, each without what is before it."""
    del disable_tqdm
    texts = [request.args[0] for request in requests]
    scorer, leaf = self._fetch(texts)
    return scorer.score_documents(self._tokenizer.encode_batch(texts), leaf).tolist()

  def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    """Greedy continuations, each cut at the first of its request's stop strings."""
    del disable_tqdm
    prompts = self._tokenizer.encode_batch([request.args[0] for request in requests])
    scorer, leaf = self._fetch([request.args[0] for request in requests])
    lengths, results = [], [""] * len(requests)
    for request in requests:
      settings = request.args[1]
      if settings.get("do_sample") and settings.get("temperature", 0) > 0:
        raise InputError(f"task {request.task_name}: asks for sampling; unset do_sample, generation is greedy")
      lengths.append(int(settings.get("max_gen_toks", self._max_gen_toks)))
    for length in sorted(set(lengths)):
      chosen = [number for number, wanted in enumerate(lengths) if wanted == length]
      stop = [self._tokenizer.eot_id]
      generated = scorer.generate([prompts[number] for number in chosen], leaf[chosen], length, stop)
      for number, ids in zip(chosen, generated):
        results[number] = _cut(self._tokenizer.decode(ids), requests[number].args[1].get("until", ()))
    return results

  def _fetch(self, contexts: Sequence[str]) -> tuple[Scorer, np.ndarray]:
    """The scorer, and the leaf ids int32 [n] of the contexts."""
    if self._delimiter:
      contexts = [context.rsplit(self._delimiter, 1)[-1] for context in contexts]
    return self._modes.scorer(self._mode), self._modes.leaves(self._mode, contexts)


def _cut(text: str, until: str | Sequence[str]) -> str:
  for stop in [until] if isinstance(until, str) else until:
    text = text.split(stop, 1)[0] if stop else text
  return text


if __name__ == "__main__":
  from lm_eval.__main__ import cli_evaluate

  cli_evaluate()
