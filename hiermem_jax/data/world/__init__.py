"""The synthetic world: invented entities, documents that state facts about them, and probes that ask for the facts."""
