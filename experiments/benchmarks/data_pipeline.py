r"""Times the stages of the data pipeline on one core, reading batches back, and what DCLM would cost at these rates.

  python experiments/benchmarks/data_pipeline.py --quick
  python experiments/benchmarks/data_pipeline.py --texts DIR/train-00000.jsonl.gz --tokenizer DIR/tokenizer.model \
    --encoder DIR/all-MiniLM-L6-v2

Without --texts it makes documents of random words; without --encoder it fits LSA on them, without --tokenizer it trains one.
Prints, or gives as JSON with --json:

  stages             tokens per second and core: tokenise (and cut windows), embed, assign, shuffle and write (two passes
                     over the tokens: route without embedding, and pack)
  tokens_per_second  of one process that reads batches of 2048 tokens, the limit being the disk and the decoder of records
  read_ratio         the same, over what a training step of the quickstart's anchor consumes on this machine
  resume_ratio       time to the first batch of step 100,000 over that of step 0
  bytes_per_token    of the text, the chunks between the two halves, the packed dataset, the embeddings
  dclm               3.2B documents and 4.3T tokens at these rates: core-hours, accelerator-hours of the encoder, bytes
"""

import argparse
import json
import os
import statistics
import tempfile
import time

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"  # one core

import numpy as np

from hiermem_jax.data.batches import Batches
from hiermem_jax.data.cluster_corpus import TreeConfig, cluster_corpus
from hiermem_jax.data.prepare import prepare
from hiermem_jax.data.reading import sample_texts
from hiermem_jax.data.runner import BeamConfig
from hiermem_jax.data.sources import JsonlSource
from hiermem_jax.data.tokenizer import load_tokenizer, train_sentencepiece
from hiermem_jax.data.windows import windows_of
from hiermem_jax.retrieval.encoders import LsaEncoder, SentenceTransformer
from hiermem_jax.retrieval.retriever import load_retriever

_LENGTH, _BATCH = 2048, 8
_DCLM_DOCUMENTS, _DCLM_TOKENS = 3.2e9, 4.3e12  # paper, Section 3 and Appendix C
_QUICKSTART_SECONDS = 15  # spent on timing the quickstart's anchor
