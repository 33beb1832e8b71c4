"""A context and its continuation as tokens, for scoring the continuation.

Evaluation of facts, evaluation of tasks, the SeqIO tasks and the adapter of the lm-evaluation-harness all tokenise with
`encode_pairs`.
"""

from collections.abc import Sequence

from hiermem_jax.data.text.tokenizer import Tokenizer


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
  """Tokenises contexts and the continuations that follow them.

  Context and continuation are tokenised together, as the training text was, and the ids are cut in two behind as many
  ids as the context has alone. For example, with a tokenizer of whole words and their leading space:

    ("The owl likes", " plum") -> ([The, owl, likes], [plum])

  Args:
    tokenizer: of the model.
    pairs: (context, continuation) texts. A space between the two belongs to the continuation.

  Returns:
    (context ids, continuation ids) of each pair. The continuation has at least one id, even where the tokenizer merges
    all of it into the context's last token: that token is then the continuation.
  """
  contexts = list(dict.fromkeys(context for context, _ in pairs))  # the options of a question share theirs
  sizes = dict(zip(contexts, map(len, tokenizer.encode_batch(contexts))))
  joined = tokenizer.encode_batch([context + continuation for context, continuation in pairs])
  result = []
  for (context, _), ids in zip(pairs, joined):
    size = min(sizes[context], len(ids) - 1)
    result.append((ids[:size], ids[size:]))
  return result
