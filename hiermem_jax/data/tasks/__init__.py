"""Public evaluation sets: read in their original formats, made into prompts, tokenised, judged.

  records.py    files of records, and errors that say where something is wrong
  formats.py    `Item`, and one reader per format
  prompts.py    `Prompting` and `text_pairs`: items -> (context, continuation), with few-shot examples
  table.py      `TASKS`: how each task is read, prompted and judged; `task_spec` finds one by its name
  requests.py   `read_requests`: the file of a task -> tokenised `Request`s
  metrics.py    outputs of a model -> results of items -> metrics
  registry.py   `register`: the same requests as a SeqIO task

Only registry.py needs SeqIO (and so TensorFlow). In short:

  requests = read_requests("arc_easy", "/data/arc_easy.jsonl", load_tokenizer("/data/tokenizer.json"))
  results = judge("multiple_choice", requests, [Output(log_likelihood) for log_likelihood in scores])
  summarize("multiple_choice", results)["accuracy"]
"""
