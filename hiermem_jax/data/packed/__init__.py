"""Packed datasets: their files, how windows are packed into sequences, and the batches that training reads."""
