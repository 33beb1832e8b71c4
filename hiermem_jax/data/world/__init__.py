"""The synthetic world: invented entities, documents that state facts about them, and probes that ask for the facts.

generate.py   `WorldConfig`, `generate`: documents and probes, with the number of times that each fact is stated
topics.py     wording: domains and kinds of entities
relations.py  wording: the facts of each domain
answers.py    the possible answers of each relation
common.py     everyday text without facts
tfds.py       the world as TFDS datasets
"""
