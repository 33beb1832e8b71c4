"""Public evaluation sets: read in their original formats, made into prompts, given as SeqIO tasks, judged.

  records.py    files of records, and errors that say where something is wrong
  formats.py    `Item` and one reader per format
  prompts.py    `Prompting` and `requests`: items -> (context, continuation), with few-shot exemplars
  table.py      `TASKS`: what is known of each task; `task_spec` finds one by its name
  metrics.py    model outputs -> results of items -> metrics
  registry.py   `register`: a file of a task as a SeqIO task

Only registry.py needs SeqIO (and so TensorFlow). In short:

  task = register("arc_easy", "/data/arc_easy.jsonl", "/data/tokenizer.json")
  examples = list(task.get_dataset(split="test", shuffle=False).as_numpy_iterator())  # one per request
  results = item_results("multiple_choice", examples, log_likelihoods)  # one per item
"""
