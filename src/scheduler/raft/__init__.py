"""One replica of a Raft group: pysyncobj behind a small interface."""
