"""The Beam pipelines: a corpus is embedded and clustered, routed to leaves, packed and written once."""
